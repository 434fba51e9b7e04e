"""Interactions on disk as they are in memory, so that loading maps the files and reads nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from .columns import Columns


MARKER = "interactions.json"


def save_columns(directory: str | Path, columns: Columns) -> None:
    """Write the columns; `interactions.json`, written last, says how long each is."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / MARKER).unlink(missing_ok=True)
    (directory / "times.npy").unlink(missing_ok=True)
    np.save(directory / "item_codes.npy", columns.item_codes)
    np.save(directory / "offsets.npy", columns.offsets)
    if columns.times is not None:
        np.save(directory / "times.npy", columns.times)
    for name, ids in (("users", columns.users), ("items", columns.items)):
        table = pa.table({name: ids})
        with pa.OSFile(str(directory / f"{name}.arrow"), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
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
    except (OSError, ValueError, KeyError, TypeError, IndexError, pa.ArrowException) as error:
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
