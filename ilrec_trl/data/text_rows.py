"""Delimited text files of one interaction a line. Every row keeps its line number."""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
from numpy.typing import NDArray

from .raw_rows import BadRows, RawRows, Roles


_BLOCK = 1 << 24  # bytes
_SEPARATOR = b"\x1f"  # replaces "::", since pyarrow takes a delimiter of one byte only


def read_delimited(
    path: Path, delimiter: str, roles: Roles, names: list[str] | None = None, encoding: str = "utf-8"
) -> RawRows:
    """
    Read the columns that are needed from a delimited file.

    Args:
        path (`Path`): The file.
        delimiter (`str`): Text between two fields. If it is a comma, fields may be quoted.
        roles (`Callable`): Chooses, from the names of all columns, the column of each role.
        names (`list[str]`, *optional*): Names of all columns. By default they are in the first line.
        encoding (`"utf-8"` or `"latin-1"`, *optional*, defaults to `"utf-8"`): Of the file. The rows are UTF-8.
    """
    bad, header = BadRows(path.name, "line"), 0 if names else 1
    names = read_header(path, delimiter) if names is None else names
    chosen = roles(names)
    quoted = delimiter == ","
    unreadable: list[int] = []

    def skip(row: Any) -> str:
        unreadable.append(row.number)
        return "skip"

    with open_bytes(path) as file:
        lines = _CountedLines(file, delimiter.encode(), encoding)
        try:
            table = pyarrow.csv.read_csv(
                pa.PythonFile(lines, mode="r"),
                pyarrow.csv.ReadOptions(use_threads=False, block_size=_BLOCK, column_names=names, skip_rows=header),
                pyarrow.csv.ParseOptions(
                    delimiter=delimiter if len(delimiter) == 1 else _SEPARATOR.decode(),
                    quote_char='"' if quoted else False,
                    newlines_in_values=quoted,
                    ignore_empty_lines=False,
                    invalid_row_handler=skip,
                ),
                pyarrow.csv.ConvertOptions(
                    include_columns=list(dict.fromkeys(chosen.values())),
                    column_types=dict.fromkeys(chosen.values(), pa.binary()),
                    strings_can_be_null=False,
                ),
            )
        except pa.ArrowInvalid as error:
            if not lines.count:
                raise ValueError(f"{path.name} is empty: it has no interactions.") from error
            _check_quotes(path)
            raise ValueError(f"{path.name} cannot be read as lines of fields: {error}") from error
    if quoted and len(table) + len(unreadable) + header != lines.count:
        _check_quotes(path)
        bad.unit = "record"
    table = pa.table({role: table[name] for role, name in chosen.items()})
    if lines.mended:  # make invalid again what was invalid, so that `to_columns` finds its rows
        table = pa.table({role: pc.replace_substring(table[role], "\ufffd".encode(), b"\xff") for role in chosen})
    skipped = np.array(unreadable, dtype=np.int64)
    bad.add(f"without {len(names)} fields", skipped)
    table, skipped = _without_blank_lines(path, table, skipped, header + 1)
    return RawRows(table, bad, line_numbers(header + 1, len(table), skipped))


def read_header(path: Path, delimiter: str) -> list[str]:
    """Names of the columns, from the first line."""
    with open_bytes(path) as file:
        line = file.readline().rstrip(b"\r\n")
    try:
        text = line.split(b"\r")[0].decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path.name}, line 1: the header is not UTF-8 ({error}).") from error
    names = next(csv.reader([text]), []) if delimiter == "," else text.split(delimiter)
    if not any(names):
        raise ValueError(f"{path.name}, line 1: expected a header with the names of the columns.")
    if repeated := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"{path.name}, line 1: the header names {min(repeated)!r} more than once.")
    return names


@contextmanager
def open_bytes(path: Path) -> Iterator[BinaryIO]:
    """Open a file, unpacked if its name ends in `.gz`. A broken gzip file raises a `ValueError`."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            yield file  # type: ignore[misc]
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        lines = _lines_before_break(path)
        raise ValueError(f"{path.name} is a broken gzip file ({error}): it can be read up to line {lines}.") from error


def line_numbers(
    first: int, count: int, skipped: NDArray[np.int64]
) -> Callable[[NDArray[np.int64]], NDArray[np.int64]]:
    """A function that gives the line numbers of rows, where `skipped` lines are not among the rows."""

    def label(places: NDArray[np.int64]) -> NDArray[np.int64]:
        numbers = np.arange(first, first + count + len(skipped))
        return np.delete(numbers, skipped - first)[places]

    return label


class _CountedLines(io.RawIOBase):
    """
    A file as pyarrow's CSV reader needs it. Lines are counted, `::` becomes one byte, and invalid UTF-8 becomes
    U+FFFD, since the reader cannot name a line that it cannot decode.
    """

    def __init__(self, file: BinaryIO, delimiter: bytes, encoding: str) -> None:
        self._file, self._delimiter, self._encoding = file, delimiter, encoding
        self._character, self._colon, self._last = b"", b"", b"\n"
        self._ends = 0
        self.mended = False

    @property
    def count(self) -> int:
        """Number of lines, including a last one without a line break."""
        return self._ends + (self._last not in (b"\n", b"\r"))

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        while block := self._file.read(size):
            self._ends += block.count(b"\n") + block.count(b"\r") - block.count(b"\r\n")
            self._ends -= self._last == b"\r" and block.startswith(b"\n")
            self._last = block[-1:]
            if ready := self._one_byte_delimiters(self._utf8(block)):
                return ready
        return self._one_byte_delimiters(self._utf8(b""), last=True)

    def _utf8(self, block: bytes) -> bytes:
        if self._encoding == "latin-1":  # every byte is a character
            return block.decode("latin-1").encode()
        whole = self._character + block
        try:
            end = codecs.utf_8_decode(whole, "strict", not block)[1]
            ready = whole[:end]
        except UnicodeDecodeError:
            text, end = codecs.utf_8_decode(whole, "replace", not block)
            ready, self.mended = text.encode(), True
        self._character = whole[end:]
        return ready

    def _one_byte_delimiters(self, block: bytes, last: bool = False) -> bytes:
        if len(self._delimiter) == 1:
            return block
        whole = self._colon + block
        self._colon = b":" if whole.endswith(b":") and not last else b""
        return whole[: len(whole) - len(self._colon)].replace(self._delimiter, _SEPARATOR)


def _lines_before_break(path: Path) -> int:
    unpacker, lines = zlib.decompressobj(wbits=31), 0
    try:
        with path.open("rb") as file:
            while block := file.read(1 << 16):
                lines += unpacker.decompress(block).count(b"\n")
    except zlib.error:
        pass
    return lines


def _check_quotes(path: Path) -> None:
    """Refuse quotation marks that are never closed, or closed in the middle of a field: they swallow lines."""
    with open_bytes(path) as file:
        reader = csv.reader(io.TextIOWrapper(file, encoding="latin-1", newline=""), strict=True)  # type: ignore[arg-type]
        try:
            deque(reader, maxlen=0)
        except csv.Error as error:
            message = f"{path.name}: the quotation marks of the row that ends at line {reader.line_num} do not match"
            raise ValueError(f"{message} ({error}).") from error


def _without_blank_lines(
    path: Path, table: pa.Table, skipped: NDArray[np.int64], first: int
) -> tuple[pa.Table, NDArray[np.int64]]:
    """Leave out rows that are blank lines."""
    empty = np.ones(len(table), dtype=bool)
    for column in table.columns:
        if not empty.any():
            return table, skipped
        empty &= pc.equal(pc.binary_length(column), 0).to_numpy()
    places = np.flatnonzero(empty)
    if not len(places) or len(places) != _blank_lines(path, first):
        return table, skipped  # some have fields, but none of those that are read: they are bad rows
    numbers = line_numbers(first, len(table), skipped)(places)
    return table.filter(pa.array(~empty)), np.sort(np.concatenate([skipped, numbers]))


def _blank_lines(path: Path, first: int) -> int:
    """Number of blank lines from the `first` on."""
    with open_bytes(path) as file:
        text = file.read().replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    ends = np.flatnonzero(np.frombuffer(text, dtype=np.uint8) == ord("\n"))
    blank = np.diff(np.concatenate([[-1], ends])) == 1
    return int(blank[first - 1 :].sum())
