"""Tables of one interaction a row: JSON lines, Parquet files, data sets and data frames."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.json
import pyarrow.parquet
from numpy.typing import NDArray

from .raw_rows import BadRows, JsonPairs, RawRows, Roles, join_texts
from .text_rows import line_numbers, open_bytes


if TYPE_CHECKING:
    import pandas as pd

_BLOCK = 1 << 23  # bytes
_FIRST = 100  # lines that show the names and types of the fields
_STRAY_NULL = re.compile(rb"\}\s*n")
_ARROW = {str: pa.string(), int: pa.int64(), float: pa.float64()}


def read_json_lines(path: Path, roles: Roles, lists: Collection[str] = ()) -> RawRows:
    """
    Read the fields that matter from a file of one JSON object a line.

    Args:
        path (`Path`): The file.
        roles (`Callable`): Chooses, from the names of the first objects' fields, the field of each role.
        lists (`Collection[str]`, *optional*): Roles whose value may be a list of texts, which are joined by spaces.
    """
    bad = BadRows(path.name, "line")
    schema, roles_of, joined = _schema(path, roles, lists)
    tables, skipped, line = [], [np.empty(0, np.int64)], 1
    with open_bytes(path) as file:
        while block := file.read(_BLOCK):
            block += file.readline()
            count = block.count(b"\n") + (not block.endswith(b"\n"))
            table = _parse_block(block, schema, count)
            if table is None:
                table, without = _parse_lines(block.split(b"\n")[:count], line, schema.names, joined, bad)
                skipped.append(without)
            tables.append(table)
            line += count
    # A field that holds whole numbers in one block and text in another is text
    alike = [name for name in schema.names if len({table[name].type for table in tables}) == 1]
    columns = {
        role: pa.chunked_array(
            [chunk if name in alike else chunk.cast(pa.string()) for table in tables for chunk in table[name].chunks],
            tables[0][name].type if tables and name in alike else pa.string(),
        )
        for role, name in roles_of.items()
    }
    merged = pa.table(columns)
    return RawRows(merged, bad, line_numbers(1, len(merged), np.concatenate(skipped)))


def first_fields(path: Path) -> dict[str, Any]:
    """
    Names of the first objects' fields, each with the first value it has that is not null.

    Raises:
        ValueError: If none of the first lines is an object.
    """
    seen: dict[str, Any] = {}
    with open_bytes(path) as file:
        for _ in range(_FIRST):
            line = file.readline()
            try:
                values = json.loads(line)
            except ValueError:
                continue  # counted when the file is read
            if isinstance(values, dict):
                for name, value in values.items():
                    if seen.get(name) is None:
                        seen[name] = value
    if not seen:
        raise ValueError(f"{path.name} does not begin with lines of JSON, one object each, from line 1 on.")
    return seen


def _schema(path: Path, roles: Roles, lists: Collection[str]) -> tuple[pa.Schema, dict[str, str], set[str]]:
    """Names and types of the fields that matter, the field of each role, and the fields that may be lists."""
    seen = first_fields(path)
    roles_of = roles(list(seen))
    joined = {roles_of[role] for role in lists if role in roles_of}
    kinds = {name: _ARROW.get(type(seen[name]), pa.string()) for name in roles_of.values()}
    kinds |= {name: pa.list_(pa.string()) for name in joined if isinstance(seen[name], list)}
    return pa.schema(list(kinds.items())), roles_of, joined


def _parse_block(block: bytes, schema: pa.Schema, count: int) -> pa.Table | None:
    """The rows of a block, or `None` if some line is not one object of the expected types."""
    # A null that is not the value of a field crashes pyarrow 26 and the whole process
    objects = block.startswith(b"{") and block.count(b"\n{") == count - 1 and not _STRAY_NULL.search(block)
    if not objects:
        return None
    try:
        table = pyarrow.json.read_json(
            io.BytesIO(block),
            pyarrow.json.ReadOptions(use_threads=False, block_size=len(block)),
            pyarrow.json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore"),
        )
        table.validate(full=True)  # strings are UTF-8
        for name in (name for name in schema.names if pa.types.is_list(schema.field(name).type)):
            joined = pa.array(map(join_texts, table[name].to_pylist()), pa.string())
            table = table.set_column(table.column_names.index(name), name, joined)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, UnicodeDecodeError):
        return None
    return table if len(table) == count else None


def _parse_lines(
    lines: list[bytes], first: int, names: list[str], joined: Collection[str], bad: BadRows
) -> tuple[pa.Table, NDArray[np.int64]]:
    """The good rows of lines with a bad one among them, as text, and the numbers of the other lines."""
    rows: dict[str, list[str | None]] = {name: [] for name in names}
    skipped = []
    for number, line in enumerate(lines, start=first):
        if not line.strip():
            skipped.append(number)
            continue
        try:
            values = _fields(line, names, joined)
        except ValueError as error:
            bad.add(str(error) if type(error) is ValueError else _kind(error), [number])
            skipped.append(number)
            continue
        for name in names:
            rows[name].append(values[name])
    return pa.table({name: pa.array(rows[name], pa.string()) for name in names}), np.array(skipped, dtype=np.int64)


def _kind(error: ValueError) -> str:
    return "not UTF-8" if isinstance(error, UnicodeError) else "not JSON"


def _fields(line: bytes, names: list[str], joined: Collection[str]) -> dict[str, str | None]:
    pairs = json.loads(
        line.decode("utf-8", "surrogateescape"), object_pairs_hook=JsonPairs, parse_constant=_refuse_constant
    )
    if not isinstance(pairs, JsonPairs):
        raise ValueError("that are no JSON objects")
    values: dict[str, str | None] = dict.fromkeys(names)
    found = [name for name, _ in pairs if name in values]
    if len(found) > len(set(found)):
        raise ValueError("with a field given twice")
    for name, value in pairs:
        if name in values and value is not None:
            value = join_texts(value) if name in joined else value
            if isinstance(value, bool) or not isinstance(value, str | int | float):
                raise ValueError(f"whose {name} is neither text nor a number")
            values[name] = str(value)
            str(value).encode("utf-8")  # fails for a stray byte or half a surrogate pair
    return values


def _refuse_constant(name: str) -> float:
    raise json.JSONDecodeError(f"{name} is not JSON", name, 0)


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
            # Values of several types: text and whole numbers may be mixed, nothing else can be an id
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
