"""Files of semantic IDs in the formats of LC-Rec and MiniOneRec."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..data.text_rows import open_bytes
from .titles import clean_title


Index = Mapping[str, Sequence[str]]


def write_lc_rec(
    folder: str | Path, index: Index, items: Mapping[str, Mapping[str, Any]] | None = None, name: str | None = None
) -> None:
    """
    Write `index.json` and `item.json`, as LC-Rec has them.

    Args:
        folder (`str` or `Path`): Made if it does not exist.
        index (`dict[str, list[str]]`): `{item: ["<a_1>", "<b_2>", ...]}`.
        items (`dict[str, dict]`, *optional*): `{item: {"title": ..., ...}}`. By default no `item.json` is written.
        name (`str`, *optional*): Name of the data set. Then the files are `<name>.index.json` and `<name>.item.json`.
    """
    folder, prefix = Path(folder), f"{name}." if name else ""
    folder.mkdir(parents=True, exist_ok=True)
    for file, content in (("index.json", index), ("item.json", items)):
        if content is not None:
            text = json.dumps(dict(content), ensure_ascii=False)
            (folder / f"{prefix}{file}").write_text(text + "\n", encoding="utf-8")


def read_index(path: str | Path) -> dict[str, list[str]]:
    """
    Read an `index.json`, plain or compressed.

    Raises:
        ValueError: If it is not of the form `{item: [token, ...]}`.
    """
    index = read_json(path)
    for item_id, tokens in index.items():
        if not isinstance(tokens, list) or not tokens or not all(token and isinstance(token, str) for token in tokens):
            raise ValueError(f"{path}: item {item_id!r} has {tokens!r}, expected a list of tokens like '<a_12>'.")
    return index


def read_json(path: str | Path) -> dict[str, Any]:
    """Read a JSON object, plain or compressed, whose keys are item ids."""
    path = Path(path)
    with open_bytes(path) as file:
        try:
            content = json.load(file)
        except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
            raise ValueError(f"{path} is not JSON ({error}).") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, expected an object with item ids as keys.")
    return content


def find_json(folder: str | Path, name: str) -> Path | None:
    """
    `name` or else `<data set>.name` in `folder`, plain or compressed; `None` if there is none.

    Raises:
        ValueError: if there are several.
    """
    for pattern in (name, f"{name}.gz", f"*.{name}", f"*.{name}.gz"):
        found = sorted(Path(folder).glob(pattern))
        if len(found) > 1:
            raise ValueError(f"{folder} holds several files {pattern}, {[path.name for path in found]}; keep one.")
        if found:
            return found[0]
    return None


def read_lc_rec(folder: str | Path, kind: str) -> tuple[list[str], list[str] | None, list[list[str]] | None]:
    """
    Item ids, titles and semantic IDs of a folder, see [`ItemCatalog.from_lc_rec`].

    Raises:
        FileNotFoundError: if the file that `kind` needs is missing.
        ValueError: for a file of another form; names the items.
    """
    files = find_json(folder, "index.json"), find_json(folder, "item.json")
    index, about = (read_json(path) if path else None for path in files)
    needed, name = (index, "index.json") if kind == "semantic_ids" else (about, "item.json")
    if needed is None:
        make = " `ilrec items build` makes it from titles." if kind == "semantic_ids" else ""
        raise FileNotFoundError(f"{folder} holds no {name} (nor .gz, nor <data set>.{name}), which {kind} need.{make}")
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


def write_minionerec(folder: str | Path, category: str, index: Index, items: Mapping[str, Mapping[str, Any]]) -> None:
    """
    Write what MiniOneRec's programs read: `<category>.index.json`, `<category>.item.json` and `info/<category>.txt`.

    The text file has one line for each item: semantic ID, title and item id, separated by tabs. Titles are cleaned, so
    that they hold neither tabs nor line breaks.

    Args:
        folder (`str` or `Path`): Made if it does not exist.
        category (`str`): For example `"Industrial_and_Scientific"`.
        index (`dict[str, list[str]]`): `{item: ["<a_1>", "<b_2>", ...]}`.
        items (`dict[str, dict]`): `{item: {"title": ..., ...}}`.

    Raises:
        ValueError: If an item has no title, or its id or semantic ID holds white space.
    """
    lines = []
    for item_id, tokens in index.items():
        title = clean_title(str(items.get(item_id, {}).get("title") or ""))
        if not title:
            raise ValueError(f"Item {item_id!r} has no title, which MiniOneRec's info file needs.")
        fields = ["".join(tokens), title, item_id]
        if any(not field or len(field.split()) != 1 for field in (fields[0], item_id)):
            raise ValueError(f"Item {item_id!r} with tokens {list(tokens)}: white space would break the info file.")
        lines.append("\t".join(fields) + "\n")
    write_lc_rec(folder, index, items, category)
    (Path(folder) / "info").mkdir(exist_ok=True)
    (Path(folder) / "info" / f"{category}.txt").write_text("".join(lines), encoding="utf-8")
