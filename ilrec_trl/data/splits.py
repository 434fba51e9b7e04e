"""Training sequences and the questions asked in validation and test."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any, Generic, NamedTuple, TypeVar, overload

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from .cleaning import moment, timed
from .columns import Columns


T = TypeVar("T")


class UserSequence(NamedTuple):
    """
    The training items of one user.

    Attributes:
        user (`str`): User id.
        items (`list[str]`): Item ids, oldest first.
    """

    user: str
    items: list[str]


class NextItemExample(NamedTuple):
    """
    One question to a recommender: which item follows this history?

    Attributes:
        user (`str`): User id.
        history (`list[str]`): Item ids before the target, oldest first; never empty.
        item (`str`): Item id of the target.
    """

    user: str
    history: list[str]
    item: str


class LazyRows(Sequence[T], Generic[T]):
    """
    A sequence whose entries are made when they are asked for: ten million questions are ten million numbers in memory,
    not ten million lists of strings.

    Args:
        make (`Callable[[int], T]`): Makes the entry of a number.
        numbers (`range` or `np.ndarray` of shape `(N,)`): One number for each entry.
    """

    __hash__ = None  # type: ignore[assignment]

    def __init__(self, make: Callable[[int], T], numbers: range | NDArray[np.int64]) -> None:
        self._make, self._numbers = make, numbers

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> LazyRows[T]: ...
    def __getitem__(self, index: int | slice) -> T | LazyRows[T]:
        if isinstance(index, slice):
            return LazyRows(self._make, self._numbers[index])
        return self._make(int(self._numbers[index]))

    def __iter__(self) -> Iterator[T]:
        return (self._make(int(number)) for number in self._numbers)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(mine == theirs for mine, theirs in zip(self, other, strict=True))

    def __repr__(self) -> str:
        shown = ", ".join(map(repr, islice(self, 3)))
        return f"[{shown}, ...] ({len(self)} entries)" if len(self) > 3 else f"[{shown}]"


@dataclass(frozen=True)
class Splits:
    """
    Training sequences and the questions asked in validation and test.

    Args:
        train (`Sequence[UserSequence]`): Training items, one entry for each user.
        validation (`Sequence[NextItemExample]`): Questions for the choice of settings. Under leave-one-out their
            histories hold training items only.
        test (`Sequence[NextItemExample]`): Questions for the final metrics. Histories include validation items.
        users_without_test (`list[str]`, *optional*): Users without a test question: too short for leave-one-out, or
            without an interaction in the time of test.
        without_history (`list[tuple[str, str]]`, *optional*): (user, item) pairs of validation and test that are no
            questions, since no history precedes them. Only a split by time has any.
    """

    train: Sequence[UserSequence]
    validation: Sequence[NextItemExample]
    test: Sequence[NextItemExample]
    users_without_test: list[str] = field(default_factory=list)
    without_history: list[tuple[str, str]] = field(default_factory=list)

    def with_validation_in_training(self) -> Splits:
        """
        The same questions, with each user's validation items appended to the training sequence.

        Use it for a last fit with settings that are chosen already. Validation metrics then mean nothing.
        """
        more: dict[str, list[str]] = {}
        for user, _, item in self.validation:
            more.setdefault(user, []).append(item)
        known = {user for user, _ in self.train}
        new = [UserSequence(user, items) for user, items in more.items() if user not in known]
        longer: Callable[[int], UserSequence] = partial(_longer, self.train, more, new)
        return dataclasses.replace(self, train=LazyRows(longer, range(len(self.train) + len(new))))

    def with_train_users(self, share: float, seed: int = 0) -> Splits:
        """
        The same questions, with the training sequences of a random part of the users, at least one. For one seed, a
        smaller part is a subset of a larger one.

        Args:
            share (`float`): Share of the users with training sequences, above 0 and at most 1.
            seed (`int`, *optional*, defaults to `0`): Seed of the draw.
        """
        if not 0 < share <= 1:
            raise ValueError(f"Got a share of {share} of the training users; expected one above 0 and at most 1.")
        order = np.random.default_rng(seed).permutation(len(self.train))
        rows = np.sort(order[: max(1, round(share * len(self.train)))])
        return dataclasses.replace(self, train=LazyRows(self.train.__getitem__, rows))

    def train_examples(self) -> Sequence[NextItemExample]:
        """Every training item after a user's first, each with all the items before it."""
        targets = np.array([max(0, len(items) - 1) for _, items in self.train], dtype=np.int64)  # (U,)
        ends = np.cumsum(targets)
        make: Callable[[int], NextItemExample] = partial(_train_example, self.train, ends)
        return LazyRows(make, range(int(ends[-1]) if len(ends) else 0))


def sample(examples: Sequence[T], number: int) -> Sequence[T]:
    """A random part of the examples, the same in each call, in their own order."""
    if number >= len(examples):
        return examples
    return [examples[row] for row in sorted(random.Random(0).sample(range(len(examples)), number))]


def _longer(train: Sequence[UserSequence], more: dict[str, Any], new: list[UserSequence], row: int) -> UserSequence:
    if row >= len(train):
        return new[row - len(train)]
    user, items = train[row]
    return UserSequence(user, [*items, *more.get(user, [])])


def _train_example(train: Sequence[UserSequence], ends: NDArray[np.int64], number: int) -> NextItemExample:
    """The `number`-th training target. Those of row r have the numbers from `ends[r - 1]` up to `ends[r]`."""
    row = int(np.searchsorted(ends, number, side="right"))
    user, items = train[row]
    position = len(items) - int(ends[row] - number)
    return NextItemExample(user, items[:position], items[position])


def leave_one_out(columns: Columns, short_users: str) -> Splits:
    """Splits as [`Interactions.leave_one_out`] describes them."""
    if short_users not in ("refuse", "train"):
        raise ValueError(f'Got short_users={short_users!r}; expected "refuse" or "train".')
    short = np.diff(columns.offsets) < 3  # (U,)
    names = columns.users.filter(pa.array(short)).to_pylist()
    if names and short_users == "refuse":
        raise ValueError(
            f"{len(names)} users have fewer than 3 items, the first is {names[0]!r}; leave-one-out needs one each for "
            'training, validation and test. Remove them with `.filter(min_items=3)` or pass short_users="train".'
        )
    ends = columns.offsets[1:]  # (U,)
    return Splits(
        _training(columns, np.where(short, ends, ends - 2)),
        _questions(columns, ends[~short] - 2),
        _questions(columns, ends[~short] - 1),
        users_without_test=names,
    )


def global_time(
    columns: Columns, moments: tuple[float | str | None, float | str | None], shares: tuple[float | None, float | None]
) -> Splits:
    """Splits as [`Interactions.global_time`] describes them."""
    times = timed(columns.times)
    if not len(times):
        raise ValueError("There are no interactions to split.")
    first, second = _moments(times, moments, shares)
    if not first < second:
        raise ValueError(f"Got validation from {first} and test from {second}; test must be later.")
    late, later = times >= first, times >= second  # (N,)
    opening = np.zeros(len(late), dtype=bool)
    opening[columns.offsets[:-1]] = True  # a user's first interaction has no history
    starts = columns.offsets[:-1]
    unasked = np.flatnonzero(late & opening)
    tested = np.add.reduceat(later, starts, dtype=np.int64) > 0  # (U,)
    owners = columns.users.take(pa.array(columns.row_of(unasked))).to_pylist()
    splits = Splits(
        _training(columns, columns.offsets[1:] - np.add.reduceat(late, starts, dtype=np.int64)),
        _questions(columns, np.flatnonzero(late & ~later & ~opening)),
        _questions(columns, np.flatnonzero(later & ~opening)),
        users_without_test=columns.users.filter(pa.array(~tested)).to_pylist(),
        without_history=list(zip(owners, columns.names[columns.item_codes[unasked]].tolist(), strict=True)),
    )
    sizes = len(splits.train), len(splits.validation), len(splits.test)
    if not all(sizes):
        raise ValueError(f"Train, validation and test would have {sizes} entries; choose other moments.")
    return splits


def _moments(
    times: NDArray[np.float64],
    moments: tuple[float | str | None, float | str | None],
    shares: tuple[float | None, float | None],
) -> tuple[float, float]:
    """Starts of validation and test, from two moments or two shares."""
    validation_start, test_start = moments
    validation_share, test_share = shares
    if validation_start is not None and test_start is not None and shares == (None, None):
        return moment(validation_start, times), moment(test_start, times)
    if validation_share is None or test_share is None or moments != (None, None):
        raise ValueError(
            "A split by time needs either `validation_start` and `test_start`, or `validation_share` and `test_share`."
        )
    if not (0 < validation_share and 0 < test_share and validation_share + test_share < 1):
        raise ValueError(
            f"Got validation_share={validation_share} and test_share={test_share}; expected shares above 0 that leave "
            "some for training."
        )
    # Rounded before `int` cuts: 1 - 0.1 - 0.2 is slightly below 0.7
    shares_after = (validation_share + test_share, test_share)
    places = [min(int(round(len(times) * (1 - share), 6)), len(times) - 1) for share in shares_after]
    ordered = np.partition(times, places)
    return float(ordered[places[0]]), float(ordered[places[1]])


def _training(columns: Columns, ends: NDArray[np.int64]) -> LazyRows[UserSequence]:
    """Training sequences: each user's interactions before `ends` `(U,)`, without users who have none."""
    make: Callable[[int], UserSequence] = partial(_user_sequence, columns, ends)
    return LazyRows(make, np.flatnonzero(ends > columns.offsets[:-1]))


def _user_sequence(columns: Columns, ends: NDArray[np.int64], row: int) -> UserSequence:
    return UserSequence(columns.users[row].as_py(), columns.item_list(columns.offsets[row], ends[row]))


def _questions(columns: Columns, positions: NDArray[np.int64]) -> LazyRows[NextItemExample]:
    """One question for each position `(Q,)`, with all of its user's earlier items as history."""
    make: Callable[[int], NextItemExample] = partial(_example, columns)
    return LazyRows(make, positions)


def _example(columns: Columns, position: int) -> NextItemExample:
    row = int(columns.row_of(position))
    history = columns.item_list(columns.offsets[row], position)
    return NextItemExample(columns.users[row].as_py(), history, columns.names[columns.item_codes[position]])
