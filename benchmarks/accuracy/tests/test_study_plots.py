"""Which data sets make a low-data curve, and that pictures are drawn."""

import sys

import pytest

from benchmarks.accuracy.study_plots import draw_study, low_data_curves


def data_set(share, quality, **options):
    runs = [{"seed": seed, "ndcg@10": quality + 0.01 * seed} for seed in (0, 1)]
    row = {"a": "ILRec", "b": "SFT", "metric": "ndcg@10", "part": None, "each_seed": [0.0, 0.02], "holm_p_value": 0.3}
    row |= {"difference": 0.01, "low": -0.01, "high": 0.03}
    options |= {} if share is None else {"train_users_share": share}
    return {"options": options, "methods": {"SFT": {"per_seed": runs}}, "paired": [row]}


def test_data_sets_that_differ_by_their_share_make_a_curve():
    data = {
        "all": data_set(None, 0.3, data="x"),
        "tenth": data_set(0.1, 0.1, data="x", num_train_epochs=30),
        "other": data_set(0.1, 0.2, data="y"),
        "third": data_set(0.3, 0.2, data="x"),
    }
    (curve,) = low_data_curves({"data_sets": data})
    assert list(curve.items()) == [(0.1, data["tenth"]), (0.3, data["third"]), (1.0, data["all"])]
    data["tenth, fewer epochs"] = data_set(0.1, 0.1, data="x", num_train_epochs=10)
    assert low_data_curves({"data_sets": data}) == []


def test_pictures_are_drawn(tmp_path):
    results = {"data_sets": {"all": data_set(None, 0.3), "tenth": data_set(0.1, 0.1)}}
    assert draw_study(results, tmp_path) == ["differences.png", "low_data.png"]
    assert all((tmp_path / name).read_bytes()[:4] == b"\x89PNG" for name in ("differences.png", "low_data.png"))
    results["data_sets"].pop("tenth")
    results["data_sets"]["all"]["paired"] = []
    assert draw_study(results, tmp_path) == []


def test_matplotlib_is_asked_for_by_its_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pip install 'ilrec-trl\[report\]'"):
        draw_study({"data_sets": {}}, tmp_path)
