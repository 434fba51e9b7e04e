"""
What collaborative rewards cost a training step: SASRec's scores and their shares by token, beside the plain way of
computing them, and against the size of the catalogue. From the root of the repository:

    python benchmarks/speed/rewards.py          # about 4 minutes on one CPU core
    python benchmarks/speed/rewards.py --quick  # a small try of each table, written nowhere

Writes benchmarks/results/rewards.csv. The batch is that of 64 user sequences, every item after a sequence's first
being a target with a history of its own. Weights are random: time does not depend on them.
"""

import argparse
import functools
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np  # noqa: E402
import torch  # noqa: E402

from benchmarks.speed.measurements import compare, in_turn, peak_mib, write_results  # noqa: E402
from ilrec_trl import ItemTrie, SASRecConfig, SASRecModel, SASRecReward  # noqa: E402
from ilrec_trl.rewards.sequence_batches import PADDING  # noqa: E402
from ilrec_trl.trainer.target_rewards import ShareCache, share_rewards  # noqa: E402
from ilrec_trl.trainer.targets import TargetPositions  # noqa: E402


LEVELS, CODES = 4, 256
CATALOGUES = [1_000, 10_000, 100_000, 1_000_000]


class Store:
    """A generated catalogue with semantic IDs, and batches of target items with their histories."""

    def __init__(self, num_items: int, num_users: int, batches: int, seed: int = 0) -> None:
        draw = np.random.default_rng(seed)
        codes = draw.integers(0, CODES, (num_items, LEVELS)) + CODES * np.arange(LEVELS)
        self.item_ids = [str(item) for item in range(num_items)]
        self.item_trie = ItemTrie.from_arrays(np.array(self.item_ids), codes)
        model = SASRecModel(SASRecConfig(item_ids=self.item_ids)).eval()
        self.model, self.vocab_size = model, CODES * LEVELS
        self.batches = [self._batch(draw, codes, num_users) for _ in range(batches)]

    def _batch(
        self, draw: np.random.Generator, codes: np.ndarray, num_users: int
    ) -> tuple[list[list[str]], torch.Tensor, torch.Tensor]:
        """Histories, and the nodes and rows of the positions of their targets."""
        histories, targets = [], []
        for _ in range(num_users):
            # Skewed as stores are: half of the users have up to 5 items to train on, one in a hundred over 50
            items = draw.integers(0, len(self.item_ids), 2 + int(draw.lognormal(1.2, 0.9)))
            for place in range(1, len(items)):
                histories.append([self.item_ids[item] for item in items[:place]])
                targets.append(items[place])
        prefixes = np.full((len(targets), LEVELS, LEVELS), -1)
        for level in range(1, LEVELS):
            prefixes[:, level, :level] = codes[targets][:, :level]
        nodes = self.item_trie.nodes(torch.from_numpy(prefixes.reshape(-1, LEVELS)))
        return histories, nodes, torch.arange(len(targets)).repeat_interleave(LEVELS)


def plain_scores(store: Store, columns: torch.Tensor, histories: list[list[str]]) -> torch.Tensor:
    """All histories in one batch as long as the longest, and scores put into the order of the trie afterwards."""
    model, rows = store.model, [store.model.input_ids(history) for history in histories]
    input_ids = torch.full((len(rows), max(map(len, rows))), PADDING)
    for row, ids in enumerate(rows):
        input_ids[row, : len(ids)] = torch.tensor(ids)
    with torch.no_grad():
        return model(input_ids).logits[:, columns].softmax(-1)


def seconds(function: Callable[..., Any], store: Store, turns: list[int]) -> Callable[[], float]:
    """Processor seconds of one batch after the other."""

    def measure() -> float:
        turns[0] += 1
        start = time.process_time()
        function(*store.batches[turns[0] % len(store.batches)])
        return time.process_time() - start

    return measure


def batch_rows(num_items: int, num_users: int, rounds: int) -> list[dict[str, Any]]:
    """Shares of a batch's targets: plainly, as the first epoch computes them, and as later ones find them."""
    store = Store(num_items, num_users, batches=4)
    columns = torch.tensor([int(item) for item in store.item_trie.item_ids])
    reward_func, cache = SASRecReward(store.model, store.item_trie), ShareCache(512)

    def plainly(histories: list[list[str]], nodes: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        scores = plain_scores(store, columns, histories)
        return store.item_trie.token_rewards(scores, nodes, store.vocab_size, rows=rows)

    def shares(kept: ShareCache | None, histories: list[list[str]], nodes: torch.Tensor, rows: torch.Tensor) -> Any:
        bounds = [0, *store.item_trie.arrays.child_counts(nodes).cumsum(0).tolist()]
        targets = TargetPositions([], nodes, nodes, rows, nodes, bounds)
        return share_rewards(reward_func, {"history": histories}, targets, store.item_trie, kept)

    for batch in store.batches:
        dense = plainly(*batch)
        torch.testing.assert_close(shares(cache, *batch), dense[dense > 0], atol=1e-6, rtol=1e-3)
    systems = {
        "plain scores, ItemTrie.token_rewards": plainly,
        "share_rewards, first epoch": functools.partial(shares, None),
        "share_rewards, later epochs": functools.partial(shares, cache),
    }
    targets = sum(len(histories) for histories, _, _ in store.batches) // len(store.batches)
    # Every system walks through the same batches, a turn of its own each
    values = in_turn({name: seconds(function, store, [0]) for name, function in systems.items()}, rounds)
    case = f"{num_items} items, {targets} targets"
    return compare("rewards", case, "CPU time", "s", values, "plain scores, ItemTrie.token_rewards")


def catalogue_case(num_items: int, num_users: int, rounds: int) -> dict[str, Any]:
    """Seconds of scores and shares of one batch, and peak memory, in a process of its own."""
    store = Store(num_items, num_users, batches=2)
    reward = SASRecReward(store.model, store.item_trie)

    def step(histories: list[list[str]], nodes: torch.Tensor, rows: torch.Tensor) -> None:
        store.item_trie.token_rewards(reward(histories), nodes, store.vocab_size, rows=rows)

    measure = seconds(step, store, [0])
    measure()
    times = [measure() for _ in range(rounds)]
    targets = sum(len(histories) for histories, _, _ in store.batches) / len(store.batches)
    return {"targets": targets, "seconds": times, "peak": peak_mib()}


def catalogue_rows(catalogues: list[int], num_users: int, rounds: int) -> list[dict[str, Any]]:
    rows = []
    for num_items in catalogues:
        arguments = ["--case", str(num_items), str(num_users), str(rounds)]
        done = subprocess.run([sys.executable, __file__, *arguments], check=True, capture_output=True, text=True)
        found = json.loads(done.stdout)
        case = f"catalogue of {num_items} items"
        per_target = [1e6 * value / found["targets"] / num_items for value in found["seconds"]]
        for metric, unit, values in [
            ("CPU time a batch", "s", found["seconds"]),
            ("CPU time a target and item", "us", per_target),
            ("peak memory", "MiB", [found["peak"]]),
        ]:
            rows += compare("rewards", case, metric, unit, {"SASRecReward and token_rewards": values}, "")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="Small sizes, and no CSV.")
    parser.add_argument("--case", nargs=3, type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if arguments.case:
        print(json.dumps(catalogue_case(*arguments.case)))  # noqa: T201
        return
    if arguments.quick:
        rows = batch_rows(1_000, 64, rounds=8) + catalogue_rows(CATALOGUES[:2], 8, rounds=3)
    else:
        rows = batch_rows(9_922, 64, rounds=40) + catalogue_rows(CATALOGUES, 8, rounds=9)
    for row in rows:
        shown = [row[name] for name in ("case", "system", "metric", "p50", "unit")] + [row.get("ratio", "")]
        print(*shown, sep=" | ")  # noqa: T201
    if not arguments.quick:
        write_results("rewards", rows)


if __name__ == "__main__":
    main()
