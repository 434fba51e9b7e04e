"""Residual k-means: from vectors to codes, level by level, with a limit on how many items share a code."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


Floats = NDArray[np.float32]
Ints = NDArray[np.int64]


def squared_distances(vectors: Floats, centroids: Floats) -> Floats:
    """
    Squared Euclidean distances.

    Args:
        vectors (`np.ndarray` of shape `(N, D)`): Points.
        centroids (`np.ndarray` of shape `(K, D)`): What they are compared with.

    Returns:
        `np.ndarray` of shape `(N, K)`: never negative.
    """
    products = vectors @ centroids.T  # (N, K)
    products *= -2
    products += (centroids**2).sum(1)
    products += (vectors**2).sum(1)[:, None]
    return np.maximum(products, 0, out=products)


def admit(distances: Floats, groups: Ints, capacity: int, occupied: Ints | None = None) -> Ints:
    """
    Give every item the nearest code that has room for it: deferred acceptance (Gale and Shapley, 1962).

    Each item asks its nearest code; a code keeps the nearest `capacity` of those that ask within one group and turns
    the others away, who ask their next one, until nobody is turned away. The outcome is stable: no item has a nearer
    code that still has room, or that holds an item farther from it than this one.

    Args:
        distances (`np.ndarray` of shape `(N, K)`): From each item to each code.
        groups (`np.ndarray` of shape `(N,)`): The group of each item; groups do not compete with each other.
        capacity (`int`): Number of items that a code holds in one group.
        occupied (`np.ndarray` of shape `(M,)`, *optional*): `group * K + code` of items that keep their places.

    Returns:
        `np.ndarray` of shape `(N,)`: A code for each item; of equal distances the item of the smaller row goes first.

    Raises:
        ValueError: If a group has more items than all codes have room for.
    """
    size = distances.shape[1]
    order = np.argsort(distances, axis=1, kind="stable").astype(np.int32)  # (N, K)
    asked = np.zeros(len(distances), dtype=np.int64)  # (N,) how many codes have turned the item away
    codes = order[:, 0].astype(np.int64)
    taken, counts = np.unique(np.empty(0, np.int64) if occupied is None else occupied, return_counts=True)
    rows = np.arange(len(distances))
    while True:
        keys, seat, wanted = np.unique(groups * size + codes, return_inverse=True, return_counts=True)
        room = np.full(len(keys), capacity)
        shared = np.isin(keys, taken, assume_unique=True)
        room[shared] -= counts[np.searchsorted(taken, keys[shared])]
        full = rows[(wanted > room)[seat]]
        if not len(full):
            return codes
        full = full[np.lexsort((distances[full, codes[full]], seat[full]))]  # nearest first within each seat
        places = np.arange(len(full)) - np.searchsorted(seat[full], seat[full])
        rejected = full[places >= room[seat[full]]]
        asked[rejected] += 1
        if asked.max() == size:
            raise ValueError(f"More items in one group than {size} codes of {capacity} items each have room for.")
        codes[rejected] = order[rejected, asked[rejected]]


def crowded(codes: Ints, groups: Ints, size: int, capacity: int, occupied: Ints | None = None) -> Ints:
    """
    Rows of the groups in which some code is wanted by more items than it has room for.

    Args:
        codes (`np.ndarray` of shape `(N,)`): The codes that are wanted.
        groups, capacity, occupied: As in [`admit`].
        size (`int`): Number of codes.

    Returns:
        `np.ndarray` of shape `(R,)`: All rows of such groups, in order.
    """
    keys = np.concatenate([groups * size + codes, np.empty(0, np.int64) if occupied is None else occupied])
    _, seat, wanted = np.unique(keys, return_inverse=True, return_counts=True)
    return np.flatnonzero(np.isin(groups, groups[(wanted > capacity)[seat[: len(codes)]]]))


BALANCE_ROUNDS = 10  # of assignment and mean, after faiss
CHUNK = 65_536  # rows at a time where only the nearest code is wanted


@dataclass
class CodedVectors:
    """
    What [`residual_codes`] found.

    Args:
        codes (`np.ndarray` of shape `(N, L)`): One code a level; no two rows are equal.
        codebooks (`list[np.ndarray]`): Centroids of each level, `(K, D)`; `(K, 0)` for a level that only numbers.
        errors (`list[float]`): Mean squared length of what is left over after each level that has centroids.
        collisions (`int`): Number of items with the same nearest codes as an item before them.
        moved (`int`): Number of items that were given another code than their nearest, so that no two rows are equal.
    """

    codes: Ints
    codebooks: list[Floats] = field(default_factory=list)
    errors: list[float] = field(default_factory=list)
    collisions: int = 0
    moved: int = 0


def residual_codes(
    vectors: Floats,
    sizes: Sequence[int],
    codebook: Callable[[int, Floats], Floats],
    *,
    balance: float | None = None,
    occupied: Ints | None = None,
) -> CodedVectors:
    """
    Code vectors so that no two have the same codes, nor those of an item that has some already.

    In each level an item takes the nearest centroid, with two exceptions. A prefix takes no more items than can be
    told apart below it, which in the last level means one; who finds no room takes the nearest code that has some
    ([`~ilrec_trl.items.code_assignment.admit`]). And with `balance` a code takes no more than `balance` times the mean
    number of items a code; a few more where uniqueness asks for it, which goes first.

    Args:
        vectors (`np.ndarray` of shape `(N, D)`): Finite vectors; with `occupied` rows, no more than there is room for.
        sizes (`list[int]`): Number of codes of each level.
        codebook (`Callable`): `(level, residuals) -> (K, D)` centroids, or `(K, 0)` for a level that only numbers.
        balance (`float`, *optional*): At least 1. Without it nothing but uniqueness limits a code.
        occupied (`np.ndarray` of shape `(M, L)`, *optional*): Codes that are not to be given again.

    Returns:
        [`CodedVectors`]
    """
    held = np.empty((0, len(sizes)), np.int64) if occupied is None else occupied
    result = CodedVectors(np.empty((len(vectors), len(sizes)), np.int64))
    residuals = vectors.astype(np.float32, copy=True)
    groups, held_groups = np.zeros(len(vectors), np.int64), np.zeros(len(held), np.int64)
    wanted_groups, moved = groups, np.zeros(len(vectors), bool)
    for level, size in enumerate(sizes):
        centroids = codebook(level, residuals)
        if balance is not None and centroids.shape[1]:
            centroids, wanted = balanced_codes(residuals, centroids, math.ceil(balance * len(vectors) / size))
        else:
            wanted = nearest_codes(residuals, centroids)
        codes, taken = wanted.copy(), held_groups * size + held[:, level]
        room = math.prod(sizes[level + 1 :])  # items that can be told apart below one code
        rows = crowded(wanted, groups, size, room, taken)
        if len(rows):
            codes[rows] = admit(_distances(residuals[rows], centroids), groups[rows], room, taken)
        if centroids.shape[1]:
            residuals -= centroids[codes]
            result.errors.append(float((residuals.astype(np.float64) ** 2).sum(1).mean()))
            wanted_groups = _numbered(wanted_groups * size + wanted)
            moved |= codes != wanted
        result.codes[:, level] = codes
        result.codebooks.append(centroids)
        both = _numbered(np.concatenate([groups * size + codes, taken]))
        groups, held_groups = both[: len(codes)], both[len(codes) :]
    result.collisions = len(vectors) - len(np.unique(wanted_groups))
    result.moved = int(moved.sum())
    return result


def fit_codebook(residuals: Floats, size: int, seed: int, iterations: int) -> Floats:
    """
    Centroids by faiss's k-means.

    Args:
        residuals (`np.ndarray` of shape `(N, D)`): What the levels before have left over.
        size (`int`): Number of centroids. Fewer vectors than that are their own centroids, repeated in turn: the
            nearest code is then the first of equals, and the others are room for more.
        seed (`int`): Seed.
        iterations (`int`): Rounds of k-means.

    Returns:
        `np.ndarray` of shape `(K, D)`
    """
    if len(residuals) <= size:
        return residuals[np.arange(size) % len(residuals)]
    faiss = _faiss()
    # faiss draws 256 vectors a centroid where there are more, and would warn below 39 a centroid
    kmeans = faiss.Kmeans(residuals.shape[1], size, niter=iterations, seed=seed, min_points_per_centroid=1)
    kmeans.train(residuals)
    return kmeans.centroids.astype(np.float32)


def nearest_codes(residuals: Floats, centroids: Floats) -> Ints:
    """The nearest centroid of each row, the first of equals: `(N,)`."""
    starts = range(0, len(residuals), CHUNK)
    return np.concatenate([_distances(residuals[start : start + CHUNK], centroids).argmin(1) for start in starts])


def balanced_codes(residuals: Floats, centroids: Floats, capacity: int) -> tuple[Floats, Ints]:
    """
    K-means in which no cluster has more than `capacity` members, from given centroids on.

    Returns:
        `tuple`: Centroids `(K, D)` and codes `(N,)`.
    """
    everyone = np.zeros(len(residuals), np.int64)
    for _ in range(BALANCE_ROUNDS):
        codes = admit(_distances(residuals, centroids), everyone, capacity)
        order = np.argsort(codes, kind="stable")
        used, starts, counts = np.unique(codes[order], return_index=True, return_counts=True)
        centroids = centroids.copy()
        centroids[used] = np.add.reduceat(residuals[order], starts) / counts[:, None]
    return centroids, admit(_distances(residuals, centroids), everyone, capacity)


def _distances(residuals: Floats, centroids: Floats) -> Floats:
    """Squared distances `(N, K)`; all equal in a level that only numbers."""
    if not centroids.shape[1]:
        return np.zeros((len(residuals), len(centroids)), np.float32)
    return squared_distances(residuals, centroids)


def _numbered(keys: Ints) -> Ints:
    """The same groups, numbered from 0."""
    return np.unique(keys, return_inverse=True)[1].astype(np.int64)


def _faiss():  # type: ignore[no-untyped-def]
    try:
        import faiss
    except ImportError as error:
        raise ImportError("Semantic IDs need faiss: pip install 'ilrec-trl[semantic-ids]'") from error
    return faiss
