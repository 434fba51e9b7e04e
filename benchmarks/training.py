"""
What ILRec costs beside SFT, and beside other ways of learning from negatives: seconds of an optimiser step and peak
memory of whole trainers, and seconds of the loss alone against plain loops. From the root of the repository:

    python benchmarks/training.py                  # all tables, about 20 minutes on two CPU cores
    python benchmarks/training.py --table methods  # one of them
    python benchmarks/training.py --quick          # a small try of each, written nowhere

Writes benchmarks/results/training.csv and one plot a table. All systems of a case train the same random weights on the
same random rows; they are measured in turn, and a ratio is taken within a round.
"""

import argparse
import json
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any


sys.path.insert(0, str(Path(__file__).parents[1]))

import torch  # noqa: E402

from benchmarks.measurements import RESULTS, compare, in_turn, plot_ratios, write_results  # noqa: E402
from benchmarks.training_systems import Job, Workbench, systems  # noqa: E402


ON_CPU = {"use_cpu": True, "bf16": False, "activation_checkpointing": False, "dataloader_pin_memory": False}
METHODS = [
    "SFT",
    "ILRec",
    "ILRec without CPO",
    "ILRec without CPD",
    "ILRec without CRR",
    "naive ILRec",
    "DPO",
    "softmax-DPO 3 negatives",
    "GRPO 8 rollouts",
]
PAIR = ["SFT", "ILRec"]
JOB = Job()
#: Cases of each table: a job and the systems that do it.
TABLES: dict[str, list[tuple[Job, list[str]]]] = {
    "methods": [(JOB, METHODS)],
    "titles": [(JOB.with_(kind="titles", vocab_size=32_000, num_items=2_000), [*PAIR, "ILRec without CRR"])],
    "layers": [(JOB, ["SFT", *(f"ILRec k={k}" for k in range(1, 8))])],
    "vocabulary": [(JOB.with_(vocab_size=size), PAIR) for size in (1_031, 32_000, 128_000)],
    "length": [(JOB.with_(length=length, batch_size=2), PAIR) for length in (128, 512, 2_048)],
    "targets": [(JOB.with_(targets=targets), PAIR) for targets in (1, 4, 16, 30)],
    "catalogue": [(JOB.with_(num_items=items), PAIR) for items in (1_000, 10_000, 100_000)],
}


def step_rows(
    table: str, cases: list[tuple[Job, list[str]]], rounds: int, steps: int, options: dict[str, Any]
) -> list:
    """Seconds of an optimiser step."""
    rows = []
    for job, names in cases:
        bench = Workbench(job, num_rows=max(32, job.batch_size * steps))
        trainers = systems(bench, steps, options, names)
        values = in_turn({name: system.step_seconds for name, system in trainers.items()}, rounds)
        rows += compare("training", f"{table}: {job.name}", "optimiser step", "s", values, "SFT")
        show(rows[-len(names) :])
    return rows


def memory_rows(table: str, cases: list[tuple[Job, list[str]]], options: dict[str, Any]) -> list:
    """Peak memory of a training, in a process of its own for each system."""
    rows = []
    for number, (job, names) in enumerate(cases):
        values = {}
        for name in names:
            command = [sys.executable, __file__, "--peak_memory", table, str(number), name]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            values[name] = [json.loads(done.stdout.splitlines()[-1])["MiB"]]
        rows += compare("training", f"{table}: {job.name}", "peak memory", "MiB", values, "SFT")
        show(rows[-len(names) :])
    return rows


def peak_memory(table: str, number: int, name: str) -> float:
    """MiB that three optimiser steps take at most, model and optimiser included."""
    job = TABLES[table][number][0]
    bench = Workbench(job, num_rows=max(32, 3 * job.batch_size))
    system = systems(bench, 3, ON_CPU, [name])[name]
    before = resident_mib("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the kernel's peak starts anew
    system.step_seconds()
    return resident_mib("VmHWM") - before


def resident_mib(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def loss_rows(rounds: int, quick: bool) -> list:
    """Seconds of ILRec's terms and their gradient, given the logits, against the plain loops that the tests use."""
    from ilrec_trl.trainer.losses import (
        collaborative_reward_loss,
        cross_layer_distillation_loss,
        cross_layer_preference_loss,
        negative_weights,
        self_hard_negatives,
    )
    from tests import references

    positions, layers, vocab_size = (2, 2, 64) if quick else (4, 3, 512)
    torch.manual_seed(0)
    stack = torch.randn(layers, positions, vocab_size, requires_grad=True)
    last = torch.randn(positions, vocab_size, requires_grad=True)
    targets = torch.randint(vocab_size, (positions,))
    rewards = torch.rand(positions, vocab_size)

    def ours() -> float:
        started = time.perf_counter()
        negatives = self_hard_negatives(stack, last, targets)
        weights = negative_weights(stack, negatives)
        terms = cross_layer_preference_loss(last, targets, weights, beta=3.0)
        terms = terms + 0.05 * cross_layer_distillation_loss(stack, last)
        terms = terms + collaborative_reward_loss(last, targets, negatives, rewards)
        terms.sum().backward()
        return time.perf_counter() - started

    def loops() -> float:
        started = time.perf_counter()
        total = torch.zeros(())
        for row in range(positions):
            z, middle, target = last[row], list(stack[:, row]), int(targets[row])
            negatives = references.naive_negatives(middle, z, target, selection="threshold", threshold=0.8)
            weights = references.naive_weights(middle, negatives)
            total = total + references.naive_cpo(z, target, weights, beta=3.0, penalty="additive")
            total = total + 0.05 * references.naive_cpd(middle, z)
            total = total + references.naive_crr(z, target, negatives, rewards[row], temperature=1.0)
        total.backward()
        return time.perf_counter() - started

    values = in_turn({"plain loops": loops, "ILRec's losses": ours}, max(rounds, 3))
    case = f"loss: N={positions} K={layers} V={vocab_size}"
    return compare("training", case, "loss and gradient", "s", values, "plain loops")


def show(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        ratio = f"{row['ratio']} ({row['ratio_low']} to {row['ratio_high']})" if row.get("ratio") else ""
        print(f"{row['case']:70} {row['system']:20} {row['metric']:15} {row['p50']:>10} {row['unit']:4} {ratio}")  # noqa: T201


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", choices=[*TABLES, "loss"], action="append", help="default: all")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4, help="optimiser steps a measurement; the first is left out")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--peak_memory", nargs=3, metavar=("TABLE", "CASE", "SYSTEM"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    if arguments.peak_memory:
        table, number, name = arguments.peak_memory
        print(json.dumps({"MiB": peak_memory(table, int(number), name)}))  # noqa: T201
        return
    rows = []
    rounds, steps = (1, 2) if arguments.quick else (arguments.rounds, arguments.steps)
    for table in arguments.table or [*TABLES, "loss"]:
        if table == "loss":
            rows += loss_rows(rounds, arguments.quick)
            show(rows[-2:])
            continue
        cases = TABLES[table][:1] if arguments.quick else TABLES[table]
        rows += step_rows(table, cases, rounds, steps, ON_CPU)
        if not arguments.quick and Path("/proc/self/clear_refs").exists():
            rows += memory_rows(table, cases, ON_CPU)
    if not arguments.quick:
        path = write_results("training", rows)
        plot_ratios(rows, "optimiser step", RESULTS / "training.png")
        print(f"written to {path}")  # noqa: T201


if __name__ == "__main__":
    main()
