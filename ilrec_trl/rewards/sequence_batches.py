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

# Cost of one more forward pass, in padded positions: about a millisecond of a core for some fifty small operations,
# whose launches leave an accelerator idle
_PASS_COST = {"cpu": 64, "other": 1 << 15}


def collate_sequences(rows: Sequence[Mapping[str, Sequence[int] | NDArray[np.int32]]]) -> dict[str, torch.Tensor]:
    """Pad `input_ids` and, where there are any, `labels` after their ends to the longest row: `(B, S)` each."""
    padding = {"input_ids": PADDING, "labels": IGNORE_INDEX}
    return {
        key: pad_sequence(
            [torch.as_tensor(row[key], dtype=torch.long) for row in rows], batch_first=True, padding_value=padding[key]
        )
        for key in rows[0]
    }


def length_batches(lengths: Sequence[int], batch_size: int, device: torch.device) -> Iterator[list[int]]:
    """
    Batches of at most `batch_size` rows of similar length, shortest first; each row once. The `device` decides how
    much padding is cheaper than one more batch.
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
    Many sequences of item indices in one array, at four bytes an item.
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
        Start and end `(R,)` of rows of at most `length + 1` items of one sequence. Each item but the first of a
        sequence is a target, that is, has another item before it, in exactly one row.
        """
        targets = np.diff(self.offsets) - 1  # (U,)
        counts = np.maximum(-(-targets // length), 0)
        owners = np.repeat(np.arange(len(counts)), counts)  # (R,)
        numbers = np.arange(len(owners)) - np.repeat(counts.cumsum() - counts, counts)
        starts = self.offsets[owners] + numbers * length
        return starts, np.minimum(starts + length + 1, self.offsets[owners + 1])
