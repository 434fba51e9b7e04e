"""Semantic IDs as LC-Rec's and MiniOneRec's programs read and write them."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .titles import clean_title


Index = Mapping[str, Sequence[str]]


def write_lc_rec(
    folder: str | Path, index: Index, items: Mapping[str, Mapping[str, Any]] | None = None, name: str | None = None
) -> None:
    """
    Write `index.json` and `item.json`, as LC-Rec has them.

    Args:
        folder (`str` or `Path`): Made where it is missing.
        index (`dict[str, list[str]]`): `{item: ["<a_1>", "<b_2>", ...]}`.
        items (`dict[str, dict]`, *optional*): `{item: {"title": ..., ...}}`. Without it no `item.json` is written.
        name (`str`, *optional*): Data set; the files are then `<name>.index.json` and `<name>.item.json`.
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
    opener = gzip.open if Path(path).suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8") as file:
        try:
            content = json.load(file)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path} is not JSON ({error}).") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, expected an object with item ids as keys.")
    return content


def write_minionerec(folder: str | Path, category: str, index: Index, items: Mapping[str, Mapping[str, Any]]) -> None:
    """
    Write what MiniOneRec's programs read: `<category>.index.json`, `<category>.item.json` and `info/<category>.txt`.

    The text file has one line an item: semantic ID, title and item id, with tabs between. Titles are cleaned, so that
    they hold neither tabs nor line breaks.

    Args:
        folder (`str` or `Path`): Made where it is missing.
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


def read_minionerec_info(path: str | Path) -> tuple[dict[str, list[str]], dict[str, str]]:
    """
    Read MiniOneRec's info file.

    Args:
        path (`str` or `Path`): Lines of semantic ID, title and item id, with tabs between.

    Returns:
        `tuple`: `{item: tokens}` and `{item: title}`.

    Raises:
        ValueError: Names the line that has another form, or whose item was there before.
    """
    index: dict[str, list[str]] = {}
    titles: dict[str, str] = {}
    # `\n` alone ends a line: a title may hold what `splitlines` takes for an end
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").removesuffix("\n").split("\n"), 1):
        fields = line.split("\t")
        tokens = fields[0].replace("><", "> <").split()
        if len(fields) != 3 or not tokens or not all(token[0] == "<" and token[-1] == ">" for token in tokens):
            raise ValueError(f"{path}, line {number}: got {line!r}, expected '<a_1><b_2>', title and item id by tabs.")
        if fields[2] in index:
            raise ValueError(f"{path}, line {number}: item {fields[2]!r} is there before.")
        index[fields[2]], titles[fields[2]] = tokens, fields[1]
    return index, titles
