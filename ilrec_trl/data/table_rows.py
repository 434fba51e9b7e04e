"""Tables of one interaction a row: Parquet files, data sets, data frames."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from .bad_rows import BadRows
from .raw_rows import RawRows
from .text_rows import Roles


if TYPE_CHECKING:
    import pandas as pd


def read_parquet(paths: list[Path], roles: Roles) -> RawRows:
    """Read the columns that matter from Parquet files of the same columns, one after another."""
    name = paths[0].name if len(paths) == 1 else paths[0].parent.name
    try:
        names = pyarrow.parquet.read_schema(paths[0]).names
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{paths[0].name} is no Parquet file that can be read: {error}") from error
    chosen = roles(names)
    try:
        wanted = list(chosen.values())
        table = pa.concat_tables(pyarrow.parquet.read_table(path, columns=wanted, partitioning=None) for path in paths)
    except (pa.ArrowException, OSError, KeyError) as error:
        raise ValueError(f"{name} cannot be read as Parquet files of the columns {wanted}: {error}") from error
    return RawRows(_renamed(table, chosen), BadRows(name))


def read_hub(name: str, roles: Roles, split: str) -> RawRows:
    """Read a split of a data set that `datasets.load_dataset` finds."""
    from datasets import load_dataset

    rows = read_table(load_dataset(name, split=split), roles)
    rows.bad.source = name
    return rows


def read_table(source: Any, roles: Roles) -> RawRows:
    """Read a `pyarrow.Table`, a `datasets.Dataset` or a `pandas.DataFrame`."""
    if isinstance(source, pa.Table):
        chosen = roles(source.column_names)
        return RawRows(_renamed(source, chosen), BadRows("the table"))
    if hasattr(source, "with_format"):
        chosen = roles(source.column_names)
        table = source.select_columns(list(set(chosen.values()))).with_format("arrow")[:]
        return RawRows(_renamed(table, chosen), BadRows("the data set"))
    if hasattr(source, "to_parquet"):
        return _read_frame(source, roles(list(source.columns)))
    raise ValueError(
        f"Got a {type(source).__name__}; expected a path, a pandas.DataFrame, a datasets.Dataset or a pyarrow.Table."
    )


def _renamed(table: pa.Table, roles: dict[str, str]) -> pa.Table:
    return pa.table({role: table[name] for role, name in roles.items()})


def _read_frame(frame: pd.DataFrame, roles: dict[str, str]) -> RawRows:
    bad, good = BadRows("the table"), np.ones(len(frame), dtype=bool)
    columns = {}
    for role, name in roles.items():
        try:
            columns[role] = pa.array(frame[name], from_pandas=True)
        except (pa.ArrowException, UnicodeEncodeError, OverflowError):
            # Of several types: text and whole numbers may be mixed, other things have no place among ids.
            fits = (str, int) if role in ("user", "item") else (str, int, float)
            values, missing = frame[name].tolist(), frame[name].isna().to_numpy()
            wrong = ~missing & [not isinstance(value, fits) or isinstance(value, bool) for value in values]
            bad.add(f"whose {role} is of a wrong type", np.flatnonzero(wrong & good))
            good &= ~wrong
            columns[role] = pa.array(
                [None if skip else str(value) for skip, value in zip(missing | wrong, values, strict=True)],
                pa.string(),
            )
    kept = np.flatnonzero(good)
    return RawRows(pa.table(columns).filter(pa.array(good)), bad, lambda places: kept[places])
