"""Packing that keeps which tokens belong to which target item; TRL's own keeps tokens and labels alone."""

from __future__ import annotations

from typing import Any

from datasets import Dataset, IterableDataset
from trl import SFTConfig, pack_dataset

from .data_collator import as_list


def pack_with_targets(dataset: Dataset | IterableDataset, args: SFTConfig) -> Dataset | IterableDataset:
    """
    Pack prepared rows as [`~trl.SFTTrainer`] does, in the same order, with their `target_items`.

    Args:
        dataset ([`~datasets.Dataset`] or [`~datasets.IterableDataset`]):
            Rows with `input_ids`, `labels` and `target_items`.
        args ([`~trl.SFTConfig`]):
            Length in tokens, strategy, shuffling.

    Returns:
        Packed rows, whose `target_items` are numbered from 1. Of an item that a strategy cut, the head is a target,
        since its prefixes are known, and the tail is plain text.
    """
    if args.max_length is None:
        raise ValueError(
            "When packing is enabled, `max_length` can't be `None`: packed rows are filled up to it. Set it to a "
            "number of tokens, or set `packing=False`."
        )
    dataset = dataset.map(_to_places).select_columns(["input_ids", "labels", "target_items"])
    if args.shuffle_dataset:
        dataset = dataset.shuffle(seed=args.seed)
    dataset = pack_dataset(dataset, args.max_length, args.packing_strategy).map(_to_numbers)
    return dataset.shuffle(seed=args.seed) if args.shuffle_dataset else dataset


def _to_places(example: dict[str, Any]) -> dict[str, list[int]]:
    """
    Where in its item each target token stands, from 1; -1 on ends; 0 elsewhere. Rows may be cut anywhere after. What
    was cut off the target numbers is cut off the row.
    """
    places: list[int] = []
    last = 0
    for number in as_list(example["target_items"]):
        follows = number > 0 and number == last
        places.append(places[-1] + 1 if follows else (number > 0) - (number < 0))
        last = number
    row = {name: as_list(example[name])[: len(places)] for name in ("input_ids", "labels")}
    return {**row, "target_items": places}


def _to_numbers(example: dict[str, Any]) -> dict[str, list[int]]:
    """Number the items of a packed row; a token whose item started in another row belongs to none."""
    numbers: list[int] = []
    count = last = 0
    for place in as_list(example["target_items"]):
        if place == 1:
            count += 1
            numbers.append(count)
        elif place == 0 or last <= 0:
            numbers.append(0)
        elif place == -1:
            numbers.append(-count)
        else:
            numbers.append(count if place == last + 1 else 0)
        last = place if numbers[-1] else 0
    return {"target_items": numbers}
