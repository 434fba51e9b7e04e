"""User histories in time order: load, clean and split them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cached_property, partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow.compute as pc

from .cleaning import DropRepeats, core, moment, not_repeated, timed, within
from .columns import Columns, check_order, id_column, offsets_of, save_columns, sorted_codes
from .interaction_files import SEQUENCES, find_format, load_saved, needed_columns, read_path
from .raw_rows import BadRows, to_columns
from .splits import LazyRows, Splits, global_time, leave_one_out
from .table_rows import read_table


if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa
    from datasets import Dataset


class Interactions:
    """
    Item sequences of users, oldest item first.

    They are held as columns, about twelve bytes an interaction. Lists of strings are made when they are asked for.

    Args:
        users (`Sequence[str]`): Distinct user ids.
        sequences (`Sequence[Sequence[str]]`): Item ids of each user in time order, at least one for each user.
        timestamps (`Sequence[Sequence[float]]`, *optional*): Times of the same interactions, non-decreasing within a
            user, in one unit of any kind (seconds if they are read from dates or a known format). Only
            [`~Interactions.global_time`], date windows and exact duplicates need them.

    Attributes:
        columns ([`~data.columns.Columns`]): The arrays `users`, `items`, `item_codes`, `offsets` and `times`.
        bad_rows (`BadRows`): Rows that [`~Interactions.load`] left out with `bad_rows="drop"`: `counts` by kind, and
            the line `numbers` of each kind.

    Raises:
        ValueError: For lists of different lengths, repeated users, users without items, ids that are neither text nor
            whole numbers, or times out of order.

    Example:

    ```python
    >>> interactions = Interactions.from_sequences({"ann": ["i1", "i2", "i3"], "bob": ["i2", "i1", "i4"]})
    >>> interactions.num_interactions, interactions.items
    (6, ['i1', 'i2', 'i3', 'i4'])
    >>> interactions.leave_one_out().test[0]
    NextItemExample(user='ann', history=['i1', 'i2'], item='i3')

    ```
    """

    __hash__ = None  # type: ignore[assignment]

    def __init__(
        self,
        users: Sequence[str],
        sequences: Sequence[Sequence[str]],
        timestamps: Sequence[Sequence[float]] | None = None,
    ) -> None:
        if len(users) != len(sequences):
            raise ValueError(f"Got {len(users)} users and {len(sequences)} sequences; expected one sequence a user.")
        lengths = np.fromiter(map(len, sequences), np.int64, len(sequences))  # (U,)
        if not lengths.all():
            empty = np.flatnonzero(lengths == 0)
            raise ValueError(
                f"{len(empty)} users have no items, the first is {users[int(empty[0])]!r}; leave such users out."
            )
        times = None
        if timestamps is not None:
            if list(map(len, timestamps)) != lengths.tolist():
                raise ValueError("`timestamps` must hold one time for every interaction, user by user.")
            times = np.fromiter(chain.from_iterable(timestamps), np.float64, int(lengths.sum()))
        items, codes = sorted_codes(id_column(list(chain.from_iterable(sequences)), "item"))
        self.columns = Columns(id_column(list(users), "user"), items, codes, offsets_of(lengths), times)
        check_order(self.columns.users, self.columns.offsets, times)
        self.bad_rows = BadRows("interactions")

    @classmethod
    def _from_columns(cls, columns: Columns, bad_rows: BadRows | None = None) -> Interactions:
        """Interactions of columns that are known to fit together."""
        interactions = cls.__new__(cls)
        interactions.columns = columns
        interactions.bad_rows = BadRows("interactions") if bad_rows is None else bad_rows
        return interactions

    @classmethod
    def from_sequences(cls, sequences: Mapping[Any, Iterable[Any]]) -> Interactions:
        """
        Take item sequences that are already in time order.

        Args:
            sequences (`Mapping`): `{user: [item, ...]}`. Ids that are whole numbers become strings.
        """
        return cls(list(sequences), [list(items) for items in sequences.values()])

    @classmethod
    def load(
        cls,
        source: str | Path | pd.DataFrame | Dataset | pa.Table,
        *,
        format: str | None = None,
        columns: Mapping[str, str] | None = None,
        time_unit: str | None = None,
        in_order: bool = False,
        min_rating: float | None = None,
        items: Collection[str] | None = None,
        bad_rows: str = "raise",
        split: str = "train",
    ) -> Interactions:
        """
        Read interactions from a file, a folder, the Hub, or a table in memory.

        | `format` | what it is |
        | --- | --- |
        | `"saved"` | a folder that [`Interactions.save`] wrote |
        | `"lc_rec"` | LC-Rec's `inter.json` or `<name>.inter.json`, `{user: [item, ...]}`, or a folder that holds it |
        | `"mini_one_rec"` | a folder of MiniOneRec's `*.{train,valid,test}.inter` or `{train,valid,test}/*.csv` |
        | `"recbole"` | RecBole's file `<name>.inter`, whose header gives types (`user_id:token`), or its folder |
        | `"movielens"` | `ratings.dat`, `u.data` or `ratings.csv`, or a folder that holds one of them |
        | `"csv"`, `"tsv"` | delimited text with a header |
        | `"json_lines"` | one JSON object a line, such as Amazon's reviews of 2018 and 2023 |
        | `"parquet"` | a Parquet file, or a folder of them, read in the order of their names |
        | `"hub"` | a data set that [`datasets.load_dataset`] knows: a name on the Hub or a folder |

        Text files may be gzipped (`.gz`). Rows are grouped by user and sorted by time; ties keep the order of the
        rows.

        Args:
            source (`str`, `Path`, `pandas.DataFrame`, [`datasets.Dataset`] or `pyarrow.Table`): What to read.
            format (`str`, *optional*): One of the above. By default it follows from the names of the files; `"hub"`
                must be given.
            columns (`Mapping[str, str]`, *optional*): Names of the columns `"user"`, `"item"`, `"time"` and
                `"rating"`. Needed where they differ from the usual: user, user_id, userId, reviewerID; item, item_id,
                itemId, parent_asin, asin, movieId; timestamp, time, unixReviewTime, date; rating, overall.
            time_unit (`str`, *optional*): Unit of times that are numbers: `"s"`, `"ms"`, `"us"` or `"ns"`; they become
                seconds. Defaults to `"ms"` for a source with a column `parent_asin` (Amazon 2023), otherwise to `"s"`.
            in_order (`bool`, *optional*, defaults to `False`): The rows of each user are in time order already; no
                column of times is read.
            min_rating (`float`, *optional*): Minimum rating to keep.
            items (`Collection[str]`, *optional*): All known items, such as `catalog.item_ids`; a row of another item
                is bad.
            bad_rows (`str`, *optional*, defaults to `"raise"`): `"raise"` refuses rows without a user, item or time,
                of a wrong type or format, or of an unknown item. `"drop"` leaves them out, logs how many there are of
                each kind, and keeps their line numbers in `bad_rows` of the result.
            split (`str`, *optional*, defaults to `"train"`): Split of a data set of the Hub.

        Raises:
            FileNotFoundError: If the source does not exist.
            ValueError: For bad rows, with their number by kind and the first line numbers of each; for a missing
                column; for a file of another format.
        """
        names: list[str] = []

        def roles(found: list[str]) -> dict[str, str]:
            names[:] = found
            return needed_columns(found, columns or {}, in_order, min_rating is not None)

        if isinstance(source, str | Path):
            format = find_format(source, format)
            if format in SEQUENCES and (columns or min_rating is not None or time_unit):
                raise ValueError(f"{source} ({format}) has no columns, ratings or units; leave those options out.")
            if format == "saved":
                return cls._from_columns(load_saved(Path(source), items))
            rows = read_path(source, format, roles, split)
        else:
            rows = read_table(source, roles)
        unit = time_unit or ("ms" if "parent_asin" in names else "s")
        read = to_columns(rows, time_unit=unit, min_rating=min_rating, items=items, bad_rows=bad_rows)
        return cls._from_columns(read, rows.bad)

    def save(self, directory: str | Path) -> None:
        """Write the columns to a folder, from which [`~Interactions.load`] maps them into memory."""
        save_columns(directory, self.columns)

    def __len__(self) -> int:
        return len(self.columns.users)

    def __repr__(self) -> str:
        sizes = f"{len(self)} users, {len(self.columns.items)} items, {self.num_interactions} interactions"
        return f"Interactions({sizes}, {'without' if self.columns.times is None else 'with'} timestamps)"

    def __eq__(self, other: object) -> bool:
        return self.columns == other.columns if isinstance(other, Interactions) else NotImplemented

    @cached_property
    def users(self) -> list[str]:
        """Distinct user ids, in the order in which they first appeared."""
        return self.columns.users.to_pylist()  # type: ignore[no-any-return]

    @property
    def items(self) -> list[str]:
        """Distinct item ids, sorted."""
        return self.columns.names.tolist()  # type: ignore[no-any-return]

    @property
    def sequences(self) -> Sequence[list[str]]:
        """Item ids of each user, oldest first. Each list is made when it is asked for."""
        return LazyRows(partial(_sequence, self.columns), range(len(self)))

    @property
    def timestamps(self) -> Sequence[list[float]] | None:
        """Times of each user's interactions. Each list is made when it is asked for."""
        return None if self.columns.times is None else LazyRows(partial(_times, self.columns), range(len(self)))

    @property
    def num_interactions(self) -> int:
        """Number of interactions, repeats included."""
        return len(self.columns.item_codes)

    def history(self, user: str) -> list[str]:
        """
        Item ids of one user, oldest first. It takes milliseconds, since no list of all users is made.

        Raises:
            ValueError: For an unknown user.
        """
        columns = self.columns
        row = pc.index(columns.users, str(user)).as_py()
        if row < 0:
            raise ValueError(
                f"Got the user {user!r}, who is not among the {len(self)} users. Ids look like "
                f"{', '.join(map(repr, columns.users[:3].to_pylist()))}; give one of them."
            )
        return columns.items.take(columns.item_codes[columns.offsets[row] : columns.offsets[row + 1]]).to_pylist()  # type: ignore[no-any-return]

    def filter(
        self,
        items: Collection[str] | None = None,
        users: Collection[str] | None = None,
        min_items: int = 1,
        drop_repeats: DropRepeats = False,
        start: float | str | None = None,
        end: float | str | None = None,
        max_items: int | None = None,
    ) -> Interactions:
        """
        Keep the interactions that meet all conditions; the result is a new object.

        The order is: `items`, `users` and the date window; then `drop_repeats`; then `max_items`; then `min_items`.

        Args:
            items (`Collection[str]`, *optional*): Items to keep, for example those that have a title.
            users (`Collection[str]`, *optional*): Users to keep.
            min_items (`int`, *optional*, defaults to `1`): Minimum number of interactions of a user, counted after
                everything else has been removed.
            drop_repeats (`bool` or `str`, *optional*, defaults to `False`): `"consecutive"` (or `True`) drops an item
                that directly follows itself; `"exact"` keeps one of the interactions with equal user, item and time;
                `"keep_first"` and `"keep_last"` keep one interaction of each user with each item.
            start (`float` or `str`, *optional*): Inclusive start of the date window: a number in the unit of
                `timestamps`, or an ISO date (midnight UTC unless it names another time or zone).
            end (`float` or `str`, *optional*): Exclusive end of the date window.
            max_items (`int`, *optional*): Maximum number of interactions of a user; the latest are kept.

        Raises:
            ValueError: For a date window or exact repeats without timestamps, or limits below 1.
        """
        if min_items < 1 or (max_items is not None and max_items < 1):
            raise ValueError(f"Got min_items={min_items} and max_items={max_items}; expected at least 1.")
        columns, num_users = self.columns, len(self)
        mask = np.ones(self.num_interactions, dtype=bool)
        if items is not None:
            mask &= within(columns.items, items)[columns.item_codes]
        if users is not None:
            mask &= np.repeat(within(columns.users, users), np.diff(columns.offsets))
        if start is not None:
            mask &= timed(columns.times) >= moment(start, columns.times)
        if end is not None:
            mask &= timed(columns.times) < moment(end, columns.times)
        kept = np.flatnonzero(mask)
        rows = columns.user_rows()[kept]
        times = None if columns.times is None else columns.times[kept]
        unrepeated = not_repeated(rows, columns.item_codes[kept], times, drop_repeats)
        kept, rows = kept[unrepeated], rows[unrepeated]
        if max_items is not None:
            ends = np.cumsum(np.bincount(rows, minlength=num_users))  # (U,)
            latest = np.arange(len(kept)) >= ends[rows] - max_items
            kept, rows = kept[latest], rows[latest]
        kept = kept[(np.bincount(rows, minlength=num_users) >= min_items)[rows]]
        return Interactions._from_columns(columns.select(kept))

    def k_core(self, k: int) -> Interactions:
        """
        Remove users and items with fewer than `k` interactions, repeatedly, until there are none.

        Args:
            k (`int`): Minimum number of interactions of every remaining user and item.

        Raises:
            ValueError: If nothing remains.
        """
        kept = core(self.columns.user_rows(), self.columns.item_codes, k)
        if not len(kept):
            raise ValueError(f"The {k}-core is empty: no users and items with {k} interactions each; lower k.")
        return Interactions._from_columns(self.columns.select(kept))

    def leave_one_out(self, short_users: Literal["refuse", "train"] = "refuse") -> Splits:
        """
        Split each user's sequence: the last item is for test, the one before it for validation, the rest for training.

        Args:
            short_users (`str`, *optional*, defaults to `"refuse"`): Treatment of users with one or two items, of whom
                nothing would be left for training. `"refuse"` raises an error. `"train"` puts all their items into
                training and their ids into `users_without_test`.

        Raises:
            ValueError: If there are short users and `short_users="refuse"`.
        """
        return leave_one_out(self.columns, short_users)

    def global_time(
        self,
        validation_start: float | str | None = None,
        test_start: float | str | None = None,
        *,
        validation_share: float | None = None,
        test_share: float | None = None,
    ) -> Splits:
        """
        Split all users at the same two moments, so that no training interaction is later than a question.

        Every interaction from `validation_start` on becomes a question, with all of the user's earlier interactions as
        history. Give two moments, or two shares of all interactions. Interactions of one moment stay together, so a
        share may come out larger.

        Args:
            validation_start (`float` or `str`, *optional*): Inclusive start of validation, in the unit of `timestamps`
                or as an ISO date (midnight UTC unless it names another time or zone).
            test_start (`float` or `str`, *optional*): Inclusive start of test.
            validation_share (`float`, *optional*): Share of the interactions in validation, such as 0.1.
            test_share (`float`, *optional*): Share of the interactions in test, which are the latest.

        Raises:
            ValueError: Without timestamps, if the moments are out of order, or if a split would be empty.
        """
        return global_time(self.columns, (validation_start, test_start), (validation_share, test_share))


def _sequence(columns: Columns, row: int) -> list[str]:
    return columns.item_list(columns.offsets[row], columns.offsets[row + 1])


def _times(columns: Columns, row: int) -> list[float]:
    assert columns.times is not None
    return columns.times[columns.offsets[row] : columns.offsets[row + 1]].tolist()  # type: ignore[no-any-return]
