"""User histories in time order: loading, cleaning and splitting."""

from __future__ import annotations

import gzip
import json
from bisect import bisect_left
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from .splits import NextItemExample, Splits, UserSequence


if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Interactions:
    """
    Item sequences of users, oldest item first.

    Args:
        users (`list[str]`): Distinct user ids.
        sequences (`list[list[str]]`): Item ids of each user in time order; none is empty.
        timestamps (`list[list[float]]`, *optional*): Times of the same interactions, non-decreasing within a user, in
            any one unit (seconds when read from dates). Needed by [`~Interactions.global_time`] alone.

    Raises:
        ValueError: For lists of different lengths, repeated users, users without items, or times out of order.

    Example:

    ```python
    >>> interactions = Interactions.from_sequences({"ann": ["i1", "i2", "i3"], "bob": ["i2", "i1", "i4"]})
    >>> interactions.num_interactions, interactions.items
    (6, ['i1', 'i2', 'i3', 'i4'])
    >>> interactions.leave_one_out().test[0]
    NextItemExample(user='ann', history=['i1', 'i2'], item='i3')

    ```
    """

    users: list[str]
    sequences: list[list[str]]
    timestamps: list[list[float]] | None = None

    def __post_init__(self) -> None:
        if len(self.users) != len(self.sequences):
            raise ValueError(
                f"Got {len(self.users)} users and {len(self.sequences)} sequences; expected one sequence a user."
            )
        repeated = [user for user, count in Counter(self.users).items() if count > 1]
        if repeated:
            raise ValueError(
                f"User {repeated[0]!r} appears more than once; merge that user's items into one sequence."
            )
        empty = [user for user, items in zip(self.users, self.sequences, strict=True) if not items]
        if empty:
            raise ValueError(f"{len(empty)} users have no items, the first is {empty[0]!r}; leave such users out.")
        if self.timestamps is not None:
            self._check_timestamps(self.timestamps)

    def _check_timestamps(self, timestamps: list[list[float]]) -> None:
        if list(map(len, timestamps)) != list(map(len, self.sequences)):
            raise ValueError("`timestamps` must hold one time for every interaction, user by user.")
        for user, times in zip(self.users, timestamps, strict=True):
            # `not <=` instead of `>`: a NaN is refused too.
            if any(not earlier <= later for earlier, later in zip(times, times[1:], strict=False)):
                raise ValueError(f"Times of user {user!r} are not in order; sort the user's items by time first.")

    @classmethod
    def from_sequences(cls, sequences: Mapping[Any, Iterable[Any]]) -> Interactions:
        """
        Take item sequences that are already in time order.

        Args:
            sequences (`Mapping`): `{user: [item, ...]}`. Ids that are not strings become strings.
        """
        return cls([str(user) for user in sequences], [[str(item) for item in items] for items in sequences.values()])

    @classmethod
    def from_lc_rec(cls, folder: str | Path) -> Interactions:
        """
        Read a data folder in LC-Rec's format.

        Args:
            folder (`str` or `Path`): Holds one file `inter.json` or `<name>.inter.json`, optionally gzipped, of the
                form `{user: [item, ...]}` in time order.

        Raises:
            FileNotFoundError: If the folder holds no such file.
            ValueError: If it holds several, or the file has another form.
        """
        folder = Path(folder)
        patterns = ("inter.json", "inter.json.gz", "*.inter.json", "*.inter.json.gz")
        found = sorted({path for pattern in patterns for path in folder.glob(pattern)})
        if not found:
            raise FileNotFoundError(
                f"No interactions in {folder}: expected `inter.json` or `<name>.inter.json` (or .gz)."
            )
        if len(found) > 1:
            raise ValueError(
                f"{folder} holds {', '.join(path.name for path in found)}; expected one; move the others."
            )
        opener = gzip.open if found[0].suffix == ".gz" else open
        with opener(found[0], "rt", encoding="utf-8") as file:
            sequences = json.load(file)
        if not isinstance(sequences, dict) or not all(isinstance(items, list) for items in sequences.values()):
            raise ValueError(f"{found[0]} is not of the form {{user: [item, ...]}}; write one list of items a user.")
        return cls.from_sequences(sequences)

    @classmethod
    def from_dataframe(
        cls, frame: pd.DataFrame, user: str = "user", item: str = "item", timestamp: str = "timestamp"
    ) -> Interactions:
        """
        Group a table of interactions by user and sort each user's by time; ties keep the order of the table.

        Args:
            frame (`pandas.DataFrame`): One row an interaction.
            user (`str`, *optional*, defaults to `"user"`): Column of user ids.
            item (`str`, *optional*, defaults to `"item"`): Column of item ids.
            timestamp (`str`, *optional*, defaults to `"timestamp"`): Column of times, numbers or dates.

        Raises:
            ValueError: For a missing column, a missing value, or ids read as floats.
        """
        missing = [column for column in (user, item, timestamp) if column not in frame.columns]
        if missing:
            raise ValueError(f"Columns {missing} are not in the table, which has {list(frame.columns)}; name yours.")
        for column in (user, item, timestamp):
            if frame[column].isna().any():
                raise ValueError(f"Column {column!r} has missing values; drop or fill those rows first.")
        for column in (user, item):
            if frame[column].dtype.kind == "f":
                raise ValueError(
                    f"Ids in {column!r} are floats: 12 would become '12.0'; cast them to int or str first."
                )
        times = frame[timestamp]
        if times.dtype.kind == "M":
            times = times.to_numpy(dtype="datetime64[ns]").astype("int64") / 1e9
        grouped: dict[str, list[tuple[float, str]]] = {}
        for who, what, when in zip(frame[user].tolist(), frame[item].tolist(), list(times), strict=True):
            grouped.setdefault(str(who), []).append((float(when), str(what)))
        for events in grouped.values():
            events.sort(key=lambda event: event[0])
        return cls(
            list(grouped),
            [[what for _, what in events] for events in grouped.values()],
            [[when for when, _ in events] for events in grouped.values()],
        )

    def __len__(self) -> int:
        return len(self.users)

    @property
    def items(self) -> list[str]:
        """Distinct item ids, sorted."""
        return sorted({item for items in self.sequences for item in items})

    @property
    def num_interactions(self) -> int:
        """Number of user-item pairs in time order, repeats included."""
        return sum(map(len, self.sequences))

    def _select(self, keep: list[list[int]]) -> Interactions:
        """Keep the given positions of each user's sequence; users left without any are dropped."""
        rows = [(row, positions) for row, positions in enumerate(keep) if positions]
        times = self.timestamps
        return Interactions(
            [self.users[row] for row, _ in rows],
            [[self.sequences[row][position] for position in positions] for row, positions in rows],
            None if times is None else [[times[row][position] for position in positions] for row, positions in rows],
        )

    def filter(
        self,
        items: Collection[str] | None = None,
        users: Collection[str] | None = None,
        min_items: int = 1,
        drop_repeats: bool = False,
    ) -> Interactions:
        """
        Keep what is named; compare `len` and `num_interactions` with the original to see what went.

        Args:
            items (`Collection[str]`, *optional*): Items to keep, for example those that have a title.
            users (`Collection[str]`, *optional*): Users to keep.
            min_items (`int`, *optional*, defaults to `1`): Least number of interactions a user must have, counted
                after everything else has been removed.
            drop_repeats (`bool`, *optional*, defaults to `False`): Count an item that directly follows itself once.
        """
        wanted_items = None if items is None else set(items)
        wanted_users = None if users is None else set(users)
        keep = []
        for user, sequence in zip(self.users, self.sequences, strict=True):
            positions: list[int] = []
            if wanted_users is None or user in wanted_users:
                for position, item in enumerate(sequence):
                    repeat = drop_repeats and positions and sequence[positions[-1]] == item
                    if (wanted_items is None or item in wanted_items) and not repeat:
                        positions.append(position)
            keep.append(positions if len(positions) >= min_items else [])
        return self._select(keep)

    def k_core(self, k: int) -> Interactions:
        """
        Remove users and items with fewer than `k` interactions, again and again until none is left.

        Args:
            k (`int`): Least number of interactions of every remaining user and item.

        Raises:
            ValueError: If nothing remains.
        """
        current = self
        while True:
            counts = Counter(item for items in current.sequences for item in items)
            frequent = {item for item, count in counts.items() if count >= k}
            smaller = current.filter(items=frequent, min_items=k)
            if not len(smaller):
                raise ValueError(f"The {k}-core is empty: no users and items with {k} interactions each; lower k.")
            if smaller.num_interactions == current.num_interactions:
                return smaller
            current = smaller

    def leave_one_out(self, short_users: Literal["refuse", "train"] = "refuse") -> Splits:
        """
        Ask each user's last item in test and the one before it in validation; train on the rest.

        Args:
            short_users (`str`, *optional*, defaults to `"refuse"`): What to do with users of one or two items, for
                whom nothing would be left to train on: `"refuse"` raises; `"train"` trains on all their items and
                lists them in `users_without_test`.

        Raises:
            ValueError: If there are short users and `short_users="refuse"`.
        """
        short = [user for user, items in zip(self.users, self.sequences, strict=True) if len(items) < 3]
        if short_users not in ("refuse", "train"):
            raise ValueError(f'Got short_users={short_users!r}; expected "refuse" or "train".')
        if short and short_users == "refuse":
            raise ValueError(
                f"{len(short)} users have fewer than 3 items, the first is {short[0]!r}; leave-one-out needs one each "
                "for training, validation and test. Remove them with `.filter(min_items=3)` or pass "
                'short_users="train".'
            )
        splits = Splits([], [], [], users_without_test=short)
        for user, items in zip(self.users, self.sequences, strict=True):
            if len(items) < 3:
                splits.train.append(UserSequence(user, list(items)))
                continue
            splits.train.append(UserSequence(user, items[:-2]))
            splits.validation.append(NextItemExample(user, items[:-2], items[-2]))
            splits.test.append(NextItemExample(user, items[:-1], items[-1]))
        return splits

    def global_time(self, validation_start: float, test_start: float) -> Splits:
        """
        Split everyone at the same two moments, so that no training interaction is later than a question.

        Every interaction from a moment on is asked, with all of the user's earlier interactions as history.

        Args:
            validation_start (`float`): First moment of validation, in the unit of `timestamps`.
            test_start (`float`): First moment of test.

        Raises:
            ValueError: Without timestamps, if the moments are out of order, or if a split would be empty.
        """
        if self.timestamps is None:
            raise ValueError("A split by time needs timestamps; load with `Interactions.from_dataframe`.")
        if not validation_start < test_start:
            raise ValueError(f"Got validation from {validation_start} and test from {test_start}; test must be later.")
        splits = Splits([], [], [])
        for user, items, times in zip(self.users, self.sequences, self.timestamps, strict=True):
            first, second = bisect_left(times, validation_start), bisect_left(times, test_start)
            if first:
                splits.train.append(UserSequence(user, items[:first]))
            if second == len(items):
                splits.users_without_test.append(user)
            for position in range(first, len(items)):
                asked = splits.validation if position < second else splits.test
                if position:
                    asked.append(NextItemExample(user, items[:position], items[position]))
                else:
                    splits.without_history.append((user, items[0]))
        if not (splits.train and splits.validation and splits.test):
            sizes = len(splits.train), len(splits.validation), len(splits.test)
            raise ValueError(f"Train, validation and test would have {sizes} entries; choose other moments.")
        return splits
