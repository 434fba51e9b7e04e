"""Files that hold titles or semantic IDs of items."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .titles import clean_title


if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa
    from datasets import Dataset

    from ..data.bad_rows import BadRows
    from ..data.raw_rows import RawRows

# Where nothing else is said, the first of these names that a source has.
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
    """

    titles: dict[str, str]
    brands: dict[str, str]
    bad_rows: BadRows


def read_titles(
    source: str | Path | pd.DataFrame | Dataset | pa.Table,
    *,
    items: Collection[str] | None = None,
    columns: Mapping[str, str] | None = None,
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
        source (`str`, `Path`, `pandas.DataFrame`, [`datasets.Dataset`] or `pyarrow.Table`):
            What to read.
        items (`Collection[str]`, *optional*):
            The items there are, such as `interactions.items`. Rows of others are passed over, and an item without a
            row is refused.
        columns (`Mapping[str, str]`, *optional*):
            Names of the columns `"item"`, `"title"` and `"brand"`, those that differ from the usual: item, item_id,
            itemId, parent_asin, asin, movieId, id; title, movie_title, item_name, name; brand, store.
        bad_rows (`str`, *optional*, defaults to `"raise"`):
            `"raise"` stops at rows that lack an item or a title, hold a wrong type, are no line of the format, or give
            an item a second, other title. `"drop"` goes on without them, logs how many of each kind there were, and
            keeps their line numbers in `bad_rows` of the result.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: For bad rows, with their number by kind and the first line numbers of each; a missing column; items
            without a title, by name; a file of another format.
    """
    rows = _read(source, dict(columns or {}))
    texts = {role: _texts(rows.table[role]) for role in rows.table.column_names}
    wanted = None if items is None else {str(item) for item in items}
    found = ItemTitles({}, {}, rows.bad)
    problems: dict[str, list[int]] = {}
    for place, (item, title, brand) in enumerate(
        zip(texts["item"], texts["title"], texts.get("brand") or repeat(None), strict=False)
    ):
        if wanted is not None and isinstance(item, str) and item not in wanted:
            continue
        problem = _add(found, item, title, brand)
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


def _add(found: ItemTitles, item: Any, title: Any, brand: Any) -> str | None:
    """Take up one row, or say what is wrong with it."""
    for role, value in (("item", item), ("title", title), ("brand", brand)):
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
    return None


@dataclass(frozen=True)
class _Unreadable:
    """Stands for a value that is no text."""

    problem: str


def _texts(column: pa.ChunkedArray) -> list[str | None | _Unreadable]:
    """Values as text; whole numbers are written out."""
    import pyarrow.types as types

    values = column.to_pylist()
    kind = column.type
    if types.is_integer(kind):
        return [None if value is None else str(value) for value in values]
    if types.is_binary(kind) or types.is_large_binary(kind):
        return [_decode(value) for value in values]
    wrong = _Unreadable("of a wrong type")
    return [value if isinstance(value, str | None) else wrong for value in values]


def _decode(value: bytes | None) -> str | None | _Unreadable:
    try:
        return None if value is None else value.decode()
    except UnicodeDecodeError:
        return _Unreadable("not UTF-8")


def _read(source: Any, columns: dict[str, str]) -> RawRows:
    """Rows with the columns `item`, `title` and, where there is one, `brand`."""
    from ..data.json_rows import read_json_lines
    from ..data.table_rows import read_parquet, read_table
    from ..data.text_rows import read_delimited

    def roles(names: list[str]) -> dict[str, str]:
        return _roles(names, columns)

    if not isinstance(source, str | Path):
        return read_table(source, roles)
    path = Path(source)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    name = path.name.removesuffix(".gz")
    if name == "movies.dat":
        return read_delimited(path, "::", roles, ["item", "title", "genres"], "latin-1")
    if name == "u.item":
        return read_delimited(path, "|", roles, ["item", "title", *map(str, range(22))], "latin-1")
    if name.endswith((".item", ".tsv")):
        return read_delimited(path, "\t", roles)
    if name.endswith(".csv"):
        return read_delimited(path, ",", roles)
    if name.endswith((".jsonl", ".json")):
        return read_json_lines(path, roles)
    if name.endswith(".parquet"):
        return read_parquet([path], roles)
    raise ValueError(
        f"{path} has no ending that is known: expected .jsonl, .json, .item, .csv, .tsv, .parquet or movies.dat."
    )


def _roles(names: list[str], columns: dict[str, str]) -> dict[str, str]:
    if unknown := set(columns) - set(_COLUMNS):
        raise ValueError(f"`columns` names {sorted(unknown)}; expected some of {', '.join(_COLUMNS)}.")
    bare = {name.split(":")[0]: name for name in reversed(names)}  # RecBole writes `item_id:token`
    chosen = {}
    for role, usual in _COLUMNS.items():
        wanted = (columns[role],) if role in columns else usual
        found = [bare.get(name, name) for name in wanted if name in bare or name in names]
        if found:
            chosen[role] = found[0]
        elif role != "brand" or role in columns:
            raise ValueError(
                f"No column {' or '.join(map(repr, wanted))} among {names}; name yours with columns={{{role!r}: ...}}."
            )
    return chosen


def read_lc_rec(folder: str | Path, kind: str) -> tuple[list[str], list[str] | None, list[list[str]] | None]:
    """
    Item ids, titles and semantic IDs of a folder, see [`ItemCatalog.from_lc_rec`].

    Raises:
        FileNotFoundError: where the folder lacks the file that `kind` needs.
        ValueError: for a file of another form; names the items.
    """
    index, about = _read_json(folder, "index.json"), _read_json(folder, "item.json")
    needed, name = (index, "index.json") if kind == "semantic_ids" else (about, "item.json")
    if needed is None:
        raise FileNotFoundError(f"{folder} holds no {name} (nor .gz, nor <data set>.{name}), which {kind} need.")
    titles = semantic_ids = None
    if about is not None and about.keys() >= needed.keys():
        _refuse_others(about, "item.json", '{"title": "..."}', _is_about)
        titles = [clean_title(about[item_id].get("title") or "") for item_id in needed]
    if index is not None and index.keys() >= needed.keys():
        _refuse_others(index, "index.json", '["<a_1>", "<b_2>"]', _is_semantic_id)
        semantic_ids = [index[item_id] for item_id in needed]
    return list(needed), titles, semantic_ids


def _is_about(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("title"), str | None)


def _is_semantic_id(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(token, str) and token for token in value)


def _refuse_others(values: dict[str, Any], name: str, form: str, fits: Callable[[Any], bool]) -> None:
    if wrong := [item_id for item_id, value in values.items() if not fits(value)]:
        raise ValueError(
            f"{len(wrong)} items of {name} have another form than {form}, the first is {wrong[0]!r}: "
            f"{str(values[wrong[0]])[:60]!r}."
        )


def _read_json(folder: str | Path, name: str) -> dict[str, Any] | None:
    """`name` or `<data set>.name` in `folder`, plain or compressed; `None` where there is none."""
    from ..data.text_rows import open_bytes

    for pattern in (name, f"{name}.gz", f"*.{name}", f"*.{name}.gz"):
        found = sorted(Path(folder).glob(pattern))
        if len(found) > 1:
            raise ValueError(
                f"{folder} holds several files named {pattern}: {[path.name for path in found]}. Keep one."
            )
        if found:
            try:
                with open_bytes(found[0]) as file:
                    values = json.load(file)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{found[0]} is no JSON: {error}") from error
            if not isinstance(values, dict):
                raise ValueError(f"{found[0]} holds a {type(values).__name__}, expected one JSON object.")
            return values
    return None
