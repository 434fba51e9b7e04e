"""The same interactions written in every format, and readers of those files that go row by row."""

import csv
import io
import json
import math
import re
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet


NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")


@dataclass
class Twin:
    """What a reader that goes row by row finds: (user, item, time) of good rows, and numbers of bad ones."""

    rows: list[tuple[str, str, float]] = field(default_factory=list)
    bad: list[Any] = field(default_factory=list)

    def sequences(self):
        """`{user: [(time, item), ...]}`, users by their first row, each one's rows by time, ties as they stand."""
        grouped = {}
        for user, item, time in self.rows:
            grouped.setdefault(user, []).append((time, item))
        return {user: sorted(events, key=lambda event: event[0]) for user, events in grouped.items()}


def delimited(rows, delimiter, header=None):
    lines = [] if header is None else [header]
    return "".join(line + "\n" for line in [*lines, *(delimiter.join(map(str, row)) for row in rows)]).encode()


def json_lines(rows, names):
    return "".join(json.dumps(dict(zip(names, row, strict=True)) | {"text": "so ä"}) + "\n" for row in rows).encode()


def table(rows, names):
    return pa.table(dict(zip(names, map(list, zip(*rows, strict=True)), strict=True)))


def number(text):
    """Seconds in a field, or None."""
    return float(text) if NUMBER.fullmatch(text) and math.isfinite(float(text)) else None


def delimited_twin(data, delimiter, width, places, header):
    """Read lines field by field; `places` are those of user, item and time."""
    twin, empty, blank = Twin(), [], 0
    lines = re.split(rb"\r\n|\r|\n", data)
    for line_number, line in enumerate(lines[:-1] if not lines[-1] else lines, start=1):
        if header and line_number == 1:
            continue
        fields = line.split(delimiter.encode())
        if not line:
            blank += 1
            empty.append(line_number)
        elif len(fields) != width:
            twin.bad.append(line_number)
        elif not any(fields[place] for place in places):
            empty.append(line_number)
        else:
            _add(twin, line_number, [fields[place] for place in places])
    if len(empty) != blank:
        twin.bad = sorted(twin.bad + empty)
    return twin


def _add(twin, line_number, fields):
    try:
        user, item, time = (field.decode() for field in fields)
    except UnicodeDecodeError:
        twin.bad.append(line_number)
        return
    if user and item and number(time) is not None:
        twin.rows.append((user, item, number(time)))
    else:
        twin.bad.append(line_number)


def csv_twin(data, places, width):
    """
    Read with Python's csv module; numbers are those of lines, or of records where quotation marks join lines. `None`
    where they do so and do not match.
    """
    text = data.decode("latin-1")
    ends = len(re.findall(r"\r\n|\r|\n", text)) + (text[-1:] not in "\r\n")
    records = list(csv.reader(io.StringIO(text, newline="")))
    if len(records) != ends:
        try:
            records = list(csv.reader(io.StringIO(text, newline=""), strict=True))
        except csv.Error:
            return None
    twin, empty = Twin(), []
    for number_of_record, fields in enumerate(records[1:], start=2):
        if fields and len(fields) != width:
            twin.bad.append(number_of_record)
        elif not any(fields[place] for place in places if fields):
            empty.append(number_of_record)
        else:
            _add(twin, number_of_record, [fields[place].encode("latin-1") for place in places])
    if len(empty) != re.split(r"\r\n|\r|\n", text)[1:-1].count(""):
        twin.bad = sorted(twin.bad + empty)
    return twin


def json_twin(data, names, per_second=1):
    """Read line by line with Python's json module; `names` are those of user, item and time."""
    twin = Twin()
    lines = data.split(b"\n")
    for line_number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        row = _json_row(line, names)
        if row is None:
            twin.bad.append(line_number)
        else:
            twin.rows.append((row[0], row[1], row[2] / per_second))
    return twin


def _json_row(line, names):
    def refuse(constant):
        raise ValueError(constant)

    try:
        pairs = json.loads(line.decode("utf-8", "surrogateescape"), object_pairs_hook=tuple, parse_constant=refuse)
    except ValueError:
        return None
    if not isinstance(pairs, tuple):
        return None
    values = []
    for name in names:
        found = [value for key, value in pairs if key == name]
        if len(found) != 1 or isinstance(found[0], bool) or not isinstance(found[0], str | int | float):
            return None
        values.append(str(found[0]))
        try:
            values[-1].encode()
        except UnicodeEncodeError:
            return None
    user, item, time = values
    return (user, item, number(time)) if user and item and number(time) is not None else None


def cell_twin(rows, places):
    """Rows of Python values, of which `places` are user, item and time; a missing one is None, "" or NaN."""
    twin = Twin()
    for row_number, row in enumerate(rows):
        user, item, time = (row[place] for place in places)
        if user in (None, "") or item in (None, "") or time is None or not math.isfinite(time):
            twin.bad.append(row_number)
        else:
            twin.rows.append((str(user), str(item), time))
    return twin
