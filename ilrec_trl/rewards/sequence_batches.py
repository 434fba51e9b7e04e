"""Sequences of items as tensors: padding, batches of like length, and the training rows of many users."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.utils.rnn import pad_sequence


IGNORE_INDEX = -100  # label of positions without a target, as in transformers
PADDING = 0  # input id after a sequence's end; item i of `item_ids` has input id i + 1 and label i

# What one more forward pass costs, in padded positions that could have been computed instead: about a millisecond of
# a core for its some fifty small operations; on an accelerator their launches leave it idle all the while.
_PASS_COST = {"cpu": 64, "other": 1 << 15}


def collate_sequences(rows: Sequence[Mapping[str, Sequence[int] | NDArray[np.int32]]]) -> dict[str, torch.Tensor]:
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


class ItemSequences:
    """
    Many sequences of item indices in one array: four bytes an item, however many sequences there are.

    Args:
        sequences (`Iterable[list[int]]`): Item indices of each.
    """

    def __init__(self, sequences: Iterable[Sequence[int]]) -> None:
        ends = array("q", [0])

        def items() -> Iterator[int]:
            for sequence in sequences:
                ends.append(ends[-1] + len(sequence))
                yield from sequence

        self.items: NDArray[np.int32] = np.fromiter(items(), dtype=np.int32)
        self.offsets = np.array(ends)  # (U + 1,)

    def windows(self, length: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """
        Start and end `(R,)` of rows of at most `length + 1` items of one sequence, each item after a sequence's first
        being preceded by another in one row.
        """
        targets = np.diff(self.offsets) - 1  # (U,)
        counts = np.maximum(-(-targets // length), 0)
        owners = np.repeat(np.arange(len(counts)), counts)  # (R,)
        numbers = np.arange(len(owners)) - np.repeat(counts.cumsum() - counts, counts)
        starts = self.offsets[owners] + numbers * length
        return starts, np.minimum(starts + length + 1, self.offsets[owners + 1])
