"""
How ILRec's own work grows: with the number of intermediate layers K, of target positions N, of vocabulary entries V,
and of catalogue items I (in the reward); and the whole step, of ILRec and of SFT, with the length S of a row. From the
root of the repository, about four minutes on one CPU core:

    python benchmarks/speed/curves.py
    python benchmarks/speed/curves.py --quick  # fewer points, written nowhere

Each curve moves one driver and holds the others; its points are measured in turn. "Deviation" is the largest ratio of
a point to the line a + b x, a and b at least 0, that fits all points of the curve best, relatively. Memory that is
freed is kept by the process (`KEPT`), since glibc gives blocks of more than 32 MiB back to the system at once, and
fetching them again costs more than the arithmetic. Writes benchmarks/results/curves.csv and curves.png.
"""

import argparse
import functools
import os
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any


sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np  # noqa: E402
import torch  # noqa: E402
from scipy.optimize import nnls  # noqa: E402
from transformers import LlamaConfig, LlamaForCausalLM  # noqa: E402

from benchmarks.speed.measurements import RESULTS, compare, in_turn, write_results  # noqa: E402
from benchmarks.speed.training import ON_CPU  # noqa: E402
from benchmarks.speed.training_systems import Job, Workbench, systems  # noqa: E402
from ilrec_trl.items.item_trie import ItemTrie  # noqa: E402
from ilrec_trl.model.model_parts import find_model_parts  # noqa: E402
from ilrec_trl.trainer.cross_layer_forward import project_groups  # noqa: E402
from ilrec_trl.trainer.ilrec_config import ILRecConfig  # noqa: E402
from ilrec_trl.trainer.ilrec_loss import ILRecLoss  # noqa: E402
from ilrec_trl.trainer.target_rewards import share_rewards  # noqa: E402
from ilrec_trl.trainer.targets import TargetPositions  # noqa: E402


KEPT = {"MALLOC_MMAP_THRESHOLD_": str(2**32), "MALLOC_TRIM_THRESHOLD_": str(2**33)}
HIDDEN = 128
DRIVERS = {
    "K": ("intermediate layers", [1, 2, 4, 6, 8], {"N": 128, "V": 8_192}),
    "N": ("target positions", [64, 128, 256, 512, 1_024], {"K": 3, "V": 8_192}),
    "V": ("vocabulary entries", [8_192, 16_384, 32_768, 65_536, 131_072], {"K": 3, "N": 64}),
    "I": ("catalogue items", [1_000, 10_000, 100_000, 300_000, 1_000_000], {"T": 16}),
    "S": ("tokens a row", [256, 512, 1_024, 2_048], {"B": 2, "system": "ILRec"}),
    "S of SFT": ("tokens a row", [256, 512, 1_024, 2_048], {"B": 2, "system": "SFT"}),
}


def random_trie(num_items: int, first_token: int = 3) -> ItemTrie:
    generator = np.random.default_rng(0)
    codes = generator.integers(0, 256, (num_items, 4)) + 256 * np.arange(4) + first_token
    return ItemTrie.from_arrays(range(num_items), codes)


def terms_seconds(K: int, N: int, V: int) -> Callable[[], float]:
    """Heads of all layers, mining, CPO, CPD and CRR at N positions, and their gradient, given the hidden states."""
    trie = random_trie(10_000)
    generator = torch.Generator().manual_seed(0)
    chosen = torch.randint(len(trie), (N // 4,), generator=generator).tolist()
    tokens = torch.tensor([trie.sequence(item) for item in chosen]).flatten()
    input_ids = torch.cat([torch.zeros(1, dtype=torch.long), tokens])[None]  # (1, N + 1)
    numbers = torch.cat([torch.zeros(1, dtype=torch.long), torch.arange(N) // 4 + 1])[None]
    args = ILRecConfig("unused", use_cpu=True, bf16=False)
    loss = ILRecLoss(args, 3.0, 1.0, trie, V, 0, list(range(K)))
    targets = TargetPositions.from_batch(input_ids, input_ids, numbers, trie, by_level=loss.by_level)
    scores = torch.rand(N // 4, len(trie), generator=generator)
    shares = share_rewards(lambda histories: scores[: len(histories)], {"history": chosen}, targets, trie)
    sizes = {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=V, hidden_size=HIDDEN, **sizes))
    states = torch.randn(N, HIDDEN, generator=generator, requires_grad=True)
    layers = torch.randn(K, N, HIDDEN, generator=generator, requires_grad=True)
    position_loss = functools.partial(loss, targets=targets, shares=shares)
    given = (find_model_parts(model), targets.groups, states, targets.target_ids, layers)

    def run() -> float:
        started = time.perf_counter()
        fields, terms, _ = project_groups(model, *given, position_loss, args.max_logits_mib)
        (terms.sum() - fields["log_probs"].sum()).backward()
        return time.perf_counter() - started

    return run


def reward_seconds(T: int, I: int) -> Callable[[], float]:  # noqa: E741
    """SASRec's scores of I items for T histories, and the rewards of the four tokens of each target."""
    from ilrec_trl.rewards.rewards import SASRecReward
    from ilrec_trl.rewards.sasrec import SASRecConfig, SASRecModel

    trie = random_trie(I)
    sasrec = SASRecModel(SASRecConfig(item_ids=[str(item) for item in range(I)]))
    reward_func = SASRecReward(sasrec, trie)
    generator = np.random.default_rng(1)
    leaves = trie.arrays.item_leaf[torch.from_numpy(generator.integers(0, I, T))]
    nodes = []
    for leaf in leaves.tolist():
        node = leaf
        for _ in range(trie.depth):
            node = int(trie.arrays.parent(torch.tensor([node])))
            nodes.append(node)
    nodes = torch.tensor(nodes)
    ids = torch.zeros_like(nodes)
    items = torch.arange(T).repeat_interleave(trie.depth)
    bounds = [0, *trie.arrays.child_counts(nodes).cumsum(0).tolist()]
    targets = TargetPositions([], ids, ids, items, nodes, bounds)

    def run() -> float:
        histories = generator.integers(0, I, (T, 10)).astype(str).tolist()
        started = time.perf_counter()
        with torch.no_grad():
            share_rewards(reward_func, {"history": histories}, targets, trie)
        return time.perf_counter() - started

    return run


def step_seconds(S: int, B: int, system: str) -> Callable[[], float]:
    """The whole optimiser step of a small Llama."""
    bench = Workbench(Job(length=S, batch_size=B), num_rows=3 * B)
    return systems(bench, 3, ON_CPU, [system])[system].step_seconds


MEASURED: dict[str, Callable[..., Callable[[], float]]] = {
    **dict.fromkeys("KNV", terms_seconds),
    "I": reward_seconds,
    "S": step_seconds,
}


def deviation(points: list[int], seconds: list[float]) -> float:
    """Largest ratio of a point to the line a + b x, a and b at least 0, that fits all points best, relatively."""
    x, y = np.array(points, dtype=float), np.array(seconds)
    design = np.stack([np.ones_like(x), x], axis=1) / y[:, None]
    (intercept, slope), _ = nnls(design, np.ones_like(y))
    return float((y / (intercept + slope * x)).max())


def curve(driver: str, rounds: int, quick: bool) -> list[dict[str, Any]]:
    what, points, others = DRIVERS[driver]
    points = points[:2] if quick else points
    driver = driver[0]
    rounds = min(rounds, 3) if driver == "S" else rounds  # whole trainings
    runs = {point: MEASURED[driver](**{driver: point}, **others) for point in points}
    in_turn({str(point): run for point, run in runs.items()}, 1)  # warms up
    values = in_turn({str(point): run for point, run in runs.items()}, rounds)
    case = f"{what}, " + " ".join(f"{name}={value}" for name, value in others.items())
    rows = compare(
        "curves", case, "work", "s", {f"{driver}={point}": seconds for point, seconds in values.items()}, ""
    )
    medians = [float(np.median(values[str(point)])) for point in points]
    worst = {"deviation from a line": [deviation(points, medians)]}
    rows += compare("curves", case, "deviation", "ratio", worst, "")
    for row in rows:
        print(f"{row['case']:40} {row['system']:24} {row['p50']:>10} {row['unit']}")  # noqa: T201
    return rows


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    cases = list(dict.fromkeys(row["case"] for row in rows))
    figure, panels = pyplot.subplots(1, len(cases), figsize=(3.2 * len(cases), 3), layout="constrained", squeeze=False)
    for panel, case in zip(panels[0], cases, strict=True):
        points = [row for row in rows if row["case"] == case and row["metric"] == "work"]
        x = [int(row["system"].partition("=")[2]) for row in points]
        panel.plot(x, [float(row["p50"]) for row in points], marker="o")
        panel.set_xlabel(case, fontsize=8)
        panel.set_ylabel("seconds", fontsize=8)
        panel.set_xlim(left=0)
        panel.set_ylim(bottom=0)
        panel.tick_params(labelsize=7)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--driver", choices=DRIVERS, action="append", help="default: all")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    if not KEPT.items() <= os.environ.items():  # the allocator reads them when a process begins
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **KEPT})
    rounds = 1 if arguments.quick else arguments.rounds
    rows = [row for driver in arguments.driver or DRIVERS for row in curve(driver, rounds, arguments.quick)]
    if not arguments.quick:
        path = write_results("curves", rows)
        plot(rows, RESULTS / "curves.png")
        print(f"written to {path}")  # noqa: T201


if __name__ == "__main__":
    main()
