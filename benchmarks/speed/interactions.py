"""
From files of interactions to splits: seconds and peak memory of each stage, every one in a process of its own.

```bash
python benchmarks/speed/interactions.py            # 10 million interactions, about 4 minutes
python benchmarks/speed/interactions.py --quick    # half a million
```

The files are generated with the skew of shop data: few items and users make most interactions, ids look like Amazon's.
`rows` is the way of a loop over pandas groups, measured on a tenth of the interactions beside this package on the same
ones.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any


sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np  # noqa: E402
import pyarrow as pa  # noqa: E402
import pyarrow.csv  # noqa: E402
import pyarrow.parquet  # noqa: E402

from benchmarks.speed.measurements import compare, in_turn, peak_mib, write_results  # noqa: E402
from ilrec_trl import Interactions  # noqa: E402


def write_files(folder: Path, number: int, seed: int = 0) -> None:
    """`interactions.parquet` and `interactions.csv`, of the columns user_id, item_id, rating, timestamp."""
    chance = np.random.default_rng(seed)
    users = (number // 10 * chance.power(0.6, number)).astype(np.int64)  # many short users, a few long ones
    items = np.minimum(chance.zipf(1.2, number), number // 50) * 7919 % (number // 50)
    table = pa.table(
        {
            "user_id": _ids("A", users, number // 10),
            "item_id": _ids("B", items, number // 50),
            "rating": chance.integers(1, 6, number),
            "timestamp": chance.integers(1_300_000_000, 1_540_000_000, number),
        }
    )
    pyarrow.parquet.write_table(table, folder / "interactions.parquet")
    pyarrow.csv.write_csv(table, folder / "interactions.csv")


def _ids(letter: str, codes: np.ndarray, number: int) -> pa.Array:
    names = pa.array([f"{letter}{code * 2654435761 % 10**12:012d}" for code in range(number)])
    return names.take(pa.array(codes))


def load_and_split(path: Path) -> object:
    """What `ilrec prepare` does: read, check, group, sort, split."""
    return Interactions.load(path).filter(min_items=3).leave_one_out()


def loop_over_groups(path: Path) -> object:
    """The usual script: pandas groups, a Python list a user."""
    import pandas as pd

    frame = pd.read_csv(path) if path.suffix == ".csv" else pd.read_parquet(path)
    frame = frame.sort_values(["user_id", "timestamp"], kind="stable")
    train, validation, test = [], [], []
    for user, group in frame.groupby("user_id"):
        items = group["item_id"].tolist()
        if len(items) >= 3:
            train.append((user, items[:-2]))
            validation.append((user, items[:-2], items[-2]))
            test.append((user, items[:-1], items[-1]))
    return train, validation, test


def read_questions(splits: object) -> None:
    """A thousand questions of a split, as a trainer looks at them."""
    for row in np.random.default_rng(0).integers(0, len(splits.test), 1000):
        assert splits.test[int(row)].item


ROWS = "csv to splits, rows"
# What a stage needs before the clock starts, and what is measured.
STAGES: dict[str, tuple[Callable[[Path], object], Callable[[object], object]]] = {
    "parquet to splits": (lambda folder: folder / "interactions.parquet", load_and_split),
    "csv to splits": (lambda folder: folder / "interactions.csv", load_and_split),
    ROWS: (lambda folder: folder / "interactions.csv", loop_over_groups),
    "load saved": (lambda folder: folder / "saved", Interactions.load),
    "5-core": (lambda folder: Interactions.load(folder / "saved"), lambda loaded: loaded.k_core(5)),
    "drop exact repeats": (
        lambda folder: Interactions.load(folder / "saved"),
        lambda loaded: loaded.filter(drop_repeats="exact"),
    ),
    "global time": (
        lambda folder: Interactions.load(folder / "saved"),
        lambda loaded: loaded.global_time(validation_share=0.1, test_share=0.1),
    ),
    "1000 questions": (
        lambda folder: Interactions.load(folder / "saved").leave_one_out(short_users="train"),
        read_questions,
    ),
}


def measure(stage: str, folder: Path) -> dict[str, float]:
    """Run a stage in a new process; returns its seconds and its peak memory."""
    command = [sys.executable, "-m", "benchmarks.speed.interactions", "--stage", stage, "--folder", str(folder)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def run_stage(stage: str, folder: Path) -> None:
    """Print the seconds of a stage and the peak memory of this process, what it imports included."""
    prepare, work = STAGES[stage]
    given = prepare(folder)
    start = time.perf_counter()
    kept = work(given)
    seconds = time.perf_counter() - start
    sys.stdout.write(json.dumps({"s": seconds, "GiB": peak_mib() / 1024}))
    del kept


def main(number: int, rounds: int, quick: bool) -> None:
    with tempfile.TemporaryDirectory() as name:
        whole, part = Path(name) / "whole", Path(name) / "part"
        for folder, size in ((whole, number), (part, number // 10)):
            folder.mkdir()
            write_files(folder, size)
            Interactions.load(folder / "interactions.parquet").save(folder / "saved")
        stages = [stage for stage in STAGES if stage != ROWS]
        rows = compare_stages(whole, f"{number} interactions", stages, "", rounds)
        rows += compare_stages(part, f"{number // 10} interactions", ["csv to splits", ROWS], ROWS, rounds)
    for row in rows:
        ratio = f"{row['ratio']}x" if row.get("ratio") else ""
        line = f"{row['case']:22} {row['system']:20} {row['metric']:12} {row['p50']:>10} {row['unit']:4} {ratio}"
        sys.stdout.write(line + "\n")
    if not quick:
        sys.stdout.write(f"{write_results('interactions', rows)}\n")


def compare_stages(folder: Path, case: str, stages: list[str], baseline: str, rounds: int) -> list[dict[str, Any]]:
    """CSV rows of time and peak memory of stages, measured in turn."""
    measured: dict[str, list[dict[str, float]]] = {stage: [] for stage in stages}

    def note(stage: str) -> float:
        measured[stage].append(measure(stage, folder))
        return measured[stage][-1]["s"]

    in_turn({stage: partial(note, stage) for stage in stages}, rounds)
    rows = []
    for metric, unit in (("time", "s"), ("peak memory", "GiB")):
        values = {stage: [one[unit] for one in measured[stage]] for stage in stages}
        rows += compare("interactions", case, metric, unit, values, baseline)
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few interactions, once; writes no CSV")
    parser.add_argument("--stage", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.stage:
        run_stage(arguments.stage, arguments.folder)
    elif arguments.quick:
        main(500_000, 1, quick=True)
    else:
        main(10_000_000, 3, quick=False)
