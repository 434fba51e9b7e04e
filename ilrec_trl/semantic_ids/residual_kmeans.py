"""Residual k-means: vectors become codes level by level, with limits on the number of items of a code."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
BALANCE_ROUNDS = 10  # rounds of assignment and mean in balanced k-means
CHUNK = 65_536  # rows whose distances are in memory at once where only the nearest code is wanted


def residual_codes(
    vectors: Floats,
    sizes: Sequence[int],
    codebook: Callable[[int, Floats], Floats],
    *,
    balance: float | None = None,
    occupied: Ints | None = None,
) -> CodedVectors:
    """
    Give vectors codes, so that no two have the same codes, and none has those of an item that keeps its own.

    In each level an item takes the code of the nearest centroid, with two exceptions. A prefix takes no more items
    than there are codes below it, which is one item in the last level; the others take the nearest code with room
    ([`admit`]). With `balance`, a code takes no more than `balance` times the mean number of items; uniqueness goes
    first and may need a few more.

    Args:
        vectors (`np.ndarray` of shape `(N, D)`): Finite vectors. There must be room for them beside `occupied`.
        sizes (`list[int]`): Number of codes of each level.
        codebook (`Callable`): `(level, residuals) -> (K, D)` centroids, or `(K, 0)` for a level that only numbers.
        balance (`float`, *optional*): At least 1. By default only uniqueness limits the items of a code.
        occupied (`np.ndarray` of shape `(M, L)`, *optional*): Codes of items that keep their own.
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
        room = math.prod(sizes[level + 1 :])  # distinct items below one code
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


@dataclass
class CodedVectors:
    """
    The result of [`residual_codes`].

    Args:
        codes (`np.ndarray` of shape `(N, L)`): One code for each level; no two rows are equal.
        codebooks (`list[np.ndarray]`): Centroids of each level, `(K, D)`; `(K, 0)` for a level that only numbers.
        errors (`list[float]`): Mean squared length of the residuals after each level with centroids.
        collisions (`int`): Number of items with the same nearest codes as an earlier item.
        moved (`int`): Number of items that got another code than their nearest, so that no two rows are equal.
    """

    codes: Ints
    codebooks: list[Floats] = field(default_factory=list)
    errors: list[float] = field(default_factory=list)
    collisions: int = 0
    moved: int = 0


def fit_codebook(residuals: Floats, size: int, seed: int, iterations: int) -> Floats:
    """
    Centroids `(K, D)` by faiss's k-means.

    Args:
        residuals (`np.ndarray` of shape `(N, D)`): Residuals of the levels before.
        size (`int`): Number of centroids K. Fewer vectors are their own centroids, repeated in turn: the first of
            equals is the nearest code, and the others are room for more items.
        seed (`int`): Seed.
        iterations (`int`): Rounds of k-means.
    """
    if len(residuals) <= size:
        return residuals[np.arange(size) % len(residuals)]
    faiss = _faiss()
    # faiss samples at most 256 vectors for each centroid, and would warn of fewer than 39
    kmeans = faiss.Kmeans(residuals.shape[1], size, niter=iterations, seed=seed, min_points_per_centroid=1)
    kmeans.train(residuals)
    return kmeans.centroids.astype(np.float32)


def nearest_codes(residuals: Floats, centroids: Floats) -> Ints:
    """Code `(N,)` of the nearest centroid of each row, the first of equals."""
    starts = range(0, len(residuals), CHUNK)
    return np.concatenate([_distances(residuals[start : start + CHUNK], centroids).argmin(1) for start in starts])


def balanced_codes(residuals: Floats, centroids: Floats, capacity: int) -> tuple[Floats, Ints]:
    """
    K-means from given centroids, with at most `capacity` vectors in a cluster: centroids `(K, D)` and codes `(N,)`.
    """
    everyone = np.zeros(len(residuals), np.int64)
    for _ in range(BALANCE_ROUNDS):
        codes = admit(_distances(residuals, centroids), everyone, capacity)
        order = np.argsort(codes, kind="stable")
        used, starts, counts = np.unique(codes[order], return_index=True, return_counts=True)
        centroids = centroids.copy()
        centroids[used] = np.add.reduceat(residuals[order], starts) / counts[:, None]
    return centroids, admit(_distances(residuals, centroids), everyone, capacity)


def admit(distances: Floats, groups: Ints, capacity: int, occupied: Ints | None = None) -> Ints:
    """
    Give every item the nearest code that has room for it, by deferred acceptance (Gale and Shapley, 1962).

    Each item asks for its nearest code. A code keeps the `capacity` nearest items of each group and rejects the rest,
    which ask for their next code, until no item is rejected. The result is stable: no item has a nearer code that has
    room, or that holds an item farther from it.

    Args:
        distances (`np.ndarray` of shape `(N, K)`): From each item to each code.
        groups (`np.ndarray` of shape `(N,)`): Group of each item; groups do not compete with each other.
        capacity (`int`): Number of items of one group that a code takes.
        occupied (`np.ndarray` of shape `(M,)`, *optional*): `group * K + code` of items that keep their places.

    Returns:
        `np.ndarray` of shape `(N,)`: A code for each item. Of equal distances, the smaller row goes first.

    Raises:
        ValueError: If a group has more items than all codes have room for.
    """
    size = distances.shape[1]
    order = np.argsort(distances, axis=1, kind="stable").astype(np.int32)  # (N, K)
    asked = np.zeros(len(distances), dtype=np.int64)  # (N,) number of codes that rejected the item
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
    Rows `(R,)` of the groups in which some code is wanted by more items than it has room for.

    Args:
        codes (`np.ndarray` of shape `(N,)`): The code that each item wants.
        groups, capacity, occupied: As in [`admit`].
        size (`int`): Number of codes.
    """
    keys = np.concatenate([groups * size + codes, np.empty(0, np.int64) if occupied is None else occupied])
    _, seat, wanted = np.unique(keys, return_inverse=True, return_counts=True)
    return np.flatnonzero(np.isin(groups, groups[(wanted > capacity)[seat[: len(codes)]]]))


def squared_distances(vectors: Floats, centroids: Floats) -> Floats:
    """Squared Euclidean distances `(N, K)` of vectors `(N, D)` from centroids `(K, D)`, never negative."""
    products = vectors @ centroids.T  # (N, K)
    products *= -2
    products += (centroids**2).sum(1)
    products += (vectors**2).sum(1)[:, None]
    return np.maximum(products, 0, out=products)


def _distances(residuals: Floats, centroids: Floats) -> Floats:
    """Squared distances `(N, K)`; all 0 in a level that only numbers."""
    if not centroids.shape[1]:
        return np.zeros((len(residuals), len(centroids)), np.float32)
    return squared_distances(residuals, centroids)


def _numbered(keys: Ints) -> Ints:
    """Keys of groups, replaced by numbers from 0."""
    return np.unique(keys, return_inverse=True)[1].astype(np.int64)


def _faiss():  # type: ignore[no-untyped-def]
    try:
        import faiss
    except ImportError as error:
        raise ImportError("Semantic IDs need faiss: pip install 'ilrec-trl[semantic-ids]'") from error
    return faiss
