"""Vectors of histories that come again: in every epoch, or twice in a batch."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence

import torch
from torch import Tensor


# Bytes of a key beside its ids: the `bytes` object, its place, and their share of a dict that is two thirds full.
_KEY_BYTES = 33 + 32 + 104


class VectorCache:
    """
    The vectors of the histories that came first, as many as a bound has room for.

    Nothing is replaced: an epoch asks for every history once, in another order each time, so that no rule of
    replacement could find more of them than the share that there is room for.

    Args:
        compute (`Callable[[list[list[int]]], torch.Tensor]`):
            Gives the vectors `(M, H)` of some histories of input ids.
        width (`int`):
            Numbers in a vector, in float32.
        length (`int`):
            Ids in the longest history.
        mib (`float`):
            Bound in MiB, of vectors and keys together; 0 keeps nothing.
    """

    def __init__(self, compute: Callable[[list[Sequence[int]]], Tensor], width: int, length: int, mib: float) -> None:
        if not mib >= 0:
            raise ValueError(f"Got cache_mib={mib}; expected 0, which keeps nothing, or more.")
        self.compute = compute
        self.room = int(mib * 2**20 / (4 * width + 4 * length + _KEY_BYTES))
        self.places: dict[bytes, int] = {}
        self.vectors: Tensor | None = None  # (room, H), made when there is a first vector to keep

    def __call__(self, input_ids: Sequence[Sequence[int]]) -> Tensor:
        """Vectors `(B, H)` of histories; each distinct one that is not kept is computed once."""
        keys = [array("i", ids).tobytes() for ids in input_ids]
        known = [row for row, key in enumerate(keys) if key in self.places]
        others = [row for row, key in enumerate(keys) if key not in self.places]
        new = {keys[row]: row for row in others}
        if not others:
            return self._kept(keys)
        numbers = {key: number for number, key in enumerate(new)}
        computed = self.compute([input_ids[row] for row in new.values()])  # (M, H)
        vectors = computed[index(computed, [numbers[keys[row]] for row in others])]
        if known:
            both = torch.cat([self._kept([keys[row] for row in known]), vectors])
            order = sorted(range(len(keys)), key=(known + others).__getitem__)
            vectors = both[index(both, order)]  # (B, H)
        self._keep(list(new), computed)
        return vectors

    def _kept(self, keys: Sequence[bytes]) -> Tensor:
        assert self.vectors is not None
        return self.vectors[index(self.vectors, [self.places[key] for key in keys])]

    def _keep(self, keys: Sequence[bytes], vectors: Tensor) -> None:
        start = len(self.places)
        keys = keys[: self.room - start]
        if not keys:
            return
        if self.vectors is None:
            self.vectors = vectors.new_empty(self.room, vectors.size(1))
        self.vectors[start : start + len(keys)] = vectors[: len(keys)]
        self.places.update(zip(keys, range(start, start + len(keys)), strict=True))


def index(like: Tensor, rows: Sequence[int]) -> Tensor:
    """Row numbers on the device of `like`, without a wait for what that device is still busy with."""
    return torch.tensor(rows, dtype=torch.long).to(like.device, non_blocking=True)
