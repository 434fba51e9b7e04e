"""Rows as a source holds them: they are checked, bad ones are counted, and the rest is turned into columns."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from .cleaning import within
from .columns import Columns, encode, offsets_of, places_of


logger = logging.getLogger(__name__)

UNITS = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}  # units of time, in parts of a second
#: Chooses, from the names of all columns, the column of each role.
Roles: TypeAlias = Callable[[list[str]], dict[str, str]]
_NAMED = 5  # rows of one kind that a message names


@dataclass
class RawRows:
    """
    Interactions as their source holds them.

    Args:
        table (`pa.Table`): Columns `user` and `item`, and `time` and `rating` if there are any. Text of a file has
            type binary; [`to_columns`] checks that it is UTF-8.
        bad (`BadRows`): What the reader could not read as a row.
        label (`Callable`): Gives the line numbers, or other names, of rows of `table`.
    """

    table: pa.Table
    bad: BadRows
    label: Callable[[NDArray[np.int64]], NDArray[Any]] = np.asarray


@dataclass
class BadRows:
    """
    Rows that cannot be used.

    Args:
        source (`str`): File or table they are in.
        unit (`str`, *optional*, defaults to `"row"`): What `numbers` count: `"line"` of a text file, from 1;
            `"record"` of a CSV file with line breaks inside quotation marks, from 1; `"row"` of a table, from 0;
            `"user"` of a file of sequences.
        numbers (`dict[str, np.ndarray]`, *optional*): Numbers of the rows, ascending, by what is wrong with them. Each
            row is of one kind.
    """

    source: str
    unit: str = "row"
    numbers: dict[str, NDArray[Any]] = field(default_factory=dict)

    def __len__(self) -> int:
        return sum(map(len, self.numbers.values()))

    @property
    def counts(self) -> dict[str, int]:
        """Number of rows of each kind."""
        return {kind: len(numbers) for kind, numbers in self.numbers.items()}

    def add(self, kind: str, numbers: Any) -> None:
        """Add rows of a kind."""
        if len(numbers):
            new = np.asarray(numbers)
            self.numbers[kind] = np.sort(np.concatenate([self.numbers.get(kind, new[:0]), new]))

    def __str__(self) -> str:
        kinds = "; ".join(
            f"{len(numbers):,} {kind} ({self._named(numbers)})" for kind, numbers in self.numbers.items()
        )
        return f"{len(self):,} bad row{'s' if len(self) > 1 else ''} in {self.source}: {kinds}"

    def _named(self, numbers: NDArray[Any]) -> str:
        shown = ", ".join(map(str, numbers[:_NAMED].tolist()))
        more = f" and {len(numbers) - _NAMED:,} more" if len(numbers) > _NAMED else ""
        return f"{self.unit}{'s' if len(numbers) > 1 else ''} {shown}{more}"

    def settle(self, bad_rows: str) -> None:
        """Raise a `ValueError` if there are bad rows and `bad_rows` is `"raise"`; log them if it is `"drop"`."""
        if bad_rows not in ("raise", "drop"):
            raise ValueError(f'Got bad_rows={bad_rows!r}; expected "raise" or "drop".')
        if len(self) and bad_rows == "raise":
            raise ValueError(f'{self}. Correct or remove them, or pass bad_rows="drop" to go on without them.')
        if len(self):
            logger.warning("Left out %s.", self)


def to_columns(
    rows: RawRows,
    *,
    time_unit: str = "s",
    min_rating: float | None = None,
    items: Collection[str] | None = None,
    bad_rows: str = "raise",
) -> Columns:
    """
    Check every row, refuse bad ones or leave them out, and sort the rest by user and time.

    The rows are in order already if they have no column `time`. The options are those of [`Interactions.load`].
    """
    if time_unit not in UNITS:
        raise ValueError(f"Got time_unit={time_unit!r}; expected one of {', '.join(UNITS)}.")
    table, checks = rows.table, _Checks(rows)
    users, user_codes = _ids(table["user"], "user", checks)
    item_ids, item_codes = _ids(table["item"], "item", checks)
    times = None
    if "time" in table.column_names:
        times, time_unit = _times(table["time"], time_unit, checks)
    if items is not None:
        unknown = np.append(~within(item_ids, items), False)  # a missing id, -1, is counted already
        checks.refuse("of an unknown item", unknown[item_codes])
    keep = checks.good
    if min_rating is not None:
        ratings = _numbers(table["rating"], "rating", checks)
        keep = keep & (ratings >= min_rating)
    rows.bad.settle(bad_rows)
    if not keep.any():
        why = "has no interactions" if min_rating is None else f"has no interactions rated {min_rating} or higher"
        raise ValueError(f"{rows.bad.source} {why}.")
    if not keep.all():
        user_codes, item_codes = user_codes[keep], item_codes[keep]
        times = None if times is None else times[keep]
    return _sorted_columns(users, item_ids, user_codes, item_codes, times, UNITS[time_unit])


def choose_columns(
    names: list[str],
    given: Mapping[str, str],
    usual: Mapping[str, tuple[str, ...]],
    needed: Sequence[str],
    optional: Sequence[str],
    hints: Mapping[str, str],
) -> dict[str, str]:
    """
    The column of each role.

    Args:
        names (`list[str]`): Names of all columns.
        given (`Mapping[str, str]`): Columns that the user named, by role.
        usual (`Mapping[str, tuple[str, ...]]`): Usual names of columns, by role; the first that is there counts.
        needed (`Sequence[str]`): Roles that must have a column.
        optional (`Sequence[str]`): Roles that need one only if the user named it.
        hints (`Mapping[str, str]`): What else a user can do about a missing column, by role.

    Raises:
        ValueError: For an unknown role, or a missing column.
    """
    if unknown := set(given) - set(usual):
        raise ValueError(f"`columns` names {sorted(unknown)}; expected some of {', '.join(usual)}.")
    bare = bare_names(names)
    chosen = {}
    for role in (*needed, *optional):
        wanted = (given[role],) if role in given else usual[role]
        if found := [bare[name] for name in wanted if name in bare]:
            chosen[role] = found[0]
        elif role in needed or role in given:
            raise ValueError(
                f"No column {' or '.join(map(repr, wanted))} among {names}; "
                f"name yours with columns={{{role!r}: ...}}{hints.get(role, '')}."
            )
    return chosen


def bare_names(names: list[str]) -> dict[str, str]:
    """Columns by their names, with and without the types of RecBole, who writes `item_id:token`."""
    return {name.split(":")[0]: name for name in reversed(names)} | {name: name for name in names}


def join_texts(value: Any) -> Any:
    """Join a list of texts, or of such lists, with spaces; anything else stays as it is."""
    if type(value) is not list:
        return value
    texts = [join_texts(each) for each in value if each is not None]
    return " ".join(filter(None, texts)) if all(isinstance(text, str) for text in texts) else value


class JsonPairs(list[tuple[str, Any]]):
    """Entries of a JSON object, repeated names included; an `object_pairs_hook`."""


class _Checks:
    """Which rows are good so far. A bad row is counted once, by the first fault that is found."""

    def __init__(self, rows: RawRows) -> None:
        self._rows = rows
        self.good = np.ones(len(rows.table), dtype=bool)  # (N,)

    def refuse(self, kind: str, wrong: NDArray[np.bool_]) -> None:
        places = np.flatnonzero(wrong & self.good)
        if len(places):
            self._rows.bad.add(kind, self._rows.label(places))
            self.good[places] = False


def _ids(column: pa.ChunkedArray, what: str, checks: _Checks) -> tuple[pa.StringArray, NDArray[np.int32]]:
    """Distinct ids, and the code `(N,)` of each row's id; -1 if it has none. Only distinct ids are checked."""
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if pa.types.is_floating(kind):
        raise ValueError(f"Ids of column {what!r} are floats: 12 would become '12.0'; cast them to int or str first.")
    if not (_is_text(kind) or pa.types.is_integer(kind) or pa.types.is_null(kind)):
        raise ValueError(f"Ids of column {what!r} are of type {kind}; expected text or whole numbers.")
    distinct, codes = encode(column)
    distinct, broken = _cast(distinct, pa.string())
    checks.refuse(f"whose {what} is not UTF-8", np.append(broken, False)[codes])
    missing = pc.equal(distinct, "").fill_null(False).to_numpy(zero_copy_only=False) & ~broken
    checks.refuse(f"without {'an' if what == 'item' else 'a'} {what}", np.append(missing, True)[codes])
    return distinct.fill_null(""), codes


def _times(column: pa.ChunkedArray, unit: str, checks: _Checks) -> tuple[NDArray[Any], str]:
    """Times `(N,)` to sort by, whole numbers as integers, and their unit."""
    kind = column.type
    if pa.types.is_date(kind):
        column, kind = column.cast(pa.timestamp("ms")), pa.timestamp("ms")
    if _is_text(kind):
        column = _text(column, "time", checks)
        first = next((value for value in column.slice(0, 1000).to_pylist() if value), "")
        if re.match(r"\d{4}-\d\d-\d\d", first):
            zone = None if re.fullmatch(r"[\d-]{10}([T ][\d:.]*)?", first) else "UTC"
            checks.refuse("without a time", _mask(pc.equal(column, "").fill_null(True)) & checks.good)
            column, broken = _cast(column, pa.timestamp("us", zone))
            checks.refuse("whose time is no date like the first ones", broken)
            kind = column.type
    if pa.types.is_timestamp(kind):
        checks.refuse("without a time", _mask(column.is_null()))
        return column.cast(pa.int64()).fill_null(0).to_numpy(), str(kind.unit)
    return _numbers(column, "time", checks), unit


def _numbers(column: pa.ChunkedArray, what: str, checks: _Checks) -> NDArray[Any]:
    """Values `(N,)` of a column of numbers, or of numbers as text; whole numbers become integers."""
    kind = column.type
    if pa.types.is_boolean(kind) or not (_is_text(kind) or _is_number(kind) or pa.types.is_null(kind)):
        raise ValueError(
            f"Column {what!r} is of type {kind}; expected numbers{' or dates' if what == 'time' else ''}."
        )
    if _is_text(kind):
        column = _text(column, what, checks)
        checks.refuse(f"without a {what}", _mask(pc.equal(column, "").fill_null(True)) & checks.good)
    if pa.types.is_integer(kind):
        checks.refuse(f"without a {what}", _mask(column.is_null()))
        return column.cast(pa.int64()).fill_null(0).to_numpy()
    values, broken = _cast(column, pa.float64())
    numbers = values.to_numpy()
    checks.refuse(f"without a {what}", _mask(column.is_null()) | (np.isnan(numbers) & ~broken & ~_is_text(kind)))
    checks.refuse(f"whose {what} is no number", broken | ~np.isfinite(numbers))
    if _is_text(kind):
        # Beyond 2 ** 53, different moments would become one float
        try:
            return pc.if_else(pa.array(~broken), column, None).cast(pa.int64()).fill_null(0).to_numpy()
        except pa.ArrowInvalid:
            pass  # some have fractions
    return np.nan_to_num(numbers, nan=0.0, posinf=0.0, neginf=0.0)


def _text(column: pa.ChunkedArray, what: str, checks: _Checks) -> pa.ChunkedArray:
    column, broken = _cast(column, pa.string())
    checks.refuse(f"whose {what} is not UTF-8", broken)
    return column


def _is_text(kind: pa.DataType) -> bool:
    tests = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)
    return any(test(kind) for test in tests) or str(kind) == "string_view"


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind))


def _mask(flags: Any) -> NDArray[np.bool_]:
    return flags.to_numpy(zero_copy_only=False) if isinstance(flags, pa.Array) else flags.to_numpy()  # type: ignore[no-any-return]


def _cast(values: Any, kind: pa.DataType) -> tuple[Any, NDArray[np.bool_]]:
    """The values cast, null where that fails, and a mask `(N,)` of where it fails."""
    failed = np.zeros(len(values), dtype=bool)
    try:
        return values.cast(kind), failed
    except (pa.ArrowInvalid, UnicodeDecodeError):
        pass
    # Halves without a failure are cast at once, so that a few bad rows among millions cost little
    spans = [(0, len(values))]
    while spans:
        start, end = spans.pop()
        try:
            values.slice(start, end - start).cast(kind)
        except (pa.ArrowInvalid, UnicodeDecodeError):
            middle = (start + end) // 2
            if end - start == 1:
                failed[start] = True
            else:
                spans += [(start, middle), (middle, end)]
    return pc.if_else(pa.array(~failed), values, None).cast(kind), failed


def _sorted_columns(
    users: pa.StringArray,
    items: pa.StringArray,
    user_codes: NDArray[np.int32],
    item_codes: NDArray[np.int32],
    times: NDArray[Any] | None,
    per_second: int,
) -> Columns:
    """Sort users by their first row, items by id, and each user's rows by time; ties keep the order of rows."""
    first = np.full(len(users), len(user_codes), dtype=np.int64)  # (U,)
    first[user_codes[::-1]] = np.arange(len(user_codes) - 1, -1, -1)  # of several writes the last one stays
    seen = np.argsort(first, kind="stable")[: int((first < len(user_codes)).sum())]
    user_codes = places_of(seen, len(users))[user_codes]
    used = np.flatnonzero(np.bincount(item_codes, minlength=len(items)))
    by_id = used[pc.array_sort_indices(items.take(pa.array(used))).to_numpy()]
    order = np.argsort(user_codes, kind="stable") if times is None else np.lexsort((times, user_codes))
    return Columns(
        users.take(pa.array(seen)),
        items.take(pa.array(by_id)),
        places_of(by_id, len(items))[item_codes][order],
        offsets_of(np.bincount(user_codes)),
        None if times is None else times[order].astype(np.float64) / per_second,
    )
