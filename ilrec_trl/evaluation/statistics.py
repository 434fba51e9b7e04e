"""Do two methods differ, by users and by seeds: a paired bootstrap over both, and Holm's correction."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


Floats = NDArray[np.float64]
_AT_ONCE = 1 << 22  # counts of resampled users in memory: 32 MiB


@dataclass(frozen=True)
class Difference:
    """
    How one method differs from another, question by question.

    Attributes:
        values (`np.ndarray` of shape `(S, Q)`): `a` minus `b` of one metric, for each paired seed and question.
        users (`np.ndarray` of shape `(Q,)`): Number of the user of each question, from 0.
    """

    values: Floats
    users: NDArray[np.int64]


@dataclass(frozen=True)
class BootstrapTest:
    """
    Outcome of [`paired_bootstrap`].

    Attributes:
        difference (`float`): Mean over questions and seeds.
        low, high (`float`): Confidence interval.
        p_value (`float`): Two-sided p-value of "the mean difference is 0".
        users_error (`float`): Standard error from the choice of users alone.
        seeds_error (`float`, *optional*): Standard error from the choice of seeds; `None` with one seed.
    """

    difference: float
    low: float
    high: float
    p_value: float
    users_error: float
    seeds_error: float | None


def paired_bootstrap(
    differences: Sequence[Difference], *, resamples: int = 10_000, confidence: float = 0.95, seed: int = 0
) -> list[BootstrapTest]:
    """
    Resample users and seeds together.

    A resample draws as many users as there are, each with all questions and seeds, which gives a mean difference; and
    as many seeds as there are, whose mean difference departs from that of all seeds. The departure, times
    sqrt(S / (S - 1)) since S seeds differ less from their own mean than from the true one, is added. All differences
    share the drawn users.

    With one seed the interval covers the choice of users alone. Where seeds differ far more than users (compare
    `seeds_error` with `users_error`), a few seeds tell too little of their spread, and the interval is too narrow.

    Args:
        differences (`list[Difference]`): What to test; each with the same numbering of users.
        resamples (`int`, *optional*, defaults to `10_000`): Number of resamples.
        confidence (`float`, *optional*, defaults to `0.95`): Of the interval between quantiles of the resamples.
        seed (`int`, *optional*, defaults to `0`): Seed of the draws.

    Returns:
        `list[BootstrapTest]`, one a difference.

    Raises:
        `ValueError`: for a difference without questions, or values that are not finite.
    """
    if not differences:
        return []
    for entry in differences:
        if entry.values.ndim != 2 or not entry.values.size or entry.values.shape[1:] != entry.users.shape:
            raise ValueError(
                f"got values of shape {entry.values.shape} for {entry.users.shape} users; expected (S, Q) and (Q,) "
                "with at least one seed and question"
            )
        if not np.isfinite(entry.values).all():
            raise ValueError("differences must be finite numbers")
    size = 1 + max(int(entry.users.max()) for entry in differences)
    sums = np.array([np.bincount(entry.users, entry.values.mean(0), size) for entry in differences])  # (D, U)
    asked = np.array([np.bincount(entry.users, minlength=size) for entry in differences], dtype=np.float64)  # (D, U)
    generator = np.random.default_rng(seed)
    tail = (1 - confidence) / 2
    draws = _user_draws(sums.T, asked.T, resamples, generator)  # (R, D)
    tests = []
    for entry, drawn in zip(differences, draws.T, strict=True):
        users_error = float(drawn.std(ddof=1))
        means = entry.values.mean(1)  # (S,)
        departures, seeds_error = _seed_draws(means, resamples, generator)
        low, high = np.quantile(drawn + departures, [tail, 1 - tail])
        p_value = _p_value(drawn + departures)
        tests.append(BootstrapTest(float(means.mean()), float(low), float(high), p_value, users_error, seeds_error))
    return tests


def holm(p_values: Sequence[float]) -> list[float]:
    """
    P-values corrected for their number by Holm's step-down rule, in the order given.

    ```python
    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]

    ```
    """
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for place, row in enumerate(sorted(range(len(p_values)), key=lambda row: p_values[row])):
        largest = max(largest, min(1.0, (len(p_values) - place) * p_values[row]))
        adjusted[row] = largest
    return adjusted


def _user_draws(sums: Floats, asked: Floats, resamples: int, generator: np.random.Generator) -> Floats:
    """Mean `(R, D)` over the questions of drawn users; their sums and numbers are `(U, D)`."""
    parts = []
    for counts in _draw_counts(len(sums), resamples, generator):
        number = counts @ asked  # (r, D)
        parts.append(np.divide(counts @ sums, number, out=np.zeros_like(number), where=number > 0))
    return np.concatenate(parts)


def _draw_counts(size: int, resamples: int, generator: np.random.Generator) -> Iterator[Floats]:
    """How often each user is drawn `(r, U)`, in parts that fit into memory."""
    rows = max(1, _AT_ONCE // size)
    for start in range(0, resamples, rows):
        number = min(rows, resamples - start)
        drawn = generator.integers(0, size, (number, size))
        drawn += np.arange(number)[:, None] * size
        yield np.bincount(drawn.ravel(), minlength=number * size).reshape(number, size).astype(np.float64)


def _seed_draws(means: Floats, resamples: int, generator: np.random.Generator) -> tuple[Floats, float | None]:
    """Departures `(R,)` of drawn seeds' mean from that of all seeds, and the standard error over seeds."""
    seeds = len(means)
    if seeds == 1:
        return np.zeros(resamples), None
    drawn = means[generator.integers(0, seeds, (resamples, seeds))].mean(1)
    return math.sqrt(seeds / (seeds - 1)) * (drawn - means.mean()), float(means.std(ddof=1) / math.sqrt(seeds))


def _p_value(draws: Floats) -> float:
    """Twice the share of resamples on the rarer side of 0; never 0, since one more resample might lie there."""
    rarer = min((draws <= 0).sum(), (draws >= 0).sum())
    return float(min(1.0, 2 * (rarer + 1) / (len(draws) + 1)))
