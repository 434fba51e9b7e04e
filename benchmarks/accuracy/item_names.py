"""
What items are called, by one language model and one budget: titles, semantic IDs that others published, and those that
`ilrec items build` makes from texts, and from texts and users. From the root of the repository:

    python benchmarks/accuracy/item_names.py --data PATH/TO/industrial --output_dir runs/item_names

Each name: `ilrec prepare`, `ilrec train --method sft`, `ilrec evaluate`; about half an hour of one core for all. A
stage that is complete is not done again. Writes results.json and report.md.
"""

import argparse
import dataclasses
import json
import shlex
import sys
import time
from pathlib import Path
from typing import Any


sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np  # noqa: E402
import pyarrow.parquet as pq  # noqa: E402
import yaml  # noqa: E402

from ilrec_trl import SASRecModel  # noqa: E402
from ilrec_trl.cli import COMMANDS, main  # noqa: E402
from ilrec_trl.pipeline.environment import device, revision, versions  # noqa: E402
from ilrec_trl.pipeline.options import TeacherOptions  # noqa: E402
from ilrec_trl.pipeline.prepared_data import PreparedData  # noqa: E402
from ilrec_trl.pipeline.teacher import teacher_ranks, teacher_settings  # noqa: E402
from ilrec_trl.report.markdown import render_report  # noqa: E402
from ilrec_trl.report.results import (  # noqa: E402
    MethodRanks,
    RunResult,
    compare_methods,
    summarise_methods,
    write_results,
)


CONFIG = Path(__file__).parents[2] / "examples/configs/industrial_semantic_ids_cpu.yaml"
NAMES = {
    "shipped": "IDs of the data set",
    "text": "IDs from texts",
    "text_users": "IDs from texts and users",
    "titles": "titles",
}
BUILD = {"text": ["--balance", "2"], "text_users": ["--balance", "2"]}
PAIRS = [
    ("IDs from texts", "titles"),
    ("IDs from texts", "IDs of the data set"),
    ("IDs from texts and users", "IDs from texts"),
    ("IDs of the data set", "titles"),
    ("IDs from texts", "SASRec"),
]


def compare_names(data: Path, folder: Path, command: str) -> None:
    """Train and evaluate every name of the items, then compare them on all test users."""
    run(folder, "shipped", "prepare", "--data", data, output="shipped")
    alone = ["--sasrec_folds", "1", "--sasrec_item_tokens", "false"]
    run(folder, "SASRec", "sasrec", "--prepared", folder / "shipped", *alone, output="sasrec")
    users = ["--sasrec", folder / "sasrec", "--prepared", folder / "shipped"]
    for name in NAMES:
        source = data
        if name in BUILD:
            options = [*BUILD[name], *(users if name == "text_users" else [])]
            run(folder, f"build {name}", "items build", "--items", data, *options, output=f"{name}_ids")
            source = folder / f"{name}_ids"
        form = "titles" if name == "titles" else "semantic_ids"
        run(folder, f"prepare {name}", "prepare", "--data", source, "--item_format", form, output=name)
        trained = folder / f"{name}_sft"
        run(folder, f"train {name}", "train", "--method", "sft", "--prepared", folder / name, output=trained.name)
        rest = ["--prepared", folder / name, "--model", trained]
        run(folder, f"evaluate {name}", "evaluate", *rest, output=f"{name}_test")
    report(folder, command)


def run(folder: Path, stage: str, command: str, *arguments: Any, output: str) -> None:
    """One command with what of the configuration it knows; nothing where its output is complete."""
    done = folder / output / "seconds.json"
    if done.exists():
        return
    known = {field.name for options in COMMANDS[command][1] for field in dataclasses.fields(options)}
    flags = [
        part
        for key, value in yaml.safe_load(CONFIG.read_text()).items()
        if key in known - {"output_dir"} and f"--{key}" not in arguments
        for part in (f"--{key}", str(value))
    ]
    start = time.perf_counter()
    if main([*command.split(), *map(str, arguments), *flags, "--output_dir", str(folder / output)]):
        raise SystemExit(1)
    done.write_text(json.dumps({stage: time.perf_counter() - start}))


def report(folder: Path, command: str) -> None:
    prepared = PreparedData.load(folder / "shipped")
    options = TeacherOptions()
    sasrec = SASRecModel.from_pretrained(folder / "sasrec").eval()
    ranks = [teacher_ranks(sasrec, prepared.splits.test, teacher_settings(sasrec, options, 0))]
    for name, method in NAMES.items():
        settings = validation(folder / f"{name}_sft")
        settings["item_format"] = "titles" if name == "titles" else "semantic_ids"
        if name in BUILD:
            settings |= json.loads((folder / f"{name}_ids" / "semantic_ids.json").read_text())["figures"]["settings"]
        ranks.append(read_ranks(folder / f"{name}_test" / "ranks.parquet", method, settings))
    seconds: dict[str, float] = {}
    for path in sorted(folder.glob("*/seconds.json"), key=lambda path: path.stat().st_mtime):
        seconds |= json.loads(path.read_text())
    results = RunResult(
        data=dataclasses.replace(prepared.summary(), notes=[]),  # which are of the data set's IDs alone
        seeds=[0],
        command=command,
        revision=revision(),
        versions=versions(),
        device=device(),
        seconds=seconds,
        selection="Each language model kept the epoch that ranked best on 200 validation users, SASRec on all.",
        methods=summarise_methods(ranks),
        paired=compare_methods(ranks, PAIRS),
    )
    write_results(results, folder / "results.json")
    (folder / "report.md").write_text(render_report(results, title="What items are called: titles and semantic IDs"))


def read_ranks(path: Path, method: str, settings: dict[str, Any]) -> MethodRanks:
    table = pq.read_table(path).to_pydict()
    starts = np.array([np.inf if rank is None else rank for rank in table["rank"]], dtype=float)
    return MethodRanks(method, table["user"], starts, np.array(table["ties"]), 0, settings)


def validation(folder: Path) -> dict[str, Any]:
    """The epoch that was kept, by the log of the training."""
    log = [entry for entry in json.loads((folder / "log.json").read_text()) if "eval_ndcg@10" in entry]
    best = max(log, key=lambda entry: entry["eval_ndcg@10"])
    config = {
        key: value for key, value in yaml.safe_load(CONFIG.read_text()).items() if key not in ("seeds", "output_dir")
    }
    return config | {"best_epoch": best["epoch"], "validation_ndcg@10": best["eval_ndcg@10"]}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with inter.json, item.json and index.json")
    parser.add_argument("--output_dir", type=Path, default=Path("runs/item_names"), help="receives everything")
    given = parser.parse_args()
    compare_names(given.data, given.output_dir, "python " + shlex.join(sys.argv))
