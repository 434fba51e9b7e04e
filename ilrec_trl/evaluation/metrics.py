"""
Hit@K, NDCG@K and MRR on expected ranks, and their standard errors.

Every metric is a pure function of two arrays over users: `starts`, the first rank the target can have (1 is best,
`inf` when the target was not retrieved), and `ties`, the number of items that share its rank. The language model
cannot distinguish items with one token sequence, so the target has each of the ranks `start .. start + ties - 1` with
equal probability, and a metric is its expectation over them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray


Floats = NDArray[np.float64]

_RANK_GAIN = {
    "hit": lambda rank, k: rank <= k,
    "ndcg": lambda rank, k: (rank <= k) / np.log2(rank + 1.0),
    "mrr": lambda rank, k: 1.0 / rank,
}


def _expectation(metric: str, starts: ArrayLike, ties: ArrayLike, k: float) -> Floats:
    start, tie = np.asarray(starts, dtype=np.float64), np.asarray(ties, dtype=np.int64)  # (U,), (U,)
    if start.shape != tie.shape or start.ndim != 1:
        raise ValueError(f"got starts of shape {start.shape} and ties of shape {tie.shape}; expected two equal (U,)")
    if not (np.all(start >= 1) and np.all(tie >= 1)):
        raise ValueError("ranks start at 1 and at least one item (the target) sits at its place; use inf for no rank")
    if not k >= 1:
        raise ValueError(f"got k={k}; expected a cut-off of at least 1")
    total = np.zeros_like(start)  # (U,)
    for offset in range(int(tie.max(initial=0))):
        total += np.where(offset < tie, _RANK_GAIN[metric](start + offset, k), 0.0)
    return total / tie


def hit_rate(starts: ArrayLike, ties: ArrayLike, k: int) -> Floats:
    """
    Probability that the target is among the first `k`, one value for each user.

    Args:
        starts (`np.ndarray` of shape `(U,)`): First rank the target can have, from 1; `inf` where it was not
            retrieved.
        ties (`np.ndarray` of shape `(U,)`): Number of items that share the target's rank, itself included.
        k (`int`): Cut-off.

    Returns:
        `np.ndarray` of shape `(U,)`, between 0 and 1.

    Raises:
        `ValueError`: for a rank or number of ties below 1, arrays of different shape, or `k` below 1.

    Example:

    ```python
    >>> hit_rate(starts=[1, 10, 11], ties=[1, 2, 1], k=10).tolist()
    [1.0, 0.5, 0.0]

    ```
    """
    return _expectation("hit", starts, ties, k)


def ndcg(starts: ArrayLike, ties: ArrayLike, k: int) -> Floats:
    """
    Expected NDCG@k of one relevant item, `1 / log2(rank + 1)` within the first `k`. Arguments as in [`hit_rate`].

    ```python
    >>> ndcg(starts=[1, 3, 11], ties=[1, 1, 1], k=10).tolist()
    [1.0, 0.5, 0.0]

    ```
    """
    return _expectation("ndcg", starts, ties, k)


def reciprocal_rank(starts: ArrayLike, ties: ArrayLike) -> Floats:
    """
    Expected `1 / rank`; 0 where the target was not retrieved. Arguments as in [`hit_rate`]. With beam search the list
    ends after the beams, so the mean (MRR) is a lower bound of that over the whole catalogue.

    ```python
    >>> reciprocal_rank(starts=[1, 2, float("inf")], ties=[1, 1, 1]).tolist()
    [1.0, 0.5, 0.0]

    ```
    """
    return _expectation("mrr", starts, ties, math.inf)


def metric_values(starts: ArrayLike, ties: ArrayLike, k: Sequence[int] = (1, 5, 10)) -> dict[str, Floats]:
    """
    Every metric by its name (`hit@k` for each k, `ndcg@k` for each k above 1, `mrr`), one value for each user. NDCG@1
    is Hit@1.
    """
    values = {f"hit@{cut}": hit_rate(starts, ties, cut) for cut in k}
    values |= {f"ndcg@{cut}": ndcg(starts, ties, cut) for cut in k if cut > 1}
    return values | {"mrr": reciprocal_rank(starts, ties)}


def standard_error(values: ArrayLike, users: Sequence[Any] | None = None) -> float:
    """
    Standard error of the mean over users; `nan` for fewer than two users.

    Args:
        values (`np.ndarray` of shape `(Q,)`): A metric, question by question.
        users (`list`, *optional*): The user of each question. With several questions of a user the error is
            cluster-robust: users are drawn, each with all questions. By default each question is of another user.
    """
    array = np.asarray(values, dtype=np.float64)
    sums = _sums_of_users(array - array.mean(), users) if array.size else array  # (U,)
    size = len(sums)
    return math.sqrt(size / (size - 1) * float((sums**2).sum())) / array.size if size > 1 else math.nan


def _sums_of_users(values: Floats, users: Sequence[Any] | None) -> Floats:
    if users is None:
        return values
    if len(users) != len(values):
        raise ValueError(f"got {len(values)} values and {len(users)} users; expected the user of each value")
    numbers = {user: number for number, user in enumerate(dict.fromkeys(users))}
    return np.bincount([numbers[user] for user in users], values).astype(np.float64)


def expected_ranks(
    predictions: Sequence[Sequence[Any]], references: Sequence[Any], scores: Sequence[Sequence[float]] | None = None
) -> tuple[Floats, NDArray[np.int64]]:
    """
    Expected ranks of the targets in ranked lists.

    Args:
        predictions (`list[list]`): One ranked list of distinct items for each user, best first.
        references (`list`): The target of each user.
        scores (`list[list[float]]`, *optional*): Scores of `predictions`; items with equal scores share a rank. By
            default no two items do.

    Returns:
        `tuple` of `starts` and `ties`, both of shape `(U,)`, as [`hit_rate`] takes them.

    Raises:
        `ValueError`: for lists of different length, or an item listed twice for one user.
    """
    if len(predictions) != len(references) or (scores is not None and len(scores) != len(predictions)):
        raise ValueError(f"got {len(predictions)} ranked lists for {len(references)} targets; expected one for each")
    starts, ties = np.full(len(references), np.inf), np.ones(len(references), dtype=np.int64)
    for row, (items, target) in enumerate(zip(predictions, references, strict=True)):
        if len(set(items)) != len(items):
            raise ValueError(f"row {row} recommends an item twice; remove duplicates before measuring")
        if target not in items:
            continue
        place = list(items).index(target)
        row_scores = scores[row] if scores is not None else range(len(items))
        if len(row_scores) != len(items):
            raise ValueError(f"row {row} has {len(items)} items but {len(row_scores)} scores; expected one for each")
        same = [index for index, score in enumerate(row_scores) if score == row_scores[place]]
        starts[row], ties[row] = same[0] + 1, len(same)
    return starts, ties
