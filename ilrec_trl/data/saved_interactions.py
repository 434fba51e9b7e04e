"""Interactions on disk as they are in memory, so that loading maps the files and reads nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa

from .columns import Columns


MARKER = "interactions.json"


def save_columns(directory: str | Path, columns: Columns) -> None:
    """Write the columns; `interactions.json`, written last, says how long each is."""
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


@contextmanager
def _replaced(path: Path) -> Iterator[BinaryIO]:
    """A new file in the place of one that may be mapped into memory, which overwriting would pull from under."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        yield file
    partial.replace(path)


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
        raise ValueError(f"{directory} does not hold whole saved interactions ({error}); save them again.") from error
    if not whole:
        raise ValueError(f"The files of {directory} do not fit together; save the interactions again.")
    return columns


def _lengths(columns: Columns) -> dict[str, Any]:
    sizes = {"users": len(columns.users), "items": len(columns.items), "interactions": len(columns.item_codes)}
    return {**sizes, "timed": columns.times is not None}


def _ids(path: Path) -> pa.StringArray:
    column = pa.ipc.open_file(pa.memory_map(str(path))).read_all().column(0)
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
