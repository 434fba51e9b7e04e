"""
What ILRec costs beside SFT, and beside other ways of learning from negatives: seconds of an optimiser step and peak
memory of whole trainers, and seconds of the loss alone against plain loops. From the root of the repository:

    python benchmarks/speed/training.py                  # all tables, about 25 minutes on one CPU core
    python benchmarks/speed/training.py --table methods  # one of them
    python benchmarks/speed/training.py --quick          # a small try of each, written nowhere

Writes benchmarks/results/training.csv and one plot a table. All systems of a case train the same random weights on the
same random rows; they are measured in turn, and a ratio is taken within a round. ILRec is measured in the second and
later epochs, in which the rewards of the first are known, unless its name says otherwise.
"""

import argparse
import json
import subprocess
import sys
import time
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any


sys.path.insert(0, str(Path(__file__).parents[2]))

import torch  # noqa: E402

from benchmarks.speed.measurements import (  # noqa: E402
    RESULTS,
    compare,
    in_turn,
    peak_mib,
    plot_ratios,
    reset_peak,
    resident_mib,
    write_results,
)
from benchmarks.speed.training_systems import Job, Workbench, systems  # noqa: E402
from ilrec_trl.trainer.cross_layer_forward import score_positions  # noqa: E402


ON_CPU = {"use_cpu": True, "bf16": False, "activation_checkpointing": False, "dataloader_pin_memory": False}
METHODS = [
    "SFT",
    "ILRec",
    "ILRec, first epoch",
    "ILRec without CPO",
    "ILRec without CPD",
    "ILRec without CRR",
    "naive ILRec",
    "DPO 1 negatives",
    "DPO 2 negatives",
    "DPO 3 negatives",
    "softmax-DPO 3 negatives",
    "GRPO 8 rollouts",
]
PAIR = ["SFT", "ILRec"]
JOB = Job()
#: The model and the rows of examples/configs/instruments_cpu.yaml: 18 items a row, all but the first of them targets.
USERS = Job(length=73, batch_size=64, targets=17).with_shape(
    hidden_size=64,
    intermediate_size=256,
    num_hidden_layers=6,
    num_attention_heads=2,
    num_key_value_heads=2,
    tie_word_embeddings=True,
)
#: Cases of each table: a job and the systems that do it.
TABLES: dict[str, list[tuple[Job, list[str]]]] = {
    "methods": [(JOB, METHODS)],
    "users": [(USERS, [*PAIR, "ILRec, first epoch", "ILRec without CRR", "ILRec, all tokens"])],
    "means": [
        (
            JOB.with_(kind="titles", vocab_size=32_000, num_items=2_000, length=256, batch_size=4, targets=8),
            [*PAIR, "ILRec, first epoch", "ILRec, all tokens", "ILRec, one block", "ILRec, blocks of 16 MiB"],
        )
    ],
    "titles": [(JOB.with_(kind="titles", vocab_size=32_000, num_items=2_000), [*PAIR, "ILRec without CRR"])],
    "layers": [(JOB.with_shape(num_hidden_layers=9), ["SFT", *(f"ILRec k={k}" for k in range(1, 9))])],
    "vocabulary": [(JOB.with_(vocab_size=size), PAIR) for size in (1_031, 32_000, 128_000)],
    "length": [(JOB.with_(length=length, batch_size=2), PAIR) for length in (128, 512, 2_048)],
    "targets": [(JOB.with_(targets=targets), PAIR) for targets in (1, 8, 30)],
    "catalogue": [(JOB.with_(num_items=items), PAIR) for items in (1_000, 100_000)],
}
#: Tables whose memory is measured too, each system in a process of its own.
MEMORY = ("methods", "users", "means", "titles", "vocabulary")


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
        speeds = {name: [bench.tokens_per_step / value for value in taken] for name, taken in values.items()}
        rows += compare("training", f"{table}: {job.name}", "tokens of SFT's rows a second", "", speeds, "SFT")
        show(rows[-2 * len(names) :])
    return rows


def memory_rows(table: str, cases: list[tuple[Job, list[str]]], options: dict[str, Any]) -> list:
    """Peak memory of a training, in a process of its own for each system."""
    rows = []
    for number, (job, names) in enumerate(cases):
        names = names if table in ("methods", "means") else PAIR
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
    reset_peak()
    system.step_seconds()
    return peak_mib() - before


def loss_rows(rounds: int, quick: bool) -> list:
    """Seconds from hidden states to the gradient of the loss, against heads at all positions and a loop over them."""
    job = JOB.with_(targets=2 if quick else 16)
    bench = Workbench(job, num_rows=32)
    naive, ours = (system.make() for system in systems(bench, 2, ON_CPU, ["naive ILRec", "ILRec"]).values())
    batch = dict(next(iter(ours.get_train_dataloader())))
    rows, length = batch["labels"].shape
    width = dict(job.shape)["hidden_size"]
    states = [torch.randn(rows, length, width, requires_grad=True) for _ in range(4)]  # layers, then the last, normed

    def loops() -> float:
        started = time.perf_counter()
        norm, head = naive.model.base_model.norm, naive.model.get_output_embeddings()
        naive.loss_of([head(norm(layer)) for layer in states[:-1]], head(states[-1]), batch).backward()
        return time.perf_counter() - started

    def blocks() -> float:
        started = time.perf_counter()
        targets, position_loss = ours.position_loss(batch)
        recorder = SimpleNamespace(checked=True)  # random states are no output of this model's last layer
        given = (states[-1], [*states[:-1], None], batch["labels"], targets.groups, position_loss)
        output = score_positions(ours.model, recorder, *given, ours.args.max_logits_mib)
        (output.terms.sum() - output.log_probs.sum()).backward()
        return time.perf_counter() - started

    values = in_turn({"naive ILRec": loops, "ILRec": blocks}, max(rounds, 3))
    return compare("training", f"loss: {job.name}", "loss and gradient", "s", values, "naive ILRec")


def show(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        ratio = f"{row['ratio']} ({row['ratio_low']} to {row['ratio_high']})" if row.get("ratio") else ""
        print(f"{row['case']:70} {row['system']:20} {row['metric']:15} {row['p50']:>10} {row['unit']:4} {ratio}")  # noqa: T201


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", choices=[*TABLES, "loss"], action="append", help="default: all")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3, help="optimiser steps a measurement; the first is left out")
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
        if table in MEMORY and not arguments.quick and Path("/proc/self/clear_refs").exists():
            rows += memory_rows(table, cases, ON_CPU)
    if not arguments.quick:
        path = write_results("training", rows)
        plot_ratios(rows, "optimiser step", RESULTS / "training.png")
        print(f"written to {path}")  # noqa: T201


if __name__ == "__main__":
    main()
