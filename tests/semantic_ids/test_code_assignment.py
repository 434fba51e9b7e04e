"""Deferred acceptance against the textbook's loop, and what makes its outcome stable."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ilrec_trl.semantic_ids.residual_kmeans import admit, crowded, squared_distances
from tests.references import naive_admit


@st.composite
def problems(draw):
    size, num_groups, capacity = draw(st.integers(1, 5)), draw(st.integers(1, 3)), draw(st.integers(1, 3))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    groups, occupied = [], []
    for group in range(num_groups):
        seats = [group * size + code for code in range(size) for _ in range(capacity)]
        generator.shuffle(seats)
        taken = draw(st.integers(0, len(seats)))
        occupied += seats[:taken]
        groups += [group] * draw(st.integers(0, len(seats) - taken))
    groups = generator.permutation(groups or [0]) if groups else np.array([], int)
    whole = draw(st.booleans())  # ties
    distances = generator.integers(0, 3, (len(groups), size)) if whole else generator.random((len(groups), size))
    return distances.astype(np.float32), groups.astype(np.int64), capacity, np.array(occupied, np.int64)


@settings(deadline=None, max_examples=100)
@given(problems())
def test_admit_equals_the_loop(problem):
    distances, groups, capacity, occupied = problem
    if len(groups):
        codes = admit(distances, groups, capacity, occupied)
        assert codes.tolist() == naive_admit(distances.tolist(), groups.tolist(), capacity, occupied.tolist())


def test_the_nearest_keeps_the_code_and_the_other_takes_its_next():
    distances = np.array([[0.2, 0.3, 9], [0.1, 0.8, 0.7], [5, 5, 0.0]], np.float32)
    assert admit(distances, np.zeros(3, np.int64), 1).tolist() == [1, 0, 2]
    assert admit(distances, np.array([0, 1, 0]), 1).tolist() == [0, 0, 2]  # groups do not compete
    assert admit(distances, np.zeros(3, np.int64), 2).tolist() == [0, 0, 2]
    assert admit(distances, np.zeros(3, np.int64), 3, np.array([0, 0, 0])).tolist() == [1, 2, 2]
    with pytest.raises(ValueError, match="More items in one group than 3 codes of 1 items"):
        admit(np.zeros((4, 3), np.float32), np.zeros(4, np.int64), 1)


def test_crowded_names_whole_groups():
    codes, groups = np.array([0, 0, 1, 0, 1]), np.array([0, 0, 0, 1, 1])
    assert crowded(codes, groups, 2, 1).tolist() == [0, 1, 2]
    assert crowded(codes, groups, 2, 2).tolist() == []
    assert crowded(codes, groups, 2, 1, occupied=np.array([3])).tolist() == [0, 1, 2, 3, 4]


def test_squared_distances():
    vectors, centroids = np.random.default_rng(0).random((2, 7, 5)).astype(np.float32)
    expected = ((vectors[:, None].astype(float) - centroids[None]) ** 2).sum(-1)
    np.testing.assert_allclose(squared_distances(vectors, centroids), expected, atol=1e-6)
    assert (squared_distances(vectors, vectors) >= 0).all()
