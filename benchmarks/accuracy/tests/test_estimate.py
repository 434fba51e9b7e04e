"""The time estimate up front: which stages it names, and that it grows with the work."""

import json
import shutil

import pytest

from benchmarks.accuracy.estimate import STAGE_OVERHEAD, estimate_seconds
from ilrec_trl.pipeline.options import DataOptions, EvaluationOptions, ModelOptions, TeacherOptions, TrainingOptions
from ilrec_trl.pipeline.prepare import prepare


@pytest.fixture(scope="module")
def estimate(data_folder):
    model = ModelOptions(hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2)

    def of(epochs, seeds=1, data=data_folder, **teacher):
        prepared = prepare(DataOptions(data=str(data)))
        training = TrainingOptions(num_train_epochs=epochs)
        return estimate_seconds(prepared, model, TeacherOptions(**teacher), training, EvaluationOptions(), seeds)

    return of


def test_stages(estimate):
    assert list(estimate(1)) == ["SASRec", "SFT", "ILRec", "evaluation"]
    assert list(estimate(1, sasrec="somewhere")) == ["SFT", "ILRec", "evaluation"]


def test_more_epochs_take_longer(estimate):
    short, long = estimate(1)["SFT"] - STAGE_OVERHEAD, estimate(1000)["SFT"] - STAGE_OVERHEAD
    assert 0 < 50 * short < long  # 1000 times, were it not for noise in so short a measurement


def test_sasrec_of_histories_beyond_its_length(estimate, data_folder, tmp_path):
    """A user of 200 items is several rows of SASRec's 50."""
    for path in data_folder.iterdir():
        shutil.copyfile(path, tmp_path / path.name)
    walk = [step % 24 for step in range(203)]
    (tmp_path / "inter.json").write_text(json.dumps({str(user): walk for user in range(600)}))
    long = estimate(1, data=tmp_path, sasrec_epochs=100, sasrec_folds=1)["SASRec"]
    (tmp_path / "inter.json").write_text(json.dumps({str(user): walk[:53] for user in range(600)}))
    short = estimate(1, data=tmp_path, sasrec_epochs=100, sasrec_folds=1)["SASRec"]
    assert 2 * short < long  # four times as many rows, were it not for noise


def test_sasrec_on_a_sampled_softmax(estimate, monkeypatch):
    monkeypatch.setattr("ilrec_trl.rewards.sasrec.FULL_SOFTMAX_ITEMS", 1)
    assert estimate(1)["SASRec"] > STAGE_OVERHEAD
