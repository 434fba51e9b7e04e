"""Late fusion from the command line, by one SASRec and by several."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from benchmarks.accuracy.late_fusion import WEIGHTS, fused_ranks
from ilrec_trl.cli import main
from ilrec_trl.pipeline.baselines import load_teacher, train_teacher
from ilrec_trl.pipeline.options import DataOptions, EvaluationOptions, InputError, ModelOptions, TeacherOptions
from ilrec_trl.pipeline.prepare import prepare
from ilrec_trl.pipeline.train import build_model


SMALL = {"sasrec_hidden_size": 16, "sasrec_epochs": 6.0, "sasrec_learning_rate": 1e-2, "sasrec_folds": 1}


@pytest.fixture(scope="module")
def prepared(data_folder):
    return prepare(DataOptions(data=str(data_folder)))


@pytest.fixture(scope="module")
def folder(prepared, tmp_path_factory):
    """Prepared data, an untrained model and a SASRec that has learnt the circle."""
    folder = tmp_path_factory.mktemp("fusion")
    prepared.save(folder / "data")
    sizes = ModelOptions(hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2)
    build_model(prepared, sizes, seed=0).save_pretrained(folder / "model")
    train_teacher(prepared, TeacherOptions(**SMALL), folder / "sasrec", seed=0)
    return folder


def test_a_weight_is_chosen_on_validation(folder, capsys):
    output = folder / "out"
    command = ["evaluate", "--prepared", str(folder / "data"), "--model", str(folder / "model")]
    fusion = ["--fuse_sasrec", str(folder / "sasrec"), "--fusion_candidates", "12", "--output_dir", str(output)]
    assert main([*command, *fusion, "--num_beams", "12"]) == 0
    weight = float(capsys.readouterr().out.split("chosen on validation users: ")[1].split()[0])
    # SASRec knows the circle, the model nothing
    assert weight in WEIGHTS[-4:]
    found = json.loads((output / "metrics.json").read_text())["methods"]["model + SASRec"]
    assert found["settings"] == {"fusion_weight": weight, "fusion_candidates": 12, "exclude_history": False}
    assert main([*command, "--num_beams", "12", "--output_dir", str(folder / "alone")]) == 0
    alone = json.loads((folder / "alone/metrics.json").read_text())["methods"]["model"]
    assert found["ndcg@10"] > alone["ndcg@10"] + 0.1
    assert pq.read_table(output / "ranks.parquet").num_rows == 60


def test_of_several_the_mean_counts_for_everybody(prepared, folder):
    model = build_model(prepared, ModelOptions(hidden_size=16, num_hidden_layers=2, num_attention_heads=2), seed=0)
    group = train_teacher(prepared, TeacherOptions(**SMALL | {"sasrec_folds": 2}), folder / "group", seed=0)
    mean = group.mean_reward_func(prepared.item_trie)
    users = [user for user, _ in prepared.splits.train[:4]]
    each = np.stack([mean([["1", "2"]], user=[user]).numpy() for user in [*users, "stranger"]])
    assert np.ptp(each, axis=0).max() == 0
    loaded = load_teacher(str(folder / "group"), prepared)
    examples = prepared.splits.validation[:10]
    evaluation = EvaluationOptions(num_beams=12)
    first, second = (
        fused_ranks("both", model, teacher, prepared, examples, evaluation, weight=0.5) for teacher in (group, loaded)
    )
    assert first.starts.tolist() == second.starts.tolist()


def test_refusals(folder, capsys):
    command = ["evaluate", "--prepared", str(folder / "data"), "--model", str(folder / "model")]
    command += ["--fuse_sasrec", str(folder / "sasrec")]
    for more, message in [
        (["--ranking", "exact"], "--fuse_sasrec ranks candidates of a beam search"),
        (["--fusion_weight", "-1"], "--fusion_weight is -1.0, expected 0 or more"),
        (["--fusion_candidates", "5"], "--fusion_candidates is 5, expected at least 10"),
    ]:
        assert main([*command, *more]) == 2
        assert message in capsys.readouterr().err


def test_validation_items_that_were_trained_on_choose_no_weight(data_folder, folder):
    whole = prepare(DataOptions(data=str(data_folder), train_on_validation=True))
    model = build_model(whole, ModelOptions(hidden_size=16, num_hidden_layers=2, num_attention_heads=2), seed=0)
    teacher = load_teacher(str(folder / "sasrec"), whole)
    with pytest.raises(InputError, match="they can choose no weight; give --fusion_weight"):
        fused_ranks("both", model, teacher, whole, whole.splits.test, EvaluationOptions())
