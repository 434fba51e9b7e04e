"""Files of whole sequences: LC-Rec's JSON, and MiniOneRec's rows of a history and its next item."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from .columns import encode, offsets_of
from .raw_rows import BadRows, JsonPairs, RawRows
from .text_rows import open_bytes, read_delimited


PARTS = ("train", "valid", "test")


def read_lc_rec(path: Path) -> RawRows:
    """Read a JSON file `{user: [item, ...]}`, each user's items in time order."""
    with open_bytes(path) as file:
        text = file.read()
    try:
        pairs = json.loads(text.decode("utf-8"), object_pairs_hook=JsonPairs)
    except UnicodeDecodeError as error:
        line = text.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{path.name}, line {line}: not UTF-8 ({error.reason} at byte {error.start}).") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path.name} is not JSON: {error}") from error
    if not isinstance(pairs, JsonPairs) or not all(type(items) is list for _, items in pairs):
        raise ValueError(f"{path.name} is not of the form {{user: [item, ...]}}; write one list of items a user.")
    users = [user for user, _ in pairs]
    if len(set(users)) < len(users):
        repeated = Counter(users).most_common(1)[0][0]
        raise ValueError(f"{path.name}: user {repeated!r} appears more than once; merge the items into one list.")
    lengths = np.array([len(items) for _, items in pairs], dtype=np.int64)
    rows = np.repeat(np.arange(len(users)), lengths)
    entries = np.arange(len(rows)) - offsets_of(lengths)[:-1][rows]

    def label(places: NDArray[np.int64]) -> NDArray[np.object_]:
        return np.array([f"{users[rows[place]]!r} entry {entries[place]}" for place in places], dtype=object)

    bad = BadRows(path.name, "user")
    bad.add("without items", np.array([repr(users[row]) for row in np.flatnonzero(lengths == 0)], dtype=object))
    items = list(chain.from_iterable(items for _, items in pairs))
    good = np.arange(len(items))
    if not set(map(type, items)) <= {str, int}:
        fits = np.array([type(item) in (str, int) for item in items])
        good = np.flatnonzero(fits)
        bad.add("of an item that is neither text nor a whole number", label(np.flatnonzero(~fits)))
        items = [items[place] for place in good]
    try:
        names, codes = pa.array(users, pa.string()), pa.array(list(map(str, items)), pa.string())
    except UnicodeEncodeError as error:
        raise ValueError(f"{path.name}: {error.object!r} is not valid UTF-8; correct it.") from error
    user_column = pa.DictionaryArray.from_arrays(pa.array(rows[good], pa.int32()), names)
    return RawRows(pa.table({"user": user_column, "item": codes}), bad, lambda places: label(good[places]))


def read_mini_one_rec(paths: dict[str, Path]) -> RawRows:
    """
    Rebuild the users' sequences from MiniOneRec's rows of a history and its next item.

    Args:
        paths (`dict[str, Path]`): Files of the parts `"train"`, `"valid"` and `"test"`, either `.inter` files of
            `user_id`, `item_id_list` and `item_id`, or `.csv` files of `user_id`, `history_item_id` and `item_id`.

    Returns:
        `RawRows` whose `time` is the part: 0 training, 1 validation, 2 test.
    """
    parts = {part: read_delimited(path, *_layout(path)) for part, path in paths.items()}
    bad = BadRows(", ".join(path.name for path in paths.values()), "line")
    for part, rows in parts.items():
        for kind, numbers in rows.bad.numbers.items():
            bad.add(kind, _named(paths[part], numbers))
    starts = offsets_of(np.array([len(rows.table) for rows in parts.values()]))

    def label(places: NDArray[np.int64]) -> NDArray[np.object_]:
        names = np.empty(len(places), dtype=object)
        for start, end, (part, rows) in zip(starts[:-1], starts[1:], parts.items(), strict=True):
            mine = (start <= places) & (places < end)
            names[mine] = _named(paths[part], rows.label(places[mine] - start))
        return names

    windows = pa.concat_tables([rows.table for rows in parts.values()])
    part_of = np.repeat([PARTS.index(part) for part in parts], np.diff(starts))
    return _join(windows, part_of, label, bad)


def _layout(path: Path) -> tuple[str, Any]:
    if path.suffix == ".inter":
        return "\t", _roles("user_id:token", "item_id_list:token_seq", "item_id:token")
    return ",", _roles("user_id", "history_item_id", "item_id")


def _roles(user: str, history: str, item: str) -> Any:
    def roles(names: list[str]) -> dict[str, str]:
        if missing := [name for name in (user, history, item) if name not in names]:
            raise ValueError(f"Columns {missing} are not in the file, which has {names}; expected MiniOneRec's.")
        return {"user": user, "history": history, "item": item}

    return roles


def _named(path: Path, numbers: NDArray[Any]) -> NDArray[np.object_]:
    named = np.empty(len(numbers), dtype=object)
    named[:] = [f"{number} of {path.name}" for number in numbers.tolist()]
    return named


def _join(
    windows: pa.Table, part_of: NDArray[np.int64], label: Callable[[NDArray[np.int64]], NDArray[Any]], bad: BadRows
) -> RawRows:
    """One row for each interaction: each user's first history, then all targets in order."""
    if not len(windows):
        return RawRows(windows.select(["user", "item"]), bad)
    histories = _lists(windows["history"])
    lengths = pc.list_value_length(histories).fill_null(0).to_numpy().astype(np.int64)  # (R,)
    past = histories.flatten()
    items, codes = encode(pa.chunked_array([past, *windows["item"].chunks], pa.binary()))
    past_codes, targets = codes[: len(past)], codes[len(past) :]
    users = encode(windows["user"])[1]
    order = _order(users, part_of, lengths)
    starts, lengths = offsets_of(lengths)[:-1][order], lengths[order]
    opening = np.append(True, users[order][1:] != users[order][:-1])
    added = np.where(opening, lengths + 1, 1)  # interactions that a row adds
    ends = np.cumsum(added)
    flat = np.empty(int(added.sum()), dtype=np.int32)
    flat[ends - 1] = targets[order]
    flat[_spans((ends - added)[opening], lengths[opening])] = past_codes[_spans(starts[opening], lengths[opening])]
    begins = np.repeat((ends - added)[opening], np.diff(np.append(np.flatnonzero(opening), len(order))))
    agrees = ends - 1 - lengths >= begins
    before = np.maximum(_spans(ends - 1 - lengths, lengths), 0)
    differs = flat[before] != past_codes[_spans(starts, lengths)]
    agrees &= np.bincount(np.repeat(np.arange(len(order)), lengths), differs, minlength=len(order)) == 0
    if not agrees.all():
        bad.add("whose history is not what the user's earlier rows say", label(order[~agrees]))
        raise ValueError(f"{bad}. Without them the order of the items is unknown; give complete files.")
    source = np.repeat(order, added)
    table = pa.table(
        {
            "user": windows["user"].take(pa.array(source)),
            "item": pa.DictionaryArray.from_arrays(pa.array(flat), items),
            "time": part_of[source],
        }
    )
    return RawRows(table, bad, lambda places: label(source[places]))


def _lists(column: pa.ChunkedArray) -> pa.ListArray:
    """Lists of ids, written as `"5 6"` or `"[5, 6]"`; null for no id."""
    text = pa.concat_arrays([pa.array([], pa.binary()), *column.chunks])
    spaced = pc.replace_substring_regex(text, r"[\[\]'\",\s]+", " ")
    bare = pc.replace_substring_regex(spaced, "^ | $", "")
    return pc.split_pattern(pc.if_else(pc.equal(bare, b""), None, bare), " ")


def _order(user_codes: NDArray[np.int32], part_of: NDArray[np.int64], lengths: NDArray[Any]) -> NDArray[np.int64]:
    """Rows by user and time. Some training files list a user's rows from the longest history to the shortest."""
    places = np.arange(len(user_codes))
    order = np.lexsort((places, part_of, user_codes))
    group = user_codes[order].astype(np.int64) * len(PARTS) + part_of[order]
    starts = np.flatnonzero(np.append(True, group[1:] != group[:-1]))
    ends = np.append(starts[1:], len(order))
    falling = lengths[order[starts]] > lengths[order[ends - 1]]
    backwards = np.repeat(falling, ends - starts)
    within = np.arange(len(order)) - np.repeat(starts, ends - starts)
    mirrored = np.repeat(ends, ends - starts) - 1 - within
    return order[np.where(backwards, mirrored, np.arange(len(order)))]


def _spans(starts: NDArray[Any], lengths: NDArray[Any]) -> NDArray[np.int64]:
    """Places from `starts[r]` up to `starts[r] + lengths[r]` for all rows r, row after row."""
    shift = np.repeat(starts - offsets_of(lengths)[:-1], lengths)
    return np.arange(len(shift)) + shift
