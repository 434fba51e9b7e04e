"""
Training of SASRec: time an epoch and quality by epoch on real sequences, with the softmax in full, with vectors of the
items' codes, sampled and, given `--library-python`, beside RecTools' SASRec; time and memory up to a million items.
From the root of the repository:

    python benchmarks/accuracy/sasrec.py --data FOLDER          # inter.json.gz and index.json.gz, see docs/data.md
    python benchmarks/accuracy/sasrec.py --quick                # a small try on a generated store, written nowhere
    python -m venv rectools && rectools/bin/pip install torch 'rectools[torch]==0.19.0'
    python benchmarks/accuracy/sasrec.py --data FOLDER --library-python rectools/bin/python

Writes benchmarks/results/sasrec_<folder>.csv. Times are processor seconds of one thread. Both libraries get the same
training sequences, width, layers, heads, length, batch and learning rate, and rank all items for the same validation
users.
"""

import argparse
import gzip
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any


sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np  # noqa: E402
import torch  # noqa: E402
from transformers import TrainerCallback  # noqa: E402

from benchmarks.speed.measurements import compare, peak_mib, write_results  # noqa: E402
from ilrec_trl import Interactions, SASRecConfig, generate_store, train_sasrec  # noqa: E402
from ilrec_trl.data.splits import NextItemExample, Splits, UserSequence  # noqa: E402
from ilrec_trl.rewards.sasrec_training import sasrec_training_arguments  # noqa: E402


#: Items, number of negatives (`None`: the default), and steps of each case of the catalogue table.
CATALOGUES = [(10_000, 0, 40), (100_000, 0, 8), (100_000, 4096, 40), (1_000_000, None, 40)]


class Clock(TrainerCallback):
    """Processor seconds at the end of each step and of training in each epoch, and the metrics of each evaluation."""

    def __init__(self) -> None:
        self.steps: list[float] = []
        self.epochs: list[float] = []
        self.ndcg: list[float] = []
        self.start = 0.0

    def on_epoch_begin(self, *_: Any, **__: Any) -> None:
        self.start = time.process_time()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.steps.append(time.process_time())

    def on_epoch_end(self, *_: Any, **__: Any) -> None:
        self.epochs.append(time.process_time() - self.start)

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, float], **__: Any) -> None:
        self.ndcg.append(metrics["eval_ndcg@10"])


def train(
    splits: Splits,
    item_ids: list[str],
    num_sampled_negatives: int | None,
    item_features: list[list[str]] | None = None,
    **settings: Any,
) -> Clock:
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        fixed = {"save_strategy": "no", "load_best_model_at_end": False, "disable_tqdm": True, "seed": 0}
        args = sasrec_training_arguments(folder, use_cpu=True, **(fixed | settings))
        config = SASRecConfig(num_sampled_negatives=num_sampled_negatives)
        about: dict[str, Any] = {"config": config, "item_features": item_features, "patience": None}
        train_sasrec(splits, item_ids, args, **about, callbacks=[clock])
    return clock


def epochs_of_ours(
    splits: Splits, item_ids: list[str], num_sampled: int, epochs: int, codes: list[list[str]] | None = None
) -> list[dict[str, float]]:
    clock = train(splits, item_ids, num_sampled, codes, num_train_epochs=epochs, logging_strategy="no")
    return [{"seconds": s, "ndcg@10": n} for s, n in zip(clock.epochs, clock.ndcg, strict=True)]


def epochs_of_rectools(python: str, splits: Splits, epochs: int, dropout: float) -> tuple[str, list[dict[str, float]]]:
    task = {
        "seed": 0,
        "epochs": epochs,
        "train": dict(splits.train),
        "validation": {example.user: example.item for example in splits.validation},
        "settings": {
            **{"n_blocks": 2, "n_heads": 2, "n_factors": 128, "session_max_len": 50, "batch_size": 64, "lr": 1e-3},
            **{"loss": "softmax", "dropout_rate": dropout, "epochs": 1},
        },
    }
    script = Path(__file__).with_name("sasrec_rectools.py")
    done = subprocess.run([python, script], input=json.dumps(task), check=True, stdout=subprocess.PIPE, text=True)
    found = json.loads(done.stdout.splitlines()[-1])
    return f"RecTools {found['versions']['rectools']}", found["epochs"]


def quality_rows(name: str, systems: dict[str, list[dict[str, float]]], num_targets: int) -> list[dict[str, Any]]:
    """Time an epoch and best NDCG@10 of each system, and epochs and time to what the weakest of them reaches."""
    baseline, case = next(iter(systems)), f"{name}, {num_targets} targets an epoch"
    goal = min(max(epoch["ndcg@10"] for epoch in epochs) for epochs in systems.values())
    common = min(map(len, systems.values()))  # epochs whose times are compared
    values: dict[tuple[str, str], dict[str, list[float]]] = {}
    for system, epochs in systems.items():
        reached = next(place for place, epoch in enumerate(epochs, 1) if epoch["ndcg@10"] >= goal)
        seconds = [epoch["seconds"] for epoch in epochs]
        best = max(range(len(epochs)), key=lambda place: epochs[place]["ndcg@10"])
        for metric, unit, measured in [
            ("CPU time an epoch", "s", seconds[:common]),
            ("training", "targets/s", [num_targets / value for value in seconds[:common]]),
            ("best NDCG@10 on validation", "", [epochs[best]["ndcg@10"]]),
            ("epoch of the best", "epochs", [best + 1]),
            (f"epochs to NDCG@10 {goal:.4f}", "epochs", [reached]),
            (f"CPU time to NDCG@10 {goal:.4f}", "s", [sum(seconds[:reached])]),
        ]:
            values.setdefault((metric, unit), {})[system] = measured
    return [
        row
        for (metric, unit), by_system in values.items()
        for row in compare("sasrec", case, metric, unit, by_system, baseline)
    ]


def catalogue_case(num_items: int, num_sampled: int | None, steps: int) -> dict[str, float]:
    """Seconds a step and peak memory in a process of its own, on sequences that repeat popular items as stores do."""
    draw = np.random.default_rng(0)
    popularity = 1 / (np.arange(num_items) + 10) ** 0.9
    items = draw.choice(num_items, size=(64 * steps, 7), p=popularity / popularity.sum()).astype(str)
    users = [UserSequence(str(user), row.tolist()) for user, row in enumerate(items)]
    asked = [NextItemExample(user, history[:-1], history[-1]) for user, history in users[:64]]
    item_ids = [str(item) for item in range(num_items)]
    clock = train(Splits(users, asked, []), item_ids, num_sampled, max_steps=steps, logging_strategy="no")
    warm = steps // 4  # the moments of Adam are made, and pages of memory touched first, in the first steps
    seconds = np.diff(clock.steps)[warm:].mean()
    return {"seconds": float(seconds), "MiB": peak_mib()}


def catalogue_rows(catalogues: list[tuple[int, int | None, int]]) -> list[dict[str, Any]]:
    rows = []
    for num_items, num_sampled, steps in catalogues:
        arguments = ["--case", json.dumps([num_items, num_sampled, steps])]
        done = subprocess.run([sys.executable, __file__, *arguments], check=True, stdout=subprocess.PIPE, text=True)
        found = json.loads(done.stdout.splitlines()[-1])
        negatives = "full softmax" if num_sampled == 0 else f"{num_sampled or 4096} sampled"
        case = f"{num_items} items, 64 users of 7 items a step"
        rows += compare("sasrec", case, "CPU time of 1,000 steps", "s", {negatives: [1000 * found["seconds"]]}, "")
        rows += compare("sasrec", case, "peak memory with a validation", "MiB", {negatives: [found["MiB"]]}, "")
    return rows


def load(folder: Path | None) -> tuple[str, Splits, dict[str, list[str]]]:
    """Name, sequences, and the codes of the items that they hold."""
    if folder is None:
        store = generate_store(seed=0, num_users=400, num_items=200)
        return "generated store", store.interactions.leave_one_out(), store.semantic_ids
    with gzip.open(folder / "inter.json.gz", "rt", encoding="utf-8") as file:
        sequences = {user: [str(item) for item in items] for user, items in json.load(file).items()}
    with gzip.open(folder / "index.json.gz", "rt", encoding="utf-8") as file:
        codes = json.load(file)
    held = sorted({item for items in sequences.values() for item in items})
    return folder.resolve().name, Interactions.from_sequences(sequences).leave_one_out(), {i: codes[i] for i in held}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="Folder with inter.json.gz and index.json.gz.")
    parser.add_argument("--epochs", type=int, default=15, help="Epochs of ours.")
    parser.add_argument("--sampled", type=int, default=512, help="Negatives of the sampled softmax on the data.")
    parser.add_argument("--library-python", help="Python of an environment with RecTools.")
    parser.add_argument("--library-epochs", type=int, default=8, help="Epochs of RecTools.")
    parser.add_argument("--library-dropout", type=float, default=0.2, help="Dropout of RecTools, by default its own.")
    parser.add_argument("--without-catalogues", action="store_true", help="Leave out the table up to a million items.")
    parser.add_argument("--quick", action="store_true", help="Small sizes, and no CSV.")
    parser.add_argument("--case", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.case:
        print(json.dumps(catalogue_case(*arguments.case)))  # noqa: T201
        return
    if arguments.data is None and not arguments.quick:
        parser.error("name the real sequences with --data, or try --quick")
    name, splits, items = load(None if arguments.quick else arguments.data)
    epochs, sampled = (2, 64) if arguments.quick else (arguments.epochs, arguments.sampled)
    item_ids, codes = list(items), list(items.values())
    systems = {
        "full softmax": epochs_of_ours(splits, item_ids, 0, epochs),
        "the same with the items' codes": epochs_of_ours(splits, item_ids, 0, epochs, codes),
        f"{sampled} sampled": epochs_of_ours(splits, item_ids, sampled, epochs),
    }
    if arguments.library_python:
        library, found = epochs_of_rectools(
            arguments.library_python, splits, arguments.library_epochs, arguments.library_dropout
        )
        systems[library] = found
    rows = quality_rows(name, systems, sum(len(items) - 1 for _, items in splits.train))
    if not arguments.without_catalogues:
        rows += catalogue_rows([(2_000, 0, 8), (2_000, 256, 8)] if arguments.quick else CATALOGUES)
    for row in rows:
        shown = [row[key] for key in ("case", "system", "metric", "p50", "unit")] + [row.get("ratio", "")]
        print(*shown, sep=" | ")  # noqa: T201
    if not arguments.quick:
        write_results(f"sasrec_{name}", rows)


if __name__ == "__main__":
    main()
