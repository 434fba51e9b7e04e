"""
Baselines of a maintained library: RecTools' SASRec, EASE and item neighbours, tuned on the validation users of
prepared data and ranked for all test users over the whole catalogue. From the root of the repository:

    python -m venv rectools && rectools/bin/pip install torch 'rectools[torch]==0.19.0'
    ilrec prepare --data FOLDER --output_dir runs/data
    python benchmarks/accuracy/rectools_baselines.py --prepared runs/data --output runs/rectools \
        --library-python rectools/bin/python
    python benchmarks/accuracy/rectools_baselines.py --quick --library-python rectools/bin/python  # a generated store,
    seconds

Writes ranks.parquet (user, item, method, seed, rank, ties: the form of `ilrec run`, which a study reads as
baselines), one such file for each model, and settings.json with what was tried, chosen and measured. With --refit, or
where the data were prepared with --train_on_validation, the chosen settings are trained again on the validation items
too. The library's own Hit@10 and NDCG@10 of its top 10 must equal those of the ranks, but for items of one score.
"""

import argparse
import dataclasses
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any


sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np  # noqa: E402

from ilrec_trl.evaluation.metrics import metric_values  # noqa: E402
from ilrec_trl.pipeline.options import DataOptions  # noqa: E402
from ilrec_trl.pipeline.prepare import PreparedData, prepare, split  # noqa: E402
from ilrec_trl.report.console import metrics_table, show  # noqa: E402
from ilrec_trl.report.results import MethodRanks, summarise_methods, write_ranks  # noqa: E402


SIZES = {"n_factors": 128, "n_blocks": 2, "n_heads": 2, "batch_size": 64, "lr": 1e-3}
#: What is tried for each model; the best on validation counts.
CANDIDATES: dict[str, list[dict[str, Any]]] = {
    "sasrec": [SIZES | {"dropout_rate": dropout} for dropout in (0.2, 0.5)],
    "ease": [{"regularization": float(weight)} for weight in (30, 100, 300, 1000, 3000, 10000)],
    "item_knn": [
        {"weighting": weighting, "neighbours": number}
        for weighting in ("tfidf", "cosine", "bm25")
        for number in (20, 100)
    ],
}
TITLES = {"sasrec": "RecTools SASRec", "ease": "EASE", "item_knn": "item neighbours"}


def task_of(prepared: PreparedData, arguments: argparse.Namespace, model: str) -> dict[str, Any]:
    """What the library is to do, in numbers of users and items."""
    plain = split(prepared.interactions, dataclasses.replace(prepared.options, train_on_validation=False))
    number = {item: place for place, item in enumerate(prepared.catalog.item_ids)}
    refit = arguments.refit or prepared.options.train_on_validation
    longer = plain.with_validation_in_training().train if refit else []
    asked = {
        name: {
            "histories": [[number[item] for item in example.history] for example in examples],
            "targets": [number[example.item] for example in examples],
        }
        for name, examples in (("validation", plain.validation), ("test", plain.test))
    }
    candidates = CANDIDATES[model]
    if model == "sasrec":
        candidates = [settings | {"session_max_len": arguments.length} for settings in candidates]
    return asked | {
        "model": model,
        "candidates": candidates[:1] if arguments.quick else candidates,
        "epochs": 3 if arguments.quick else arguments.epochs,
        "patience": 2,
        "seed": arguments.seed,
        "threads": arguments.threads,
        "num_items": len(number),
        "exclude_history": arguments.exclude_history,
        "train": [[number[item] for item in items] for _, items in plain.train],
        "refit": [[number[item] for item in items] for _, items in longer],
    }


def run_library(python: str, task: dict[str, Any]) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "task.json").write_text(json.dumps(task))
        subprocess.run([python, Path(__file__).with_name("rectools_models.py"), folder], check=True)
        ranks = np.load(Path(folder) / "ranks.npz")
        return ranks["starts"], ranks["ties"], json.loads((Path(folder) / "found.json").read_text())


def check(starts: np.ndarray, ties: np.ndarray, library: dict[str, float]) -> None:
    """`ValueError` where the library's figures are not those of the ranks, whatever the order of equal scores."""
    for metric, found in library.items():
        most = metric_values(starts, np.ones_like(ties))[metric].mean()
        last = starts + ties - 1
        least = metric_values(last, np.ones_like(ties))[metric].mean()
        if not least - 1e-6 <= found <= most + 1e-6:
            raise ValueError(f"{metric} is {found} by the library, but between {least} and {most} by the ranks")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prepared", type=Path, help="Folder that `ilrec prepare` wrote.")
    parser.add_argument("--library-python", required=True, help="Python of an environment with RecTools.")
    parser.add_argument("--output", type=Path, help="Folder that receives the ranks.")
    parser.add_argument("--models", nargs="+", choices=list(CANDIDATES), default=list(CANDIDATES))
    parser.add_argument("--epochs", type=int, default=20, help="Epochs of SASRec at most.")
    parser.add_argument("--length", type=int, default=20, help="Items of a history that SASRec sees.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="Threads of torch.")
    parser.add_argument("--exclude_history", action="store_true", help="Never recommend an item of the history.")
    parser.add_argument("--refit", action="store_true", help="Train what was chosen on the validation items too.")
    parser.add_argument("--quick", action="store_true", help="A generated store and one candidate a model.")
    arguments = parser.parse_args()
    if not arguments.quick and (arguments.prepared is None or arguments.output is None):
        parser.error("name the data with --prepared and a folder with --output, or try --quick")
    prepared = prepare(DataOptions(store_users=300)) if arguments.quick else PreparedData.load(arguments.prepared)
    users, items = ([getattr(each, name) for each in prepared.splits.test] for name in ("user", "item"))
    ranks, settings = [], {}
    for model in arguments.models:
        starts, ties, found = run_library(arguments.library_python, task_of(prepared, arguments, model))
        check(starts, ties, found["library_test"])
        used = found["settings"] | {"epoch": found["epoch"], "exclude_history": arguments.exclude_history}
        ranks.append(MethodRanks(TITLES[model], users, starts, ties, arguments.seed, used))
        settings[TITLES[model]] = found | {"refit": arguments.refit or prepared.options.train_on_validation}
    show(metrics_table(summarise_methods(ranks)))
    if arguments.output is not None:
        arguments.output.mkdir(parents=True, exist_ok=True)
        write_ranks(ranks, items, arguments.output / "ranks.parquet")
        for model, entry in zip(arguments.models, ranks, strict=True):
            write_ranks([entry], items, arguments.output / f"{model}.parquet")
        about = {"command": " ".join(["python", *sys.argv]), "data": prepared.summary(), "models": settings}
        (arguments.output / "settings.json").write_text(json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
    main()
