"""Items that each prompt may be given: allow-lists and deny-lists as sorted numbers, looked up along the trie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from ..items.item_trie import ItemId, ItemTrie


# One set for all prompts (ids, or a mask over the items), or a set for each prompt.
ItemSets: TypeAlias = Sequence[ItemId] | Sequence[Sequence[ItemId]] | Tensor


@dataclass
class _Keys:
    """Sets of items as ascending `user * num_items + item_index` `(K,)`; a set for all prompts has user 0 alone."""

    keys: Tensor
    shared: bool

    def offsets(self, users: Tensor, num_items: int) -> Tensor:
        return torch.zeros_like(users) if self.shared else users * num_items

    def count_between(self, first: Tensor, last: Tensor) -> Tensor:
        return torch.searchsorted(self.keys, last) - torch.searchsorted(self.keys, first)

    def contains(self, keys: Tensor) -> Tensor:
        places = torch.searchsorted(self.keys, keys).clamp(max=max(len(self.keys) - 1, 0))
        return self.keys[places] == keys if len(self.keys) else torch.zeros_like(keys, dtype=torch.bool)


class ItemFilter:
    """
    The items that `allow` and `exclude` of [`recommend`] leave to each of `num_prompts` prompts.

    Items below a node are one range of item indices, so that two binary searches count those of a set. No list becomes
    a mask over the vocabulary or is walked in Python, and memory grows with the lists alone.
    """

    def __init__(
        self, trie: ItemTrie, num_prompts: int, allow: ItemSets | None = None, exclude: ItemSets | None = None
    ) -> None:
        self._trie = trie
        self._allowed = None if allow is None else _parse(trie, num_prompts, allow, "allow")
        self._removed = None if exclude is None else _parse(trie, num_prompts, exclude, "exclude")
        allowed, removed = self._allowed, self._removed
        if allowed is None or removed is None:
            return
        if allowed.shared and not removed.shared:  # only items that are allowed at all
            self._removed = _Keys(removed.keys[allowed.contains(removed.keys % len(trie))], shared=False)
        else:
            out = removed.contains(allowed.keys % len(trie) if removed.shared else allowed.keys)
            self._allowed, self._removed = _Keys(allowed.keys[~out], allowed.shared), None

    @property
    def lets_all_pass(self) -> bool:
        return self._allowed is None and (self._removed is None or not len(self._removed.keys))

    def open_nodes(self, users: Tensor, nodes: Tensor) -> Tensor:
        """Whether any item below each node may be given to its user; both of one shape, False for node -1."""
        arrays, num_items = self._trie.arrays, len(self._trie)
        known = nodes.clamp(min=0)
        first, last = arrays.item_start[known].long(), arrays.item_end[known].long()
        left = last - first
        if self._allowed is not None:
            offset = self._allowed.offsets(users, num_items)
            left = self._allowed.count_between(offset + first, offset + last)
        if self._removed is not None:
            offset = self._removed.offsets(users, num_items)
            left = left - self._removed.count_between(offset + first, offset + last)
        return (left > 0) & (nodes >= 0)

    def keeps(self, users: Tensor, item_indices: Tensor) -> Tensor:
        """Whether each item may be given to its user; both of one shape."""
        kept = torch.ones_like(item_indices, dtype=torch.bool)
        if self._allowed is not None:
            kept &= self._allowed.contains(self._allowed.offsets(users, len(self._trie)) + item_indices)
        if self._removed is not None:
            kept &= ~self._removed.contains(self._removed.offsets(users, len(self._trie)) + item_indices)
        return kept


def _parse(trie: ItemTrie, num_prompts: int, sets: ItemSets, name: str) -> _Keys:
    if isinstance(sets, Tensor):
        return _parse_mask(trie, num_prompts, sets, name)
    if isinstance(sets, str):
        raise TypeError(f"Got {name}={sets!r}, expected a list of item ids. Pass [{sets!r}].")
    values: Any = list(sets) if not isinstance(sets, np.ndarray) else sets
    single = [isinstance(value, (str, int, np.integer)) for value in values]
    if len(values) and all(single):
        return _Keys(trie.index_of(values).unique(), shared=True)
    if any(single):
        raise TypeError(f"Got {name} that mixes item ids and lists. Pass ids for all prompts, or a list for each.")
    if len(values) != num_prompts:
        raise ValueError(
            f"Got {len(values)} lists of items to {name} for {num_prompts} prompts, expected one for each."
        )
    lengths = torch.tensor([len(items) for items in values], dtype=torch.long, device=trie.device)
    users = torch.repeat_interleave(lengths)
    item_indices = trie.index_of([item for items in values for item in items])
    return _Keys((users * len(trie) + item_indices).unique(), shared=False)


def _parse_mask(trie: ItemTrie, num_prompts: int, mask: Tensor, name: str) -> _Keys:
    if mask.dtype != torch.bool or tuple(mask.shape) not in ((len(trie),), (num_prompts, len(trie))):
        raise ValueError(
            f"Got a tensor of type {mask.dtype} and shape {tuple(mask.shape)} as {name}, expected a mask of type bool "
            f"and shape ({len(trie)},) or ({num_prompts}, {len(trie)}), items in the order of `ItemTrie.item_ids`."
        )
    return _Keys(mask.to(trie.device).flatten().nonzero().flatten(), shared=mask.dim() == 1)
