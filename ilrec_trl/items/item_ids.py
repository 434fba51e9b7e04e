"""Ids of a catalogue's items in trie order, and the item index of each id."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias, overload

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ..data.columns import places_of


ItemId: TypeAlias = str | int

_CHUNK = 100_000  # strings turned into Python objects at once


class ItemIds(Sequence[ItemId]):
    """
    Item ids in trie order.

    A list is searched with a dict, which is made at the first look-up. An array of numbers or strings is searched by
    bisection, so that ten million ids take 8 to 20 bytes each, and 4 more for the search.

    Args:
        values (`list[str | int]` or `np.ndarray` of shape `(I,)`): Distinct ids.
        order (`np.ndarray` of shape `(I,)`, *optional*): Indices that sort `values`, if they are known.
    """

    def __init__(self, values: list[ItemId] | NDArray[Any], order: NDArray[np.int32] | None = None) -> None:
        self.values = values
        self._order = order
        self._index_of: dict[ItemId, int] | None = None
        if isinstance(values, list):
            distinct = len(set(values)) == len(values)
        elif order is None:
            self._order = np.argsort(values).astype(np.int32)
            distinct = not _any_equal_neighbours(values, self._order)
        else:
            distinct = True
        if not distinct:
            raise ValueError("Item ids must be distinct: each names one item of the catalogue.")

    @classmethod
    def from_source(cls, item_ids: range | Sequence[ItemId] | NDArray[Any], rows: NDArray[np.int64]) -> ItemIds:
        """The ids that stand at `rows` `(I,)` of the caller's own order."""
        if isinstance(item_ids, range):
            order = places_of(rows)
            if item_ids.step < 0:
                order = order[::-1].copy()
            # A range that fits 32 bits takes half the memory
            ends = sorted((item_ids[0], item_ids[-1]))
            small = -(2**31) <= ends[0] and ends[1] < 2**31
            values: NDArray[Any] = rows * item_ids.step + item_ids.start
            return cls(values.astype(np.int32) if small else values, order)
        array = np.asarray(item_ids)
        if array.ndim != 1 or array.dtype.kind not in "iuUT":
            raise TypeError(
                f"Got item ids of type {array.dtype} and shape {array.shape}, expected a range, or one dimension of "
                "integers or of strings."
            )
        if array.dtype.kind == "U":
            array = array.astype(np.dtypes.StringDType())
        return cls(array[rows])

    def __len__(self) -> int:
        return len(self.values)

    @overload
    def __getitem__(self, index: int) -> ItemId: ...
    @overload
    def __getitem__(self, index: slice) -> list[ItemId]: ...
    def __getitem__(self, index: int | slice) -> ItemId | list[ItemId]:
        found = self.values[index]
        if isinstance(found, np.ndarray):
            return found.tolist()
        return found.item() if isinstance(found, np.generic) else found

    def __iter__(self) -> Iterator[ItemId]:
        for start in range(0, len(self), _CHUNK):
            yield from self[start : start + _CHUNK]

    def __eq__(self, other: object) -> bool:
        if isinstance(other, ItemIds):
            other = other.values
        if isinstance(other, (list, np.ndarray)):
            return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))
        return NotImplemented

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"ItemIds({len(self)} ids, e.g. {self[0]!r})"

    def indices(self, item_ids: Sequence[ItemId]) -> NDArray[np.int64]:
        """Item index `(N,)` of each id; -1 for an unknown id."""
        if isinstance(self.values, list):
            if self._index_of is None:
                self._index_of = {item_id: item_index for item_index, item_id in enumerate(self.values)}
            index_of = self._index_of
            return np.fromiter((index_of.get(item_id, -1) for item_id in item_ids), np.int64, len(item_ids))
        assert self._order is not None
        found = np.full(len(item_ids), -1, dtype=np.int64)
        kind: Any = str if self.values.dtype.kind == "T" else (int, np.integer)
        asked = item_ids if isinstance(item_ids, np.ndarray) else np.array(item_ids, dtype=object)
        places = np.flatnonzero([isinstance(item_id, kind) for item_id in asked])
        if len(places):
            queries = np.array(asked[places].tolist(), dtype=self.values.dtype if kind is str else np.int64)
            nearest = self._order[_first_not_below(self.values, self._order, queries)]
            found[places] = np.where(self.values[nearest] == queries, nearest, -1)
        return found

    def arrays(self) -> dict[str, NDArray[Any]]:
        """An array of ids as arrays of numbers, to be saved. Strings become their bytes and the end of each string."""
        assert isinstance(self.values, np.ndarray)
        assert self._order is not None
        if self.values.dtype.kind != "T":
            return {"item_ids": self.values, "item_id_order": self._order}
        encoded = [item_id.encode() for item_id in self]  # type: ignore[union-attr]
        ends = np.fromiter(map(len, encoded), np.int64, len(encoded)).cumsum()
        content = np.frombuffer(b"".join(encoded), dtype=np.uint8)
        return {"item_id_bytes": content, "item_id_ends": ends, "item_id_order": self._order}

    @classmethod
    def from_arrays(cls, arrays: dict[str, NDArray[Any]]) -> ItemIds:
        """Read what [`ItemIds.arrays`] gave."""
        if "item_ids" in arrays:
            return cls(arrays["item_ids"], arrays["item_id_order"])
        offsets = np.concatenate([[0], arrays["item_id_ends"]])
        buffers = pa.py_buffer(offsets), pa.py_buffer(arrays["item_id_bytes"])
        strings = pa.LargeStringArray.from_buffers(len(offsets) - 1, *buffers)
        values = np.empty(len(strings), dtype=np.dtypes.StringDType())
        for start in range(0, len(strings), _CHUNK):
            values[start : start + _CHUNK] = strings.slice(start, _CHUNK).to_pylist()
        return cls(values, arrays["item_id_order"])


def _first_not_below(values: NDArray[Any], order: NDArray[np.int32], queries: NDArray[Any]) -> NDArray[np.int64]:
    """
    Place in `order` of the first value that is not below each query, or the last place. `np.searchsorted` would do
    the same, but it fails on strings of more than 15 bytes (numpy 2.4).
    """
    low, high = np.zeros(len(queries), dtype=np.int64), np.full(len(queries), len(values) - 1)
    while (open_ := low < high).any():
        middle = (low + high) // 2
        below = values[order[middle]] < queries
        low, high = np.where(open_ & below, middle + 1, low), np.where(open_ & ~below, middle, high)
    return low


def _any_equal_neighbours(values: NDArray[Any], order: NDArray[np.int32]) -> bool:
    """Whether two ids are equal. It is found chunk by chunk, without a sorted copy of all."""
    for start in range(0, len(values), _CHUNK):
        chunk = values[order[start : start + _CHUNK + 1]]
        if bool((chunk[1:] == chunk[:-1]).any()):
            return True
    return False
