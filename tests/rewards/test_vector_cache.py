import random

import pytest
import torch

from ilrec_trl.rewards.vector_cache import VectorCache


class Sums:
    """Stands for a model: the vector of a history is its sum and its length. It counts what it is asked."""

    def __init__(self):
        self.asked = []

    def __call__(self, histories):
        self.asked += [tuple(history) for history in histories]
        return torch.tensor([[float(sum(history)), float(len(history))] for history in histories])


def expected(histories):
    return [[sum(history), len(history)] for history in histories]


@pytest.mark.parametrize("mib", [0.0, 0.004, 1.0])
def test_vectors_are_right_whatever_is_kept(mib):
    draw = random.Random(0)
    histories = [[draw.randrange(5) for _ in range(draw.randint(1, 3))] for _ in range(400)]
    cache = VectorCache(Sums(), width=2, length=3, mib=mib)
    for start in range(0, 400, 7):
        batch = histories[start : start + 7]
        assert cache(batch).tolist() == expected(batch)
    assert len(cache.places) <= cache.room
    distinct = len({tuple(history) for history in histories})
    assert len(cache.places) == min(distinct, cache.room)
    assert cache.room == {0.0: 0, 0.004: 22, 1.0: 5548}[mib]


def test_each_distinct_history_is_computed_once():
    model = Sums()
    cache = VectorCache(model, width=2, length=3, mib=1.0)
    cache([[1], [2], [1]])
    assert cache([[2], [3, 4], [1], [3, 4]]).tolist() == expected([[2], [3, 4], [1], [3, 4]])
    assert sorted(model.asked) == [(1,), (2,), (3, 4)]
    assert cache([[1, 2], [12]]).tolist() == [[3.0, 2.0], [12.0, 1.0]]  # ids run together are another history


def test_what_was_kept_first_stays():
    model = Sums()
    cache = VectorCache(model, width=2, length=3, mib=0.0004)
    assert cache.room == 2
    cache([[1], [2], [3]])
    model.asked.clear()
    assert cache([[3], [2], [1]]).tolist() == expected([[3], [2], [1]])
    assert model.asked == [(3,)]


def test_a_negative_bound_is_refused():
    with pytest.raises(ValueError, match="cache_mib=-1; expected 0"):
        VectorCache(Sums(), width=2, length=3, mib=-1)
