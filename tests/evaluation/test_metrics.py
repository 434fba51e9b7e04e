"""Metrics, proved by hand arithmetic; `log2(3) = 1.585`."""

import math

import numpy as np
import pytest

from ilrec_trl import MRR, NDCG, HitRate
from ilrec_trl.evaluation.metrics import (
    expected_ranks,
    hit_rate,
    metric_values,
    ndcg,
    reciprocal_rank,
    standard_error,
)
from tests.references import naive_expected_metrics


INF = float("inf")
LOG2_3 = math.log2(3)


@pytest.mark.parametrize(
    ("start", "ties", "k", "expected"),
    [
        (1, 1, 1, 1.0),
        (2, 1, 1, 0.0),
        (10, 1, 10, 1.0),
        (11, 1, 10, 0.0),
        (1, 3, 1, 1 / 3),  # the target is first in one order of three
        (4, 3, 5, 2 / 3),  # ranks 4, 5, 6: two of them within 5
        (INF, 1, 10, 0.0),
    ],
)
def test_hit_rate(start, ties, k, expected):
    assert hit_rate([start], [ties], k)[0] == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize(
    ("start", "ties", "k", "expected"),
    [
        (1, 1, 5, 1.0),
        (2, 1, 5, 1 / LOG2_3),
        (3, 1, 5, 1 / 2),
        (6, 1, 5, 0.0),
        (1, 3, 5, (1 + 1 / LOG2_3 + 1 / 2) / 3),
        (3, 2, 3, (1 / 2) / 2),  # ranks 3 and 4, the second beyond the cut-off
        (INF, 2, 5, 0.0),
    ],
)
def test_ndcg(start, ties, k, expected):
    assert ndcg([start], [ties], k)[0] == pytest.approx(expected, abs=1e-15)


def test_reciprocal_rank():
    values = reciprocal_rank([1, 2, 3, 1, INF], [1, 1, 2, 3, 1])
    assert values == pytest.approx([1, 1 / 2, (1 / 3 + 1 / 4) / 2, (1 + 1 / 2 + 1 / 3) / 3, 0], abs=1e-15)


def test_metrics_equal_their_naive_twin():
    generator = np.random.default_rng(0)
    starts = generator.integers(1, 30, 200).astype(float)
    starts[generator.random(200) < 0.3] = INF
    ties = generator.integers(1, 5, 200)
    for name, values in metric_values(starts, ties, k=(1, 5, 10)).items():
        naive = [naive_expected_metrics(start, tie)[name] for start, tie in zip(starts, ties, strict=True)]
        assert values == pytest.approx(naive, abs=1e-12), name


def test_names_of_the_metrics():
    assert list(metric_values([1], [1])) == ["hit@1", "hit@5", "hit@10", "ndcg@5", "ndcg@10", "mrr"]


@pytest.mark.parametrize(
    ("starts", "ties", "k", "message"),
    [
        ([0], [1], 1, "ranks start at 1"),
        ([1], [0], 1, "at least one item"),
        ([1, 2], [1], 1, r"shape \(2,\) and ties of shape \(1,\)"),
        ([1], [1], 0, "got k=0"),
        ([float("nan")], [1], 1, "ranks start at 1"),
    ],
)
def test_refusals(starts, ties, k, message):
    with pytest.raises(ValueError, match=message):
        hit_rate(starts, ties, k)


def test_standard_error():
    # Mean 1/2, squared deviations 4 * 1/4 = 1, variance 1/3, over 4 users.
    assert standard_error([0, 1, 0, 1]) == pytest.approx(math.sqrt(1 / 3 / 4))
    assert math.isnan(standard_error([1.0]))


def test_questions_of_one_user_are_one_draw():
    # Mean 1/2. User a departs by -1/2 + 1/2 + 1/2 in all, b by -1/2: 2 / 1 * (1/4 + 1/4) is 1, over 4 questions.
    assert standard_error([0, 1, 1, 0], ["a", "a", "a", "b"]) == pytest.approx(1 / 4)
    assert math.isnan(standard_error([0, 1], ["a", "a"]))
    values = np.random.default_rng(0).random(9)
    assert standard_error(values, [*"abcdefghi"]) == pytest.approx(standard_error(values), abs=1e-12)
    # Each question asked ten times over tells no more than once, though 90 values look like more
    users = [*"abcdefghi"] * 10
    assert standard_error(np.tile(values, 10), users) == pytest.approx(standard_error(values), abs=1e-12)
    assert standard_error([0, 1, 1, 0], [("a", 1), ("a", 1), ("a", 1), None]) == pytest.approx(1 / 4)
    with pytest.raises(ValueError, match="got 2 values and 3 users"):
        standard_error([0, 1], ["a", "a", "b"])


def test_expected_ranks_of_lists():
    lists = [["a", "b", "c"], ["a", "b", "c"], ["a", "b", "c"]]
    starts, ties = expected_ranks(lists, ["b", "c", "x"])
    assert starts.tolist() == [2, 3, INF]
    assert ties.tolist() == [1, 1, 1]
    starts, ties = expected_ranks(lists, ["b", "c", "x"], scores=[[0.5, 0.2, 0.2]] * 3)
    assert starts.tolist() == [2, 2, INF]
    assert ties.tolist() == [1 + 1, 2, 1]


def test_expected_ranks_refuses_duplicates_and_missing_rows():
    with pytest.raises(ValueError, match="row 0 recommends an item twice"):
        expected_ranks([["a", "a"]], ["a"])
    with pytest.raises(ValueError, match="1 ranked lists for 2 targets"):
        expected_ranks([["a"]], ["a", "b"])


def test_evaluate_metrics_offline(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    predictions, references = [["a", "b", "c"], ["a", "b", "c"], ["b", "c", "a"]], ["a", "c", "x"]

    def compute(metric, **options):
        return metric(cache_dir=str(tmp_path)).compute(predictions=predictions, references=references, **options)

    assert compute(HitRate, k=1) == {"hit@1": pytest.approx(1 / 3)}
    assert compute(HitRate, k=3) == {"hit@3": pytest.approx(2 / 3)}
    assert compute(NDCG, k=3) == {"ndcg@3": pytest.approx(1 / 3 * (1 + 1 / 2))}
    assert compute(MRR) == {"mrr": pytest.approx(1 / 3 * (1 + 1 / 3))}
    tied = compute(NDCG, k=3, scores=[[1.0, 1.0, 0.5]] * 3)
    assert tied == {"ndcg@3": pytest.approx(1 / 3 * ((1 + 1 / LOG2_3) / 2 + 1 / 2))}


def test_evaluate_metrics_accumulate_batches(tmp_path):
    metric = HitRate(cache_dir=str(tmp_path))
    metric.add_batch(predictions=[["a", "b"]], references=["b"])
    metric.add_batch(predictions=[["a", "b"], ["a", "b"]], references=["a", "c"])
    assert metric.compute(k=2) == {"hit@2": pytest.approx(2 / 3)}
