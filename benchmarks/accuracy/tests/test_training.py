"""Where ILRec's negatives come from, as an option of a study's method."""

import json

import pytest
import torch

from benchmarks.accuracy.preference import ComparedTrainingOptions
from benchmarks.accuracy.training import train_method
from ilrec_trl.pipeline.options import DataOptions, EvaluationOptions, InputError, ModelOptions
from ilrec_trl.pipeline.prepare import prepare
from ilrec_trl.pipeline.train import build_model


MODEL = ModelOptions(hidden_size=16, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2)


@pytest.fixture(scope="module")
def prepared(data_folder):
    return prepare(DataOptions(data=str(data_folder)))


def train(prepared, folder, extra):
    training = ComparedTrainingOptions(
        num_train_epochs=1, learning_rate=1e-2, crr_weight=0.0, trainer_args=json.dumps(extra)
    )
    model = build_model(prepared, MODEL, seed=0)
    return train_method("ilrec", prepared, model, training, EvaluationOptions(validation_users=20), folder, seed=0)


def test_the_source_of_negatives(prepared, tmp_path):
    trained = {
        source: train(prepared, tmp_path / str(source), {} if source is None else {"negative_source": source})
        for source in (None, "intermediate", "last", "random")
    }
    weights = {source: each.model.state_dict() for source, each in trained.items()}
    for name, value in weights[None].items():
        assert torch.equal(value, weights["intermediate"][name])
    for source in ("last", "random"):
        assert any(not torch.equal(value, weights[source][name]) for name, value in weights[None].items())
    settings = trained["last"].settings
    assert {name: settings.pop(name) for name in ("negative_source", "validation_ndcg@10")} == {
        "negative_source": "last",
        "validation_ndcg@10": trained["last"].history[-2]["eval_ndcg@10"],
    }
    assert settings.keys() == trained[None].settings.keys() - {"validation_ndcg@10"}
    assert (tmp_path / "last/model.safetensors").is_file()


def test_an_unknown_source_is_refused(prepared, tmp_path):
    with pytest.raises(InputError, match="`negative_source` must be one of .*, got 'first'"):
        train(prepared, tmp_path, {"negative_source": "first"})
