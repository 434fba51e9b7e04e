"""Scores of the catalogue for the target items of a batch; a target without a history has none."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from ..items.item_trie import ItemTrie
from ..rewards.rewards import RewardFunc, check_reward_func
from .data_collator import REWARD_COLUMNS


def score_targets(
    reward_func: RewardFunc | Callable[..., Tensor], columns: dict[str, list], num_items: int, device: torch.device
) -> Tensor:
    """
    Scores of every item for every target item of a batch.

    Args:
        reward_func ([`RewardFunc`]):
            Called once with the targets that have a history, and not at all where none has.
        columns (`dict[str, list]`):
            `history` and the other columns of [`DataCollatorForItemCompletion`], one entry a target item.
        num_items (`int`):
            Size of the catalogue.
        device (`torch.device`):
            Of the result.

    Returns:
        `torch.Tensor` of shape `(T, I)`: rows of 0, which reward nothing, for targets whose history is `None`.
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


def try_reward_func(
    reward_func: RewardFunc | Callable[..., Tensor],
    item_trie: ItemTrie,
    rows: Iterable[dict[str, Any]],
    data_collator: Callable[[list[dict[str, Any]]], dict[str, Any]],
) -> None:
    """Score the first target that has a history, so that what the loss could not use is refused before training."""
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
    """The histories of a batch's target items, and the other columns that reward functions are given."""
    if "history" not in columns:
        raise ValueError(
            "`reward_func` needs the `history` of each target item, but the batch has none. Use "
            "`DataCollatorForItemCompletion` and a data set with a `history` column."
        )
    others = {name: columns[name] for name in REWARD_COLUMNS if name in columns and name != "history"}
    return columns["history"], others
