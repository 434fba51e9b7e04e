"""Interactions as columns, in memory and as mapped files: users, items, and one item code for each interaction."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray


MARKER = "interactions.json"  # the file by which a folder of saved interactions is known


@dataclass(frozen=True, eq=False)
class Columns:
    """
    N interactions of U users with I items, sorted by user and, for each user, by time.

    Attributes:
        users (`pa.StringArray` of length U): Distinct ids of users with at least one interaction.
        items (`pa.StringArray` of length I): Distinct ids of items with at least one interaction, sorted.
        item_codes (`np.ndarray` of shape `(N,)` and dtype int32): Place in `items` of the item of each interaction.
        offsets (`np.ndarray` of shape `(U + 1,)` and dtype int64): The interactions of user `u` are those from
            `offsets[u]` up to `offsets[u + 1]`.
        times (`np.ndarray` of shape `(N,)` and dtype float64, or `None`): Times, non-decreasing within a user.
    """

    users: pa.StringArray
    items: pa.StringArray
    item_codes: NDArray[np.int32]
    offsets: NDArray[np.int64]
    times: NDArray[np.float64] | None

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Columns):
            return NotImplemented
        mine, theirs = self.times, other.times
        return (
            (mine is theirs if mine is None or theirs is None else np.array_equal(mine, theirs))
            and self.users.equals(other.users)
            and self.items.equals(other.items)
            and np.array_equal(self.offsets, other.offsets)
            and np.array_equal(self.item_codes, other.item_codes)
        )

    @cached_property
    def names(self) -> NDArray[np.object_]:
        """Item ids `(I,)` as Python strings, made once for all lists that share them."""
        names = np.empty(len(self.items), dtype=object)
        names[:] = self.items.to_pylist()
        return names

    def item_list(self, start: int, end: int) -> list[str]:
        """Item ids of the interactions from `start` up to `end`."""
        return self.names[self.item_codes[start:end]].tolist()  # type: ignore[no-any-return]

    def user_rows(self) -> NDArray[np.int32]:
        """Row `(N,)` of the user of each interaction."""
        return np.repeat(np.arange(len(self.users), dtype=np.int32), np.diff(self.offsets))

    def row_of(self, position: Any) -> Any:
        """Row of the user of one interaction, or of each of several."""
        return np.searchsorted(self.offsets, position, side="right") - 1

    def select(self, keep: NDArray[np.int64]) -> Columns:
        """The interactions at ascending positions, without users and items that have none left."""
        rows, codes = self.user_rows()[keep], self.item_codes[keep]
        lengths = np.bincount(rows, minlength=len(self.users))  # (U,)
        used = np.bincount(codes, minlength=len(self.items)) > 0  # (I,)
        return Columns(
            self.users.filter(pa.array(lengths > 0)),
            self.items.filter(pa.array(used)),
            (np.cumsum(used, dtype=np.int32) - 1)[codes].astype(np.int32),
            offsets_of(lengths[lengths > 0]),
            None if self.times is None else self.times[keep],
        )


def save_columns(directory: str | Path, columns: Columns) -> None:
    """Write the columns, and at last `interactions.json` with their lengths."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / MARKER).unlink(missing_ok=True)
    times = np.empty(0) if columns.times is None else columns.times
    for name, values in (("item_codes", columns.item_codes), ("offsets", columns.offsets), ("times", times)):
        with _replaced(directory / f"{name}.npy") as file:
            np.save(file, values)
    for name, ids in (("users", columns.users), ("items", columns.items)):
        table = pa.table({name: ids})
        with _replaced(directory / f"{name}.arrow") as file, pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)
    (directory / MARKER).write_text(json.dumps({"format": 1, **_lengths(columns)}, indent=2) + "\n")


def load_columns(directory: Path) -> Columns:
    """Map what [`save_columns`] wrote into memory."""
    try:
        about = json.loads((directory / MARKER).read_text())
        timed = about["timed"]
        columns = Columns(
            _ids(directory / "users.arrow"),
            _ids(directory / "items.arrow"),
            np.load(directory / "item_codes.npy", mmap_mode="r"),
            np.load(directory / "offsets.npy", mmap_mode="r"),
            np.load(directory / "times.npy", mmap_mode="r") if timed else None,
        )
        whole = {"format": 1, **_lengths(columns)} == about and columns.offsets[-1] == len(columns.item_codes)
        whole &= len(columns.offsets) == len(columns.users) + 1
    except (OSError, EOFError, ValueError, KeyError, TypeError, IndexError, pa.ArrowException) as error:
        raise ValueError(f"{directory} holds no complete saved interactions ({error}); save them again.") from error
    if not whole:
        raise ValueError(f"The files of {directory} do not fit together; save the interactions again.")
    return columns


def check_order(users: pa.Array, offsets: NDArray[np.int64], times: NDArray[np.float64] | None) -> None:
    """Refuse repeated users, and times that decrease within a user."""
    if len(users.unique()) < len(users):
        repeated = Counter(users.to_pylist()).most_common(1)[0][0]
        raise ValueError(f"User {repeated!r} appears more than once; merge that user's items into one sequence.")
    if times is not None and len(times):
        starts = np.zeros(len(times), dtype=bool)
        starts[offsets[:-1]] = True
        # `not <=` instead of `>`, so that a NaN is refused too
        fallen = np.flatnonzero(~(times[:-1] <= times[1:]) & ~starts[1:]) + 1
        if np.isnan(times).any():
            fallen = np.flatnonzero(np.isnan(times))
        if len(fallen):
            user = users[int(np.searchsorted(offsets, fallen[0], side="right")) - 1].as_py()
            raise ValueError(f"Times of user {user!r} are not in order; sort the user's items by time first.")


def id_column(values: Sequence[Any], what: str) -> pa.StringArray:
    """Ids as strings. Whole numbers become strings; everything else is refused."""
    types = set(map(type, values))
    if types <= {str}:
        try:
            return pa.array(values, pa.string())
        except UnicodeEncodeError as error:
            raise ValueError(f"{what} {error.object!r} is not valid UTF-8; correct it.") from error
    wrong = [kind for kind in types if not issubclass(kind, str | int | np.integer) or kind is bool]
    if wrong:
        first = next(value for value in values if type(value) in wrong)
        raise ValueError(f"Got the {what} {first!r}; expected ids that are text or whole numbers; convert it first.")
    return pa.array(list(map(str, values)), pa.string())


def encode(ids: pa.Array | pa.ChunkedArray) -> tuple[pa.Array, NDArray[np.int32]]:
    """Distinct ids by first appearance, and the place `(N,)` of each id among them; -1 for a null."""
    whole = pa.chunked_array([ids]) if isinstance(ids, pa.Array) else ids
    if not len(whole):
        return pa.array([], whole.type), np.empty(0, dtype=np.int32)
    if pa.types.is_dictionary(whole.type):
        encoded = whole.unify_dictionaries()
    else:
        encoded = whole.dictionary_encode()
    # All chunks share one table of ids, so the last chunk's dictionary is complete
    indices = pa.concat_arrays([chunk.indices for chunk in encoded.chunks])
    return encoded.chunks[-1].dictionary, indices.fill_null(-1).to_numpy().astype(np.int32, copy=False)


def sorted_codes(ids: pa.Array) -> tuple[pa.StringArray, NDArray[np.int32]]:
    """Distinct ids `(I,)`, sorted, and the place `(N,)` of each id among them."""
    distinct, codes = encode(ids)
    order = pc.array_sort_indices(distinct)
    return distinct.take(order), places_of(order.to_numpy())[codes]


def places_of(chosen: NDArray[Any], size: int | None = None) -> NDArray[np.int32]:
    """Place in `chosen` of each number below `size`, -1 for others. By default the inverse of a permutation."""
    places = np.full(len(chosen) if size is None else size, -1, dtype=np.int32)
    places[chosen] = np.arange(len(chosen), dtype=np.int32)
    return places


def offsets_of(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Start of each run of the given lengths, one run after another, and the end of the last one."""
    return np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths, dtype=np.int64)])


@contextmanager
def _replaced(path: Path) -> Iterator[BinaryIO]:
    """Open a new file that replaces the old one at the end: the old one may be mapped into memory."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        yield file
    partial.replace(path)


def _lengths(columns: Columns) -> dict[str, Any]:
    sizes = {"users": len(columns.users), "items": len(columns.items), "interactions": len(columns.item_codes)}
    return {**sizes, "timed": columns.times is not None}


def _ids(path: Path) -> pa.StringArray:
    column = pa.ipc.open_file(pa.memory_map(str(path))).read_all().column(0)
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
