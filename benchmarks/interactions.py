"""
From files of interactions to splits: seconds and peak memory of each stage, every one in a process of its own.

```bash
python benchmarks/interactions.py            # 10 million interactions, about 4 minutes
python benchmarks/interactions.py --quick    # half a million
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
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from benchmarks.measurements import compare, in_turn, write_results
from ilrec_trl import Interactions


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


# What a stage needs before the clock starts, and what is measured.
STAGES: dict[str, tuple[Callable[[Path], object], Callable[[object], object]]] = {
    "parquet to splits": (lambda folder: folder / "interactions.parquet", load_and_split),
    "csv to splits": (lambda folder: folder / "interactions.csv", load_and_split),
    "csv to splits, rows": (lambda folder: folder / "interactions.csv", loop_over_groups),
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
    command = [sys.executable, "-m", "benchmarks.interactions", "--stage", stage, "--folder", str(folder)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def run_stage(stage: str, folder: Path) -> None:
    """Print the seconds of a stage and the peak memory of this process, what it imports included."""
    prepare, work = STAGES[stage]
    given = prepare(folder)
    start = time.perf_counter()
    kept = work(given)
    seconds = time.perf_counter() - start
    # Not getrusage: its peak includes that of the process this one was started from.
    status = Path("/proc/self/status").read_text()
    kilobytes = int(status.partition("VmHWM:")[2].split()[0])
    print(json.dumps({"seconds": seconds, "GiB": kilobytes / 2**20}))
    del kept


def main(number: int, rounds: int, quick: bool) -> None:
    rows = []
    with tempfile.TemporaryDirectory() as name:
        whole, part = Path(name) / "whole", Path(name) / "part"
        for folder, size in ((whole, number), (part, number // 10)):
            folder.mkdir()
            write_files(folder, size)
            Interactions.load(folder / "interactions.parquet").save(folder / "saved")
        for folder, size, stages, baseline in (
            (whole, number, [stage for stage in STAGES if not stage.endswith("rows")], ""),
            (part, number // 10, ["csv to splits", "csv to splits, rows"], "csv to splits, rows"),
        ):
            measured = {stage: [] for stage in stages}
            in_turn(
                {stage: lambda stage=stage: measured[stage].append(measure(stage, folder)) or 0.0 for stage in stages},
                rounds,
            )
            for metric, unit in (("seconds", "s"), ("GiB", "GiB")):
                values = {stage: [one[metric] for one in measured[stage]] for stage in stages}
                metric = "time" if metric == "seconds" else "peak memory"
                rows += compare(
                    "interactions", f"{size:,} interactions".replace(",", " "), metric, unit, values, baseline
                )
    for row in rows:
        ratio = f"{row['ratio']}x" if row.get("ratio") else ""
        print(f"{row['case']:26} {row['system']:22} {row['metric']:12} {row['p50']:>10} {row['unit']:4} {ratio}")
    if not quick:
        print(write_results("interactions", rows))


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
