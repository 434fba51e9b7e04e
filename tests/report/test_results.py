"""Summaries and comparisons by hand, and the files they go to."""

import json
import math

import numpy as np
import pyarrow.parquet as pq
import pytest

from ilrec_trl.evaluation.statistics import holm
from ilrec_trl.report.results import (
    METRICS,
    MethodRanks,
    as_json,
    compare_methods,
    summarise_methods,
    write_ranks,
    write_results,
)


INF = float("inf")


def ranks(method, starts, seed=None, ties=None):
    users = [f"u{row}" for row in range(len(starts))]
    ties = np.ones(len(starts), dtype=np.int64) if ties is None else np.array(ties)
    return MethodRanks(method, users, np.array(starts, dtype=float), ties, seed, {"lr": 0.1})


def test_summary_of_one_seed():
    summary = summarise_methods([ranks("SFT", [1, 3, INF, 11], seed=0)])["SFT"]
    assert summary.metrics["hit@1"] == 1 / 4
    assert summary.metrics["hit@10"] == 2 / 4
    assert summary.metrics["ndcg@10"] == pytest.approx((1 + 1 / 2) / 4)
    assert summary.metrics["mrr"] == pytest.approx((1 + 1 / 3 + 1 / 11) / 4)
    # Hit@10 is 1, 1, 0, 0: variance 1/3.
    assert summary.standard_error["hit@10"] == pytest.approx(math.sqrt(1 / 3 / 4))
    assert summary.settings == {"lr": 0.1}
    assert [run.seed for run in summary.per_seed] == [0]


def test_summary_of_two_seeds_is_their_mean():
    summary = summarise_methods([ranks("SFT", [1, INF], seed=0), ranks("SFT", [1, 2], seed=1)])["SFT"]
    assert summary.metrics["hit@10"] == pytest.approx((1 / 2 + 1) / 2)
    # Users' means of Hit@10 are 1 and 1/2: variance 1/8.
    assert summary.standard_error["hit@10"] == pytest.approx(math.sqrt(1 / 8 / 2))
    assert [(run.seed, run.metrics["hit@10"]) for run in summary.per_seed] == [(0, 1 / 2), (1, 1)]


def test_users_with_several_questions_are_what_was_drawn():
    entries = [ranks("ILRec", [1, 1, 1, INF], seed=0), ranks("SFT", [INF, INF, INF, INF], seed=0)]
    for entry in entries:
        entry.users = ["u0", "u0", "u0", "u1"]
    summary = summarise_methods(entries)["ILRec"]
    assert summary.metrics["hit@1"] == 3 / 4
    # Departures 1/4 + 1/4 + 1/4 and -3/4: 2 / 1 * (9/16 + 9/16), over 4 questions.
    assert summary.standard_error["hit@1"] == pytest.approx(math.sqrt(2 * 18 / 16) / 4)
    (row,) = [row for row in compare_methods(entries, [("ILRec", "SFT")]) if row.metric == "hit@1"]
    assert (row.difference, row.questions) == (3 / 4, 4)
    # Two users, of whom the first has three hits of three: a draw gives 1, 3/4 twice, or 0
    assert row.standard_error == pytest.approx(np.std([1, 3 / 4, 3 / 4, 0]), abs=0.01)


def test_comparison_over_seeds_and_parts():
    entries = [
        ranks("ILRec", [1, 1, 1, INF], seed=0),
        ranks("SFT", [1, INF, 1, INF], seed=0),
        ranks("ILRec", [1, 1, 1, 1], seed=1),
        ranks("SFT", [1, 1, INF, 1], seed=1),
        ranks("SASRec", [INF, INF, 1, 1]),
    ]
    parts = {"first two": np.array([True, True, False, False])}
    rows = compare_methods(entries, [("ILRec", "SFT"), ("ILRec", "SASRec")], parts)
    hits = {row.b: row for row in rows if row.metric == "hit@1"}
    assert hits["SFT"].seeds == [0, 1]
    assert hits["SFT"].each_seed == [1 / 4, 1 / 4]
    # Users' mean differences are 0, 1/2, 1/2, 0: mean 1/4, variance 1/16.
    assert hits["SFT"].difference == 1 / 4
    assert hits["SFT"].standard_error == pytest.approx(math.sqrt(1 / 16 / 4), abs=0.003)
    assert (hits["SFT"].seeds_error, hits["SFT"].single) == (0, [])
    assert hits["SFT"].low <= 1 / 4 <= hits["SFT"].high
    # 1, 1, 0, -1/2 over the users, with the one run of SASRec beside each seed.
    assert hits["SASRec"].difference == pytest.approx((1 + 1 + 0 - 1 / 2) / 4)
    assert hits["SASRec"].single == ["SASRec"]
    (part,) = [row for row in rows if row.part == "first two" and row.b == "SFT"]
    assert (part.metric, part.questions, part.difference, part.holm_p_value) == ("ndcg@10", 2, 1 / 4, None)
    primary = [row for row in rows if row.metric == "ndcg@10" and row.part is None]
    assert [row.holm_p_value for row in primary] == holm([row.p_value for row in primary])


def test_runs_over_different_users_are_refused():
    other = MethodRanks("SFT", ["x", "y"], np.ones(2), np.ones(2, dtype=np.int64))
    with pytest.raises(ValueError, match="different users"):
        compare_methods([ranks("ILRec", [1, 2]), other], [("ILRec", "SFT")])


def test_a_pair_without_runs_is_left_out():
    assert compare_methods([ranks("ILRec", [1, 2])], [("ILRec", "BPR")]) == []
    assert compare_methods([], [("ILRec", "BPR")]) == []


def test_the_metrics_of_a_method_stand_beside_its_other_entries():
    found = as_json(summarise_methods([ranks("SFT", [1, 3, INF, 11], seed=0)]))["SFT"]
    assert found["hit@1"] == 1 / 4
    assert set(found) == {*METRICS, "standard_error", "settings", "per_seed"}
    assert found["per_seed"] == [{"seed": 0, "settings": {"lr": 0.1}} | {name: found[name] for name in METRICS}]


def test_results_are_plain_json(tmp_path):
    path = tmp_path / "results.json"
    write_results({"a": np.float32(0.5), "b": [math.nan, (np.int64(3), INF)], "c": {1: "x"}}, path)
    assert json.loads(path.read_text()) == {"a": 0.5, "b": [None, [3, None]], "c": {"1": "x"}}


def test_ranks_table(tmp_path):
    path = tmp_path / "ranks.parquet"
    write_ranks([ranks("SFT", [1, INF], 3, [2, 1]), ranks("popularity", [4, 5])], ["i", "j"], path)
    assert pq.read_table(path).to_pylist() == [
        {"user": "u0", "item": "i", "method": "SFT", "seed": 3, "rank": 1, "ties": 2},
        {"user": "u1", "item": "j", "method": "SFT", "seed": 3, "rank": None, "ties": 1},
        {"user": "u0", "item": "i", "method": "popularity", "seed": None, "rank": 4, "ties": 1},
        {"user": "u1", "item": "j", "method": "popularity", "seed": None, "rank": 5, "ties": 1},
    ]
