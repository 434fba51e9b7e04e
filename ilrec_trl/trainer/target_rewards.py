"""Rewards of the target items of a batch: the share of each continuation in the scores below its prefix."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor

from ..items.item_trie import ItemTrie
from ..items.trie_arrays import check_item_scores, ragged_ranges
from ..rewards.rewards import RewardFunc, check_reward_func
from .data_collator import REWARD_COLUMNS
from .targets import TargetPositions


# Item scores held at once, over all targets: what fits a processor's cache, and 256 MiB on an accelerator. At least
# _LEAST_TARGETS targets are scored at once, since reward models are slow on fewer
_SCORES_AT_ONCE = {"cpu": 2**19, "accelerator": 2**26}
_LEAST_TARGETS = 16
# Bytes of a cached target beside its shares: the key, its place, and their part of a dict that is two thirds full
_TARGET_BYTES = 49 + 32 + 104


def share_rewards(
    reward_func: RewardFunc | Callable[..., Tensor],
    columns: dict[str, list],
    targets: TargetPositions,
    item_trie: ItemTrie,
    cache: ShareCache | None = None,
) -> Tensor:
    """
    The share of each continuation in the reward mass of its prefix: `q_t` of collaborative reward regularisation.
    Targets are scored some at a time, which bounds the memory for their scores of all items.

    Args:
        reward_func ([`RewardFunc`]), columns (`dict[str, list]`): The function, and the reward columns of
            [`DataCollatorForItemCompletion`], one entry for each target item.
        targets ([`TargetPositions`]): The positions, with their nodes.
        item_trie ([`ItemTrie`]): The catalogue.
        cache ([`ShareCache`], *optional*): Shares of earlier targets; new ones are added. For a `reward_func` that is
            fixed.

    Returns:
        `torch.Tensor` of shape `(E,)`: float32, the continuations of all positions one after the other.
    """
    device, num_targets = targets.nodes.device, len(_split_history(columns)[0])
    arrays, bounds = item_trie.to(device).arrays, torch.tensor(targets.edge_bounds)
    items, starts, counts = targets.items.cpu(), bounds[:-1], bounds.diff()  # (N,)
    sizes = torch.zeros(num_targets, dtype=torch.long).index_add_(0, items, counts)  # (T,), continuations
    positions = items.argsort(stable=True).split(items.bincount(minlength=num_targets).tolist())  # of each target

    def places(chosen: Tensor) -> Tensor:
        return ragged_ranges(starts[chosen], counts[chosen])[1].to(device)

    shares = torch.zeros(targets.edge_bounds[-1], device=device)  # (E,)
    missing, keys = list(range(num_targets)), []
    if cache is not None and num_targets:
        lengths = [len(chosen) for chosen in positions]
        keys = cache.keys(zip(*columns.values(), strict=True), targets.nodes.cpu()[torch.cat(positions)], lengths)
        known = [target for target in missing if keys[target] in cache.places]
        missing = [target for target in missing if keys[target] not in cache.places]
        if known:
            kept = ragged_ranges(torch.tensor([cache.places[keys[target]] for target in known]), sizes[known])[1]
            shares[places(torch.cat([positions[target] for target in known]))] = cache.shares[kept].to(device)
    step = max(_LEAST_TARGETS, _SCORES_AT_ONCE.get(device.type, _SCORES_AT_ONCE["accelerator"]) // len(item_trie))
    for first in range(0, len(missing), step):
        part = missing[first : first + step]
        chosen = torch.cat([positions[target] for target in part])
        rows = torch.arange(len(part)).repeat_interleave(torch.tensor([len(positions[target]) for target in part]))
        scores = score_targets(
            reward_func,
            {name: [values[target] for target in part] for name, values in columns.items()},
            len(item_trie),
            device,
        )  # (step, I)
        check_item_scores(scores, len(item_trie), len(part), source="`reward_func`")
        computed = arrays.child_shares(scores, targets.nodes[chosen.to(device)], rows.to(device))[2].float()
        shares[places(chosen)] = computed
        if cache is not None:
            cache.keep([keys[target] for target in part], computed.cpu().split(sizes[part].tolist()))
    return shares


def score_targets(
    reward_func: RewardFunc | Callable[..., Tensor], columns: dict[str, list], num_items: int, device: torch.device
) -> Tensor:
    """
    Scores `(T, I)` of every item for each target item, on `device`. `reward_func` is called once with the targets that
    have a history; the others, whose history is `None`, get rows of 0, which reward nothing.
    """
    histories, others = _split_history(columns)
    known = [target for target, history in enumerate(histories) if history is not None]
    if not known:
        return torch.zeros(len(histories), num_items, device=device)
    chosen = {name: [values[target] for target in known] for name, values in others.items()}
    with torch.no_grad():
        scores = reward_func([histories[target] for target in known], **chosen).to(device)
    if len(known) == len(histories):
        return scores
    return scores.new_zeros(len(histories), num_items).index_copy_(0, torch.tensor(known, device=device), scores)


class ShareCache:
    """
    Shares of the first targets of a training, in host memory.

    Nothing is replaced when the cache is full: each epoch asks for every target once, in a new order, so that no rule
    of replacement finds more of them.

    Args:
        mib (`float`): Size in MiB, of shares and keys together; 0 keeps nothing.
    """

    def __init__(self, mib: float) -> None:
        self.room = int(mib * 2**20)  # bytes
        self.shares = torch.empty(self.room // 4)  # takes memory only for what is written
        self.used = 0
        self.places: dict[bytes, int] = {}

    @staticmethod
    def keys(values: Iterable[tuple], nodes: Tensor, lengths: Sequence[int]) -> list[bytes]:
        """
        Keys of targets, by their values of all columns and the trie nodes of their positions. `nodes` holds the nodes
        of one target after the other, and `lengths` their numbers.
        """
        node_bytes, width = nodes.numpy().tobytes(), nodes.element_size()
        ends = [width * end for end in accumulate(lengths, initial=0)]
        return [
            hashlib.blake2b(repr(own).encode() + node_bytes[start:end], digest_size=16).digest()
            for own, (start, end) in zip(values, pairwise(ends), strict=True)
        ]

    def keep(self, keys: Sequence[bytes], shares: Sequence[Tensor]) -> None:
        """Keep the shares of some targets, on the host, while there is room."""
        for key, part in zip(keys, shares, strict=True):
            size = 4 * len(part) + _TARGET_BYTES
            if key not in self.places and size <= self.room:
                self.room -= size
                self.places[key] = self.used
                self.shares[self.used : self.used + len(part)] = part
                self.used += len(part)


def try_reward_func(
    reward_func: RewardFunc | Callable[..., Tensor],
    item_trie: ItemTrie,
    rows: Iterable[dict[str, Any]],
    data_collator: Callable[[list[dict[str, Any]]], dict[str, Any]],
) -> None:
    """Score the first target that has a history, to refuse before training what the loss cannot use."""
    for row in rows:
        histories, others = _split_history(data_collator([row]))
        if any(history is not None for history in histories):
            check_reward_func(reward_func, item_trie, histories, **others)
            return
    raise ValueError(
        "`reward_func` scores items given a history, but no row of the train data set has both a target item and a "
        "history. Give the rows whose completion is an item their `item` and `history`, or leave `reward_func` out."
    )


def _split_history(columns: dict[str, Any]) -> tuple[list, dict[str, list]]:
    """Histories of the target items of a batch, and the other columns for reward functions."""
    if "history" not in columns:
        raise ValueError(
            "`reward_func` needs the `history` of each target item, but the batch has none. Use "
            "`DataCollatorForItemCompletion` and a data set with a `history` column."
        )
    others = {name: columns[name] for name in REWARD_COLUMNS if name in columns and name != "history"}
    return columns["history"], others
