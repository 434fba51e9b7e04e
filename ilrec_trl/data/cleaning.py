"""Which interactions to keep, found for whole columns at once."""

from __future__ import annotations

from collections.abc import Collection
from datetime import UTC, datetime
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from .columns import id_column


DropRepeats = bool | Literal["consecutive", "exact", "keep_first", "keep_last"]
_LATEST_SECONDS = 1e11  # the year 5138: larger times have another unit


def timed(times: NDArray[np.float64] | None) -> NDArray[np.float64]:
    """The times, or an error if there are none."""
    if times is None:
        raise ValueError("This needs timestamps, but these interactions have none; load interactions with timestamps.")
    return times


def moment(when: float | str, times: NDArray[np.float64] | None) -> float:
    """A time in the unit of `times`, given in that unit or as an ISO date (UTC unless it names another zone)."""
    times = timed(times)
    if not isinstance(when, str):
        return float(when)
    try:
        date = datetime.fromisoformat(when)
    except ValueError as error:
        raise ValueError(
            f"Got the time {when!r}; expected a date such as '2018-10-01' or '2018-10-01T12:00'."
        ) from error
    if len(times) and np.abs(times).max() > _LATEST_SECONDS:
        raise ValueError(
            f"The date {when!r} needs times in seconds, and these reach {times.max():.0f}; load them with the right "
            '`time_unit`, such as "ms".'
        )
    return (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp()


def within(column: pa.Array, wanted: Collection[Any]) -> NDArray[np.bool_]:
    """Mask `(I,)` of the ids of a column that are among the wanted ones."""
    chosen = id_column(list(wanted), "id")
    return pc.is_in(column, value_set=chosen).to_numpy(zero_copy_only=False)  # type: ignore[no-any-return]


def not_repeated(
    rows: NDArray[np.int32], codes: NDArray[np.int32], times: NDArray[np.float64] | None, which: DropRepeats
) -> NDArray[np.bool_]:
    """
    Mask `(N,)` of the interactions that are not repeats.

    Args:
        rows (`np.ndarray` of shape `(N,)`): User row of each interaction, ascending.
        codes (`np.ndarray` of shape `(N,)`): Item code of each interaction.
        times (`np.ndarray` of shape `(N,)`): Times, ascending within a user.
        which (`bool` or `str`): See [`Interactions.filter`].
    """
    keep = np.ones(len(codes), dtype=bool)
    if which is False:
        return keep
    if which is True or which == "consecutive":
        keep[1:] = (codes[1:] != codes[:-1]) | (rows[1:] != rows[:-1])
        return keep
    if which == "exact" and times is None:
        raise ValueError('drop_repeats="exact" compares user, item and time, and these interactions have no times.')
    if which not in ("exact", "keep_first", "keep_last"):
        raise ValueError(
            f'Got drop_repeats={which!r}; expected False, "consecutive", "exact", "keep_first" or "keep_last".'
        )
    pairs = rows.astype(np.int64) * (int(codes.max(initial=0)) + 1) + codes
    # Stable, so that the interactions of one user and item stay in time order and equal times are neighbours
    order = np.argsort(pairs, kind="stable")
    pairs = pairs[order]
    same = pairs[1:] == pairs[:-1]
    if which == "exact" and times is not None:
        same &= times[order][1:] == times[order][:-1]
    repeated = order[:-1][same] if which == "keep_last" else order[1:][same]
    keep[repeated] = False
    return keep


def core(rows: NDArray[np.int32], codes: NDArray[np.int32], k: int) -> NDArray[np.int64]:
    """Positions of the k-core: users and items with fewer than `k` interactions are removed until there are none."""
    places = np.arange(len(codes))
    while True:
        frequent = np.bincount(codes) >= k
        kept = frequent[codes]
        kept &= (np.bincount(rows[kept], minlength=int(rows.max(initial=-1)) + 1) >= k)[rows]
        if kept.all():
            break
        rows, codes, places = rows[kept], codes[kept], places[kept]
    return places
