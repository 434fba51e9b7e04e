"""Codes under limits: so many items a code and no more, the nearest first. Arrays in, arrays out; numpy alone."""

from __future__ import annotations

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
