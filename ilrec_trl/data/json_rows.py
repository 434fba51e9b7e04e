"""Files of one JSON object a line; every row keeps its line number."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.json
from numpy.typing import NDArray

from .bad_rows import BadRows
from .raw_rows import RawRows, join_texts
from .text_rows import Roles, line_numbers, open_bytes


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
    # A field of whole numbers here and of text there is text.
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
    """The rows of a block, or `None` where not every one of its lines is one object of the expected types."""
    # A null that is no field's value crashes pyarrow 26's reader, together with the whole process.
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
    """The good rows of lines among which one is bad, as text, and the numbers of those that are no rows."""
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
        line.decode("utf-8", "surrogateescape"), object_pairs_hook=_Pairs, parse_constant=_refuse_constant
    )
    if not isinstance(pairs, _Pairs):
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
            str(value).encode("utf-8")  # neither a stray byte nor half a surrogate pair is text
    return values


class _Pairs(list[tuple[str, Any]]):
    """Fields of an object, repeated ones included."""


def _refuse_constant(name: str) -> float:
    raise json.JSONDecodeError(f"{name} is not JSON", name, 0)
