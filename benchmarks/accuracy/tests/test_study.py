"""A small grid from its declaration to its report: killed, gone on with, changed, tuned, refitted."""

import copy
import json
import math
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

from benchmarks.accuracy.estimate import plan_rows
from benchmarks.accuracy.study import main
from benchmarks.accuracy.study_jobs import study_jobs
from benchmarks.accuracy.study_options import StudyOptions, parts_of, read_options
from benchmarks.accuracy.study_plan import read_study
from benchmarks.accuracy.study_report import render_study_report
from ilrec_trl.pipeline.options import mapping
from ilrec_trl.pipeline.prepare import items_columns
from tests.pipeline.conftest import NUM_USERS
from tests.references import naive_expected_metrics


SMALL = {
    **{"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2},
    **{"num_train_epochs": 2, "learning_rate": 0.01, "per_device_train_batch_size": 8, "validation_users": 30},
    **{"sasrec_hidden_size": 16, "sasrec_epochs": 2, "sasrec_batch_size": 16, "sasrec_folds": 1},
}


@pytest.fixture(scope="module")
def declare(data_folder, tmp_path_factory):
    """Writes a study's file; keywords replace its sections, in which `FOLDER` is the data."""
    root = tmp_path_factory.mktemp("study")

    def write(**sections):
        study = {
            "output_dir": str(root / "runs"),
            "seeds": [0, 1],
            "defaults": SMALL,
            "data": {"circle": {"data": "FOLDER"}},
            "methods": {
                "SFT": {"method": "sft", "tune": {"learning_rate": [0.0001, 0.01]}},
                "ILRec, k = 1": {"method": "ilrec", "intermediate_layers": 1},
            },
            "baselines": ["popularity", "transitions", "SASRec"],
            "fusion": ["ILRec, k = 1"],
        } | sections
        path = root / "study.yaml"
        path.write_text(yaml.safe_dump(study, sort_keys=False).replace("FOLDER", str(data_folder)))
        return path

    return write


def study(path, *arguments):
    return main(["--config", str(path), *arguments])


def begun(folder):
    """Marks of every file of a study that is written once."""
    return {
        path.relative_to(folder): path.stat().st_mtime_ns
        for path in folder.rglob("*")
        if path.name in ("done.json", "ranks.parquet", "trained.json")
    }


@pytest.fixture(scope="module")
def finished(declare):
    """The study, killed after its first candidate and gone on with."""
    path = declare()
    folder = Path(yaml.safe_load(path.read_text())["output_dir"])
    killed = subprocess.Popen(
        [sys.executable, "-c", f"from benchmarks.accuracy.study import main; main(['--config', {str(path)!r}])"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    candidate = folder / "circle/SFT/tune/learning_rate=0.0001/trained.json"
    while not candidate.exists():
        assert killed.poll() is None
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    time.sleep(0.5)
    before = begun(folder)
    assert study(path) == 0
    after = begun(folder)
    assert before.items() <= after.items()
    assert len(before) < len(after)
    return folder


@pytest.fixture(scope="module")
def results(finished):
    return json.loads((finished / "results.json").read_text())


def test_figures_are_those_of_the_ranks(finished, results):
    methods = results["data"]["circle"]["methods"]
    assert {name: len(method["runs"]) for name, method in methods.items()} == {
        **{"popularity": 1, "transitions": 1, "SASRec": 2, "SFT": 2, "ILRec, k = 1": 2, "ILRec, k = 1 + SASRec": 2}
    }
    for name, folders in {"SFT": "SFT", "ILRec, k = 1": "ILRec,_k_=_1"}.items():
        each = []
        for seed in (0, 1):
            rows = pq.read_table(finished / f"circle/{folders}/seed{seed}/ranks.parquet").to_pylist()
            assert len({row["user"] for row in rows}) == NUM_USERS
            users = [naive_expected_metrics(row["rank"] or math.inf, row["ties"]) for row in rows]
            each.append({metric: np.mean([user[metric] for user in users]) for metric in users[0]})
        for metric in ("hit@1", "hit@5", "hit@10", "ndcg@5", "ndcg@10", "mrr"):
            values = [figures[metric] for figures in each]
            assert [run[metric] for run in methods[name]["runs"]] == pytest.approx(values, abs=1e-9)
            assert methods[name]["mean"][metric] == pytest.approx(sum(values) / 2, abs=1e-9)
            spread = abs(values[0] - values[1]) / math.sqrt(2)
            assert methods[name]["deviation"][metric] == pytest.approx(spread, abs=1e-9)


def test_comparisons_are_paired_by_user_and_seed(finished, results):
    """Differences and parts of the users, recomputed from the files."""
    (row,) = [row for row in results["data"]["circle"]["comparisons"] if row["a"] == "ILRec, k = 1"]
    questions = pq.read_table(finished / "circle/popularity/questions.parquet").to_pylist()
    each = []
    for folder in ("SFT", "ILRec,_k_=_1"):
        files = [pq.read_table(finished / f"circle/{folder}/seed{seed}/ranks.parquet").to_pylist() for seed in (0, 1)]
        each.append(
            [
                {row["user"]: naive_expected_metrics(row["rank"] or math.inf, row["ties"])["ndcg@10"] for row in rows}
                for rows in files
            ]
        )
    users = [question["user"] for question in questions]
    differences = np.array([[ilrec[user] - sft[user] for user in users] for sft, ilrec in zip(*each, strict=True)])
    assert row["seeds"] == [0, 1]
    assert row["each_seed"] == pytest.approx(differences.mean(1), abs=1e-9)
    assert row["metrics"]["ndcg@10"]["difference"] == pytest.approx(differences.mean(), abs=1e-9)
    error = differences.mean(0).std(ddof=1) / NUM_USERS**0.5
    assert row["metrics"]["ndcg@10"]["users_error"] == pytest.approx(error, rel=0.05)
    lengths = np.array([question["history"] for question in questions])
    half = int(np.sort(lengths)[(NUM_USERS - 1) // 2])
    part = row["parts"][f"long histories (over {half} items)"]
    assert part["questions"] == (lengths > half).sum()
    assert part["difference"] == pytest.approx(differences[:, lengths > half].mean(), abs=1e-9)
    assert sum(part["questions"] for name, part in row["parts"].items() if "targets (" in name) == NUM_USERS
    targets = [question["item"] for question in questions]
    (most, number), *_ = Counter(targets).most_common(1)
    others = np.array([target != most for target in targets])
    part = row["parts"][f"all targets but the most frequent, {most}"]
    assert part["questions"] == NUM_USERS - number
    assert part["difference"] == pytest.approx(differences[:, others].mean(), abs=1e-9)
    # Popularity has no seeds and stands beside both
    (popularity,) = [row for row in results["data"]["circle"]["comparisons"] if row["a"] == "popularity"]
    assert popularity["seeds"] == [0, 1]
    assert popularity["single"] == ["popularity"]
    assert row["holm_p_value"] >= row["metrics"]["ndcg@10"]["p_value"]


def test_what_the_most_frequent_target_adds(finished, results):
    """NDCG@10 of its questions over all, and of the others, recomputed from the ranks; the report shows both."""
    questions = pq.read_table(finished / "circle/popularity/questions.parquet").to_pylist()
    (most, number), *_ = Counter(question["item"] for question in questions).most_common(1)
    assert results["data"]["circle"]["most_frequent_target"] == {
        **{"item": most, "questions": number, "share": number / NUM_USERS}
    }
    added, others = [], []
    for seed in (0, 1):
        rows = pq.read_table(finished / f"circle/SFT/seed{seed}/ranks.parquet").to_pylist()
        values = {True: [], False: []}
        for row in rows:
            metrics = naive_expected_metrics(row["rank"] or math.inf, row["ties"])
            values[row["item"] == most].append(metrics["ndcg@10"])
        added.append(sum(values[True]) / NUM_USERS)
        others.append(np.mean(values[False]))
    method = results["data"]["circle"]["methods"]["SFT"]
    assert [run["ndcg@10_of_others"] for run in method["runs"]] == pytest.approx(others, abs=1e-9)
    _, section = (finished / "report.md").read_text().split("### What one target decides")
    assert f"{number} questions ({number / NUM_USERS:.1%}) have one target, item {most}." in section
    (row,) = [line for line in section.splitlines() if line.startswith("| SFT |")][:1]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    deviation = abs(others[0] - others[1]) / math.sqrt(2)
    assert cells == ["SFT", f"{np.mean(added):.4f}", f"{np.mean(others):.4f} ({deviation:.4f})", "-"]


def test_fusion_chooses_its_weight_on_validation(finished):
    files = [finished / f"circle/ILRec,_k_=_1_+_SASRec/seed{seed}/tested.json" for seed in (0, 1)]
    weights = [json.loads(file.read_text())["settings"]["fusion_weight"] for file in files]
    shown = " / ".join(dict.fromkeys(map(str, weights)))
    assert f"fusion_weight = {shown}" in (finished / "report.md").read_text()


def test_questions_say_how_often_a_target_was_trained_on(finished, data_folder):
    sequences = json.loads((data_folder / "inter.json").read_text())
    trained = [str(item) for items in sequences.values() for item in items[:-2]]
    for row in pq.read_table(finished / "circle/popularity/questions.parquet").to_pylist():
        assert row["count"] == trained.count(row["item"])
        assert row["history"] == len(sequences[row["user"]]) - 1


def test_validation_chooses_and_every_candidate_is_reported(finished, results):
    tuning = results["data"]["circle"]["tuning"]["SFT"]
    scores = [candidate["validation"]["ndcg@10"] for candidate in tuning["candidates"]]
    assert tuning["chosen"] == 1
    assert scores[1] > scores[0] + 0.05
    # The first seed's final run is the chosen candidate, not trained again.
    chosen = json.loads((finished / "circle/SFT/tune/learning_rate=0.01/trained.json").read_text())
    assert json.loads((finished / "circle/SFT/seed0/trained.json").read_text()) == chosen
    assert "learning_rate = 0.0001" in (finished / "report.md").read_text()
    assert "not tuned with one budget" in (finished / "report.md").read_text()


def test_models_are_removed_and_the_teachers_stay(finished):
    assert [path.parents[2].name for path in finished.rglob("model/config.json")] == ["SASRec", "SASRec"]


def test_nothing_is_done_twice_and_changes_are_refused(declare, finished, capsys):
    before = begun(finished)
    assert study(declare()) == 0
    assert begun(finished) == before
    # What a method does not use may change
    sections = {"defaults": SMALL | {"cpo_beta": 3}, "methods": {"SFT": {"method": "sft"}}, "fusion": None}
    assert study(declare(**sections), "--dry_run") == 0
    assert "to do" not in capsys.readouterr().out
    assert study(declare(defaults=SMALL | {"weight_decay": 0.5}), "--dry_run") == 2
    error = capsys.readouterr().err
    assert "holds a run of other settings: weight_decay was 0.01, is now 0.5" in error
    assert "remove that folder" in error
    assert begun(finished) == before
    # An option that is given its default value is no change
    assert study(declare(defaults=SMALL | {"weight_decay": 0.01})) == 0


def test_a_teacher_that_was_trained_before_is_tested_as_a_baseline(declare, finished, tmp_path):
    runs = tmp_path / "runs"
    shutil.copytree(finished, runs)
    [folder] = {path.parent for path in runs.glob("circle/SASRec/seed0/ranks.parquet")}
    ranks, trained = (folder / "ranks.parquet").read_bytes(), (folder / "trained.json").read_text()
    settings = json.loads((folder / "settings.json").read_text())
    (folder / "settings.json").write_text(json.dumps(settings | {"test": False}))
    for name in ("ranks.parquet", "tested.json"):
        (folder / name).unlink()
    others = {path: path.stat().st_mtime_ns for path in runs.rglob("done.json") if path.parent != folder}
    assert study(declare(output_dir=str(runs))) == 0
    assert (folder / "ranks.parquet").read_bytes() == ranks
    assert (folder / "trained.json").read_text() == trained
    assert json.loads((folder / "settings.json").read_text()) == settings
    assert {path: path.stat().st_mtime_ns for path in others} == others


def test_a_final_run_of_what_was_not_chosen_is_refused(declare, tmp_path, capsys):
    methods = {"SFT": {"method": "sft", "tune": {"learning_rate": [0.0001, 0.01]}}}
    sections = {"methods": methods, "baselines": None, "fusion": None, "seeds": [0]}
    path = declare(output_dir=str(tmp_path / "runs"), **sections)
    final = tmp_path / "runs/circle/SFT/seed0"
    final.mkdir(parents=True)
    (final / "settings.json").write_text(json.dumps({"job": "train", "options": {"learning_rate": 0.0001}}))
    for name in ("trained.json", "done.json"):
        (final / name).write_text("{}")
    assert study(path) == 2
    assert "SFT/seed0 holds a run of other settings" in capsys.readouterr().err


def test_a_run_that_is_missing_is_named(declare, finished, tmp_path):
    path = declare(output_dir=str(tmp_path / "runs"))
    assert study(path, "--report") == 0
    report = (tmp_path / "runs/report.md").read_text()
    assert "runs are missing" in report
    assert "circle: SFT learning_rate=0.0001" in report


@pytest.mark.parametrize("lacking", ["SFT", "ILRec, k = 1"])
def test_gains_over_methods_with_missing_runs_are_of_common_seeds(results, lacking):
    results = copy.deepcopy(results)
    methods = results["data"]["circle"]["methods"]
    keys = ("ndcg@10", "ndcg@10_of_others")
    (kept,) = (run for run in methods[lacking]["runs"] if run["seed"] == 1)
    methods[lacking] |= {"runs": [kept], "mean": methods[lacking]["mean"] | {key: kept[key] for key in keys}}
    results["missing"] = [f"circle: {lacking} seed 0"]
    report = render_study_report(results)
    assert "over SFT, on common seeds where runs are missing." in report
    sft, ilrec = (next(run for run in methods[name]["runs"] if run["seed"] == 1) for name in ("SFT", "ILRec, k = 1"))
    rows = [[cell.strip() for cell in line.split("|")] for line in report.splitlines() if "| ILRec, k = 1 |" in line]
    assert rows[0][8] == f"{ilrec['ndcg@10'] / sft['ndcg@10'] - 1:+.1%}"
    assert rows[1][4] == f"{ilrec['ndcg@10_of_others'] / sft['ndcg@10_of_others'] - 1:+.1%}"


def test_the_plan_names_runs_and_their_time(declare, tmp_path, capsys):
    path = declare(output_dir=str(tmp_path / "runs"))
    assert study(path, "--dry_run") == 0
    shown = capsys.readouterr().out
    assert "circle: SFT, 2 seeds of what validation chooses" in shown
    assert "circle: ILRec, k = 1 seed 1" in shown
    assert not (tmp_path / "runs").exists()


def test_methods_may_choose_their_teacher(declare, tmp_path):
    methods = {
        "SFT": {"method": "sft"},
        "ILRec": {"method": "ilrec"},
        "ILRec, one": {"method": "ilrec", "sasrec_folds": 1},
        "ILRec, transitions": {"method": "ilrec", "transition_share": 0.5},
    }
    sections = {"methods": methods, "fusion": None, "baselines": ["SASRec", "SASRec ensemble"], "seeds": [0, 1]}
    path = declare(output_dir=str(tmp_path / "runs"), defaults=SMALL | {"sasrec_folds": 2}, **sections)
    plan = read_study(StudyOptions(**yaml.safe_load(path.read_text())))
    jobs = {job.title.removeprefix("circle: "): job.settings for job in study_jobs(plan)}
    assert {name for name in jobs if name.startswith("SASRec")} == {
        *("SASRec seed 0", "SASRec seed 1", "SASRec_ensemble seed 0")
    }
    assert jobs["SASRec seed 0"]["options"]["sasrec_folds"] == 1
    assert jobs["SASRec_ensemble seed 0"]["options"]["sasrec_folds"] == 2
    assert jobs["SFT seed 1"]["teacher"] is None
    assert jobs["ILRec seed 1"]["teacher"] == "../../SASRec_ensemble/seed0/model"
    assert jobs["ILRec, one seed 1"]["teacher"] == "../../SASRec/seed0/model"
    assert jobs["ILRec, transitions seed 1"]["options"]["transition_share"] == 0.5
    assert jobs["ILRec, transitions seed 1"]["teacher"] == jobs["ILRec seed 1"]["teacher"]
    _, rows = plan_rows(plan, study_jobs(plan))
    times = {row[0].removeprefix("circle: "): row[2] for row in rows}
    assert times["SASRec seed 0"] == times["SASRec seed 1"] != times["SASRec_ensemble seed 0"]


def test_refit_trains_on_validation_items_for_the_chosen_epochs(declare, tmp_path):
    path = declare(
        output_dir=str(tmp_path / "runs"),
        seeds=[4],
        defaults=SMALL | {"refit": True, "num_train_epochs": 2, "sasrec_epochs": 2, "sasrec_folds": 2},
        methods={"ILRec": {"method": "ilrec"}},
        baselines=["SASRec", "SASRec ensemble"],
        fusion=None,
    )
    assert study(path, "--jobs", "2", "--keep_models") == 0
    folder = tmp_path / "runs/circle"
    candidate = json.loads((folder / "ILRec/tune/as_given/trained.json").read_text())
    final = json.loads((folder / "ILRec/seed4/settings.json").read_text())
    assert final["options"]["train_on_validation"] is True
    assert final["options"]["num_train_epochs"] == candidate["best_epoch"]
    assert final["teacher"] == "../../SASRec_ensemble/refit/seed4/model"
    assert (folder / "ILRec/seed4/model/config.json").is_file()
    assert not (folder / "ILRec/tune/as_given/model").exists()
    assert "validation" not in json.loads((folder / "ILRec/seed4/trained.json").read_text())
    assert [str(path.relative_to(folder)) for path in sorted(folder.glob("SASRec*/**/ranks.parquet"))] == [
        "SASRec/refit/seed4/ranks.parquet",
        "SASRec_ensemble/refit/seed4/ranks.parquet",
    ]


def test_mappings_may_stand_in_the_file_as_such():
    columns, extra = {"item": "sku", "title": "product"}, {"adam_beta2": 0.98}
    read = read_options({"data": "x", "items_columns": columns, "trainer_args": extra}, "data: shop")
    data, _, _, training, _ = parts_of(read)
    assert items_columns(data.items_columns) == columns
    assert mapping("trainer_args", training.trainer_args, "{}") == extra


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"methods": {"SFT": {"method": "sft", "learning_rat": 1}}}, "no option 'learning_rat'; did you mean"),
        ({"methods": {"SFT": {"method": "sftt"}}}, "method is 'sftt', expected one of sft, ilrec, dpo"),
        ({"methods": {"SFT": {"method": "sft", "tune": {"learning_rate": 1}}}}, "expected a list of values"),
        ({"methods": {"SFT": {"method": "sft", "tune": {"learning_rate": [1, 1]}}}}, "a value is given twice"),
        ({"methods": {"SFT": {"method": "sft", "tune": {"max_history": [1, 2]}}}}, "is an option of the data"),
        ({"methods": {"SFT": {"method": "sft", "learning_rate": "fast"}}}, "is 'fast', expected a number"),
        ({"methods": {"A": {"method": "ilrec", "cpo_penalty": "x"}}}, "methods: A: `cpo_penalty` must be one of"),
        ({"methods": {"A": {"method": "sft", "max_history": 3}}}, "max_history is an option of the data"),
        ({"methods": {"SASRec": {"method": "sft"}}}, "SASRec is a baseline"),
        ({"methods": {"A b": {"method": "sft"}, "A  b": {"method": "sft"}}}, "would share a folder"),
        ({"data": {"x": {"data": "/does/not/exist"}}}, "data: x: there is no file or folder /does/not/exist"),
        ({"data": {"x": {"train_on_validation": True}}}, "refit: true"),
        ({"data": None}, "a study needs data and methods"),
        ({"compare": [["SFT", "ILRek"]]}, "compare: there is no method 'ILRek'"),
        ({"compare": [["SFT"]]}, "is no pair"),
        ({"reference": "Sft"}, "reference: there is no method 'Sft'; did you mean 'SFT'?"),
        ({"baselines": ["sasrec"]}, "'sasrec' is none of popularity, transitions, SASRec, SASRec ensemble"),
        (
            {"defaults": SMALL | {"calibrate_rewards": True}},
            "methods: SFT: --calibrate_rewards needs cross-fitted SASRecs",
        ),
        ({"baselines": ["SASRec ensemble"]}, "circle has one SASRec, no ensemble; give sasrec_folds"),
        ({"baselines": [{"RecTools": "/no/ranks.parquet"}]}, "there is no file /no/ranks.parquet"),
        ({"seeds": [0, 0]}, "each once"),
        ({"fusion": ["SFTT"]}, "fusion: there is no method 'SFTT'"),
        ({"fusion": ["SFT"], "defaults": {"refit": True}}, "chosen on validation items, which refit trains on"),
        ({"only": ["SFTT"]}, "--only: there is no method or data set 'SFTT'"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused_before_any_work(declare, tmp_path, capsys, sections, message):
    assert study(declare(**({"output_dir": str(tmp_path / "runs"), "fusion": None} | sections))) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
