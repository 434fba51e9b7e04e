"""Titles of items, read from files and tables."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pyarrow.types

from ..data.raw_rows import BadRows, RawRows, bare_names, choose_columns, join_texts
from ..data.table_rows import first_fields, read_json_lines, read_parquet, read_table
from ..data.text_rows import open_bytes, read_delimited, read_header
from .semantic_id_files import find_json
from .titles import clean_title


if TYPE_CHECKING:
    import pandas as pd
    from datasets import Dataset

# Files by which titles of RecBole and MovieLens are known in a folder
_TITLE_FILES = ("*.item", "movies.dat", "movies.csv")
_WITHOUT_HEADER = {"movies.dat": ["item", "title", "genres"], "u.item": ["item", "title", *map(str, range(22))]}
_DELIMITERS = {"movies.dat": "::", "u.item": "|", ".item": "\t", ".tsv": "\t", ".csv": ","}  # by name, then by ending
# Usual names of the columns; the first that a source has counts
_COLUMNS = {
    "item": ("item", "item_id", "itemId", "parent_asin", "asin", "movieId", "id"),
    "title": ("title", "movie_title", "item_name", "name"),
    "brand": ("brand", "store"),
}


@dataclass
class ItemTitles:
    """
    What [`read_titles`] found.

    Args:
        titles (`dict[str, str]`): Cleaned title of each item, for [`ItemCatalog.from_titles`].
        brands (`dict[str, str]`): Brand of each item that has one, for [`ItemCatalog.with_distinct_titles`].
        bad_rows (`BadRows`): What was left out with `bad_rows="drop"`.
        fields (`dict[str, dict[str, str]]`): `{item: {field: text}}` of the further fields that were asked for.
    """

    titles: dict[str, str]
    brands: dict[str, str]
    bad_rows: BadRows
    fields: dict[str, dict[str, str]] = field(default_factory=dict)


def read_titles(
    source: str | Path | pd.DataFrame | Dataset | pa.Table,
    *,
    items: Collection[str] | None = None,
    columns: Mapping[str, str] | None = None,
    fields: Iterable[str] = (),
    bad_rows: str = "raise",
) -> ItemTitles:
    """
    Read titles of items from a file, by its name, or from a table in memory.

    | name | what it is |
    | --- | --- |
    | `*.jsonl`, `*.json` | one JSON object a line, such as Amazon's metadata of 2018 (asin, title, brand) and 2023 |
    | `*.item` | RecBole's atomic file, whose header gives types (`item_id:token`); or MovieLens' `u.item` |
    | `movies.dat`, `movies.csv` | MovieLens |
    | `*.csv`, `*.tsv`, `*.parquet` | tables with a header |

    Text files may be gzipped (`.gz`). They are UTF-8, MovieLens' `.dat` and `u.item` Latin-1.

    Args:
        source (`str`, `Path`, `pandas.DataFrame`, [`datasets.Dataset`] or `pyarrow.Table`): What to read.
        items (`Collection[str]`, *optional*): The items of the data, such as `interactions.items`. Rows of other items
            are skipped, and an item without a row is refused.
        columns (`Mapping[str, str]`, *optional*): Names of the columns `"item"`, `"title"` and `"brand"`. Needed where
            they differ from the usual: item, item_id, itemId, parent_asin, asin, movieId, id; title, movie_title,
            item_name, name; brand, store.
        fields (`Iterable[str]`, *optional*): Names of further columns to read, such as RecBole's `class` or Amazon's
            `categories`. Values are texts, or lists of texts, which are joined by spaces.
        bad_rows (`str`, *optional*, defaults to `"raise"`): `"raise"` refuses rows without an item or a title, of a
            wrong type or format, or with another title than an earlier row of the item. `"drop"` leaves them out, logs
            how many there are of each kind, and keeps their line numbers in `bad_rows` of the result.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: For bad rows, with their number by kind and the first line numbers of each; a missing column; items
            without a title, by name; a file of another format.
    """
    further = [name for name in fields if name not in _COLUMNS]
    same: dict[str, str] = {}
    rows = _read(source, dict(columns or {}), further, same)
    texts = {role: _texts(rows.table[role], role in further) for role in rows.table.column_names}
    texts |= {name: texts[role] for name, role in same.items()}
    wanted = None if items is None else {str(item) for item in items}
    found = ItemTitles({}, {}, rows.bad)
    problems: dict[str, list[int]] = {}
    others = zip(*(texts[name] for name in further), strict=True) if further else repeat(())
    for place, (item, title, brand, values) in enumerate(
        zip(texts["item"], texts["title"], texts.get("brand") or repeat(None), others, strict=False)
    ):
        if wanted is not None and isinstance(item, str) and item not in wanted:
            continue
        problem = _add(found, item, title, brand, dict(zip(further, values, strict=True)))
        if problem is not None:
            problems.setdefault(problem, []).append(place)
    for problem, places in problems.items():
        rows.bad.add(problem, rows.label(np.array(places)))
    rows.bad.settle(bad_rows)
    if missing := sorted((wanted or set()) - found.titles.keys()):
        raise ValueError(
            f"{rows.bad.source} has no title for {len(missing):,} of {len(wanted or ()):,} items: {missing[:5]}. "
            "Leave them out of the interactions, `interactions.filter(items=...)`, or give them a title."
        )
    if not found.titles:
        raise ValueError(f"{rows.bad.source} holds no title.")
    return found


def is_table(path: Path) -> bool:
    """Whether [`read_titles`] reads the file: a table, or JSON lines and not one object with item ids as keys."""
    name, ending = _name_and_ending(path)
    if ending != ".json":
        return name in _WITHOUT_HEADER or ending in (*_DELIMITERS, ".jsonl", ".parquet")
    with open_bytes(path) as file:
        first, more = file.readline(), file.read(1 << 16).strip()
    try:
        return bool(more) and isinstance(json.loads(first), dict)
    except ValueError:
        return False  # one object over several lines


def read_columns(path: Path) -> list[str]:
    """Names of the columns of a table, without RecBole's types."""
    name, ending = _name_and_ending(path)
    if name in _WITHOUT_HEADER:
        return _WITHOUT_HEADER[name]
    if ending in (".json", ".jsonl"):
        return list(first_fields(path))
    if ending == ".parquet":
        return list(pyarrow.parquet.read_schema(path).names)
    return [name.split(":")[0] for name in read_header(path, _DELIMITERS[ending])]


def find_title_file(folder: str | Path) -> Path | None:
    """
    RecBole's or MovieLens' titles in a folder that has no `item.json`; `None` where there are none.

    Raises:
        ValueError: where there are several.
    """
    if find_json(folder, "item.json") is not None:
        return None
    found = sorted({path for name in _TITLE_FILES for end in ("", ".gz") for path in Path(folder).glob(name + end)})
    if len(found) > 1:
        raise ValueError(f"{folder} holds several files of titles, {[path.name for path in found]}; name one of them.")
    return found[0] if found else None


def _add(found: ItemTitles, item: Any, title: Any, brand: Any, others: dict[str, Any]) -> str | None:
    """Add one row to what was found, or return what is wrong with it."""
    for role, value in ({"item": item, "title": title, "brand": brand} | others).items():
        if not isinstance(value, str | None):
            return f"whose {role} is {value.problem}"
    if not item or item.isspace():
        return "without an item"
    title = clean_title(title or "")
    if not title:
        return "without a title"
    if found.titles.setdefault(item, title) != title:
        return "that give an item another title than a row before"
    if brand and (brand := clean_title(brand)):
        found.brands.setdefault(item, brand)
    if others := {name: text for name, value in others.items() if value and (text := clean_title(value))}:
        found.fields.setdefault(item, others)
    return None


@dataclass(frozen=True)
class _Unreadable:
    """Stands for a value that is no text."""

    problem: str


def _texts(column: pa.ChunkedArray, further: bool) -> list[str | None | _Unreadable]:
    """Values as text. Whole numbers become text; in further columns all numbers do, and lists of texts are joined."""
    values = column.to_pylist()
    if further:
        values = [str(value) if type(value) in (int, float) else join_texts(value) for value in values]
    if pa.types.is_integer(column.type):
        return [None if value is None else str(value) for value in values]
    if pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type):
        return [_decode(value) for value in values]
    wrong = _Unreadable("of a wrong type")
    return [value if isinstance(value, str | None) else wrong for value in values]


def _decode(value: bytes | None) -> str | None | _Unreadable:
    try:
        return None if value is None else value.decode()
    except UnicodeDecodeError:
        return _Unreadable("not UTF-8")


def _read(source: Any, columns: dict[str, str], further: list[str], same: dict[str, str]) -> RawRows:
    """
    Rows with the columns `item`, `title`, `brand` if there is one, and the further ones. A further column that has a
    role already is not read twice: `same` gets its name and that role.
    """

    def roles(names: list[str]) -> dict[str, str]:
        hints = dict.fromkeys(_COLUMNS, " or --items_columns")
        chosen = choose_columns(names, columns, _COLUMNS, ("item", "title"), ("brand",), hints)
        bare = bare_names(names)
        if missing := [name for name in further if name not in bare]:
            raise ValueError(f"No column {missing[0]!r} among {names}; name columns that there are as `fields`.")
        for name in further:
            known = [role for role, column in chosen.items() if column == bare[name]]
            if known:
                same[name] = known[0]
            else:
                chosen[name] = bare[name]
        return chosen

    if not isinstance(source, str | Path):
        return read_table(source, roles)
    path = Path(source)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    name, ending = _name_and_ending(path)
    if name in _WITHOUT_HEADER:
        return read_delimited(path, _DELIMITERS[name], roles, _WITHOUT_HEADER[name], "latin-1")
    if ending in _DELIMITERS:
        return read_delimited(path, _DELIMITERS[ending], roles)
    if ending in (".jsonl", ".json"):
        return read_json_lines(path, roles, further)
    if ending == ".parquet":
        return read_parquet([path], roles)
    raise ValueError(
        f"{path} has no ending that is known: expected .jsonl, .json, .item, .csv, .tsv, .parquet or movies.dat."
    )


def _name_and_ending(path: Path) -> tuple[str, str]:
    name = path.name.removesuffix(".gz")
    return name, Path(name).suffix
