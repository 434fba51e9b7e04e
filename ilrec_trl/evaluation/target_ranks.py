"""
Where a target comes: the first rank it can have, and how many items share its place. Items of one token sequence share
a place; a target that is excluded has none and counts as not found (`inf`, 1).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..items.item_trie import ItemId, ItemTrie


Histories = Sequence[Sequence[ItemId]]


def ranks_in_lists(
    lists: Sequence[Sequence[tuple[ItemId, float]]],
    targets: Sequence[ItemId],
    item_trie: ItemTrie,
    excluded: Histories | None = None,
    allowed: Sequence[ItemId] | None = None,
) -> list[tuple[float, int]]:
    """
    Places of targets in ranked lists of items and scores, as [`recommend`] gives them.

    Args:
        lists (`list[list[tuple[str | int, float]]]`):
            One ranked list a target, best first. A target that it does not hold is not found.
        targets (`list[str | int]`):
            Item ids.
        item_trie ([`ItemTrie`]):
            The catalogue.
        excluded (`list[list[str | int]]`, *optional*):
            Items that were not to be recommended, for each target.
        allowed (`list[str | int]`, *optional*):
            The only items that were to be recommended.

    Returns:
        `list[tuple[float, int]]`: first rank, from 1, and number of ties.
    """
    ranks: list[tuple[float, int]] = []
    for ranked, place in zip(lists, _places(targets, item_trie, excluded, allowed), strict=True):
        start = next((rank for rank, (item, _) in enumerate(ranked, 1) if item in place), math.inf)
        ranks.append((start, max(1, len(place))))
    return ranks


def ranks_by_scores(
    scores: Tensor,
    targets: Sequence[ItemId],
    item_trie: ItemTrie,
    excluded: Histories | None = None,
    allowed: Sequence[ItemId] | None = None,
) -> list[tuple[float, int]]:
    """
    Places of targets by the scores of all items. Where different sequences score the same, the order is the trie's, as
    in [`recommend`].

    Args:
        scores (`torch.Tensor` of shape `(B, I)`):
            Score of every item, columns as in `ItemTrie.item_ids`, as [`rank_items`] gives them.
        targets, item_trie, excluded, allowed:
            As in [`ranks_in_lists`].

    Returns:
        `list[tuple[float, int]]`: first rank, from 1, and number of ties.
    """
    scores = scores.clone()
    leaves = item_trie.arrays.item_leaf.to(scores.device)  # (I,)
    columns = item_trie.index_of(targets).to(scores.device)  # (B,)
    own, own_leaves = scores.gather(1, columns[:, None]), leaves[columns][:, None]  # (B, 1), (B, 1)
    if allowed is not None:
        left_out = torch.ones(scores.shape[1], dtype=torch.bool, device=scores.device)  # (I,)
        left_out[item_trie.index_of(allowed).to(scores.device)] = False
        scores[:, left_out] = -torch.inf
    for row, items in enumerate(excluded or []):
        scores[row, item_trie.index_of(items).to(scores.device)] = -torch.inf
    ahead = ((scores > own) | ((scores == own) & (leaves < own_leaves))).sum(dim=1).tolist()  # (B,)
    places = _places(targets, item_trie, excluded, allowed)
    return [(1 + count, len(place)) if place else (math.inf, 1) for count, place in zip(ahead, places, strict=True)]


def _places(
    targets: Sequence[ItemId], item_trie: ItemTrie, excluded: Histories | None, allowed: Sequence[ItemId] | None
) -> list[set[ItemId]]:
    """The items that share each target's place, itself among them; none where the target was not to be found."""
    places = []
    known = None if allowed is None else set(allowed)
    for row, (target, leaf) in enumerate(zip(targets, item_trie.leaf_of(targets).tolist(), strict=True)):
        left = set(item_trie.items_below(leaf)) - set(excluded[row] if excluded is not None else ())
        left = left if known is None else left & known
        places.append(left if target in left else set())
    return places
