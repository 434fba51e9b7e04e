"""Sequences of items as tensors: padding, batches of like length, and the training rows of many users."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch.nn.utils.rnn import pad_sequence


IGNORE_INDEX = -100  # label of positions without a target, as in transformers
PADDING = 0  # input id after a sequence's end; item i of `item_ids` has input id i + 1 and label i

# What one more forward pass costs, in padded positions that could have been computed instead: about a millisecond of
# a core for its some fifty small operations; on an accelerator their launches leave it idle all the while.
_PASS_COST = {"cpu": 64, "other": 1 << 15}


def collate_sequences(rows: Sequence[Mapping[str, Sequence[int]]]) -> dict[str, torch.Tensor]:
    """Pad `input_ids` and, where there are any, `labels` after their ends to the longest row: `(B, S)` each."""
    padding = {"input_ids": PADDING, "labels": IGNORE_INDEX}
    return {
        key: pad_sequence(
            [torch.as_tensor(row[key], dtype=torch.long) for row in rows],
            batch_first=True,
            padding_value=padding[key],
        )
        for key in rows[0]
    }


def length_batches(lengths: Sequence[int], batch_size: int, device: torch.device) -> Iterator[list[int]]:
    """
    Rows of like length together, so that little is spent on padding.

    Args:
        lengths (`list[int]`): Length of each row.
        batch_size (`int`): Number of rows in a batch at most.
        device (`torch.device`): Where batches are computed, which says how much padding a batch less is worth.

    Returns:
        `Iterator[list[int]]`: Row numbers, shortest rows first; each row once.
    """
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    most = _PASS_COST.get(device.type, _PASS_COST["other"])
    start = padding = 0
    for end in range(1, len(order)):
        padding += (end - start) * (lengths[order[end]] - lengths[order[end - 1]])
        if padding > most or end - start == batch_size:
            yield order[start:end]
            start, padding = end, 0
    if order:
        yield order[start:]
