"""One small run from the command line to its files, and the commands that use what it leaves."""

import json
import math

import numpy as np
import pyarrow.parquet as pq
import pytest

from ilrec_trl.cli import main
from ilrec_trl.pipeline import environment
from tests.pipeline.conftest import NUM_USERS
from tests.references import naive_expected_metrics


SMALL = [
    *("--hidden_size", "16", "--intermediate_size", "32", "--num_hidden_layers", "3", "--num_attention_heads", "2"),
    *("--num_train_epochs", "8", "--learning_rate", "0.01", "--per_device_train_batch_size", "8"),
]
SMALL_SASREC = ["--sasrec_hidden_size", "16", "--sasrec_epochs", "3"]
METRICS = ["hit@1", "hit@5", "hit@10", "ndcg@5", "ndcg@10", "mrr"]


@pytest.fixture(scope="module")
def run_folder(data_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    config = folder / "config.yaml"
    config.write_text("seeds: [0, 1]\nvalidation_users: 30\ntrainer_args:\n  adam_beta2: 0.98\n")
    arguments = ["--config", str(config), "--data", str(data_folder), "--output_dir", str(folder)]
    assert main(["run", *arguments, *SMALL, *SMALL_SASREC]) == 0
    return folder


@pytest.fixture(scope="module")
def results(run_folder):
    return json.loads((run_folder / "results.json").read_text())


def test_results_have_the_agreed_form(results):
    assert set(results) == {
        *("data", "seeds", "command", "revision", "versions", "device", "seconds", "selection", "methods", "paired")
    }
    assert {"name", "users", "items", "interactions", "test_users"} <= set(results["data"])
    assert results["data"]["test_users"] == NUM_USERS
    assert results["seeds"] == [0, 1]
    assert list(results["methods"]) == ["popularity", "transitions", "SASRec", "SFT", "ILRec"]
    for method in results["methods"].values():
        assert set(method) >= {*METRICS, "standard_error", "settings"}
        assert set(method["standard_error"]) == set(METRICS)
    row = results["paired"][0]
    assert {*("a", "b", "metric", "difference", "standard_error", "p_value", "seeds", "low", "high")} <= set(row)
    assert row["low"] <= row["difference"] <= row["high"]
    assert row["difference"] == pytest.approx(np.mean(row["each_seed"]))
    assert {"train SFT", "train ILRec", "SASRec", "evaluate ILRec"} <= set(results["seconds"])


def test_sft_and_ilrec_had_the_same_budget(results):
    sft, ilrec = (results["methods"][name]["settings"] for name in ("SFT", "ILRec"))
    own = {"intermediate_layers", "cpo_beta", "cpd_weight", "crr_weight", "best_epoch", "validation_ndcg@10"}
    own |= {"reward_temperature", "transition_share", "teacher_ndcg@10"}
    assert (ilrec["reward_temperature"], ilrec["transition_share"]) == (1.0, 0.0)
    assert {name: value for name, value in sft.items() if name not in own} == {
        name: value for name, value in ilrec.items() if name not in own
    }
    assert ilrec["adam_beta2"] == 0.98
    # The defaults, resolved: negatives among the catalogue's continuations, rewards at hand.
    assert (ilrec["cpo_beta"], ilrec["crr_weight"]) == (3.0, 3.0)


def test_ranks_of_every_user_give_the_metrics(run_folder, results):
    rows = pq.read_table(run_folder / "ranks.parquet").to_pylist()
    assert len(rows) == NUM_USERS * (3 + 2 * 2)
    for name, method in results["methods"].items():
        each = [naive_expected_metrics(row["rank"] or math.inf, row["ties"]) for row in rows if row["method"] == name]
        for metric in METRICS:
            assert method[metric] == pytest.approx(np.mean([user[metric] for user in each]), abs=1e-9)


def test_a_sequence_model_learns_the_circle(results):
    # A user's next item follows from the last one; popularity knows nothing of it.
    assert results["methods"]["SFT"]["hit@5"] > results["methods"]["popularity"]["hit@5"] + 0.3


def test_report_shows_tables_and_examples(run_folder):
    report = (run_folder / "report.md").read_text()
    for text in [
        "## Results",
        "ILRec",
        "paired by user",
        "### User",
        "Thing number",
        "ilrec run --config",
        "| train ILRec |",
    ]:
        assert text in report, text


def test_all_options_are_kept(run_folder, data_folder):
    settings = json.loads((run_folder / "settings.json").read_text())
    assert settings["data"] == str(data_folder)
    assert settings["trainer_args"] == {"adam_beta2": 0.98}


def test_evaluate_repeats_what_the_run_found(run_folder, results, tmp_path):
    model = run_folder / "models/ilrec-seed1"
    arguments = ["--prepared", str(run_folder / "data"), "--model", str(model), "--output_dir", str(tmp_path)]
    assert main(["evaluate", *arguments]) == 0
    found = json.loads((tmp_path / "metrics.json").read_text())["methods"]["ilrec-seed1"]
    of_seed = results["methods"]["ILRec"]["per_seed"][1]
    assert {metric: found[metric] for metric in METRICS} == pytest.approx(
        {metric: of_seed[metric] for metric in METRICS}, abs=1e-9
    )
    assert pq.read_table(tmp_path / "ranks.parquet").num_rows == NUM_USERS


def test_evaluate_goes_on_from_finished_users(run_folder, tmp_path, capsys):
    model = run_folder / "models/ilrec-seed1"
    arguments = ["evaluate", "--prepared", str(run_folder / "data"), "--model", str(model), "--eval_batch_size", "9"]
    arguments += ["--resume_dir", str(tmp_path)]
    assert main(arguments) == 0
    first = capsys.readouterr().out
    rows = {path.name for path in tmp_path.glob("rows-*.npz")}
    assert len(rows) == 1  # seven batches
    assert main(arguments) == 0
    assert capsys.readouterr().out == first
    assert {path.name for path in tmp_path.glob("rows-*.npz")} == rows
    assert main([*arguments, "--ranking", "exact"]) == 2
    assert "ranks of another evaluation: its settings differed" in capsys.readouterr().err
    assert main([*arguments[:-2], "--ranking", "exact"]) == 0
    assert "hit@10" in capsys.readouterr().out


def test_recommend_by_user_and_by_history(run_folder, capsys):
    base = ["recommend", "--prepared", str(run_folder / "data"), "--model", str(run_folder / "models/sft-seed0")]
    assert main([*base, "--history", "3", "4", "5", "--top_k", "4", "--exclude_history"]) == 0
    output = capsys.readouterr().out
    assert output.count("Thing number") == 4
    assert "Thing number 3 " not in output
    assert main([*base, "--user", "7"]) == 0
    assert capsys.readouterr().out.count("Thing number") == 10
    assert main([*base, "--user", "nobody"]) == 2
    assert "user 'nobody', who is not among" in capsys.readouterr().err
    assert main([*base, "--history", "99"]) == 2
    assert "99" in capsys.readouterr().err
    assert main(base) == 2
    assert "either --user or --history" in capsys.readouterr().err


def test_the_stages_one_by_one(data_folder, tmp_path, capsys):
    prepared, sasrec, model = (str(tmp_path / name) for name in ("data", "sasrec", "model"))
    assert main(["prepare", "--data", str(data_folder), "--item_format", "titles", "--vocab_size", "300",
                 "--output_dir", prepared]) == 0  # fmt: skip
    assert main(["sasrec", "--prepared", prepared, "--output_dir", sasrec, *SMALL_SASREC]) == 0
    train = ["train", "--prepared", prepared, "--output_dir", model, *SMALL[:8], "--num_train_epochs", "1"]
    assert main(train) == 2
    assert "need a trained SASRec: give --sasrec" in capsys.readouterr().err
    assert main([*train, "--sasrec", sasrec, "--validation_users", "10"]) == 0
    assert main(["evaluate", "--prepared", prepared, "--model", model, "--split", "validation"]) == 0
    assert "model" in capsys.readouterr().out
    assert main(["evaluate", "--prepared", prepared, "--model", sasrec + "-not-there"]) == 2
    sft = [*train[:3], "--output_dir", model, *SMALL[:8], "--num_train_epochs", "1", "--method", "sft"]
    assert main(sft) == 0


def test_environment_names_versions_and_device():
    found = environment.versions()
    assert set(environment.PACKAGES) < set(found)
    assert found["torch"] != "not installed"
    assert environment.device()
    assert environment.revision()
