"""
What semantic IDs cost: seconds to build those of a large catalogue, and to settle contested codes beside a plain loop.
From the root of the repository:

    python benchmarks/speed/semantic_ids.py          # 100,000 items of 768 numbers, 4 x 256 codes, 5 minutes
    python benchmarks/speed/semantic_ids.py --quick  # a small try, written nowhere

Writes benchmarks/results/semantic_ids.csv.
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path


sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np  # noqa: E402

from benchmarks.speed.measurements import compare, in_turn, write_results  # noqa: E402
from ilrec_trl import build_semantic_ids  # noqa: E402
from ilrec_trl.semantic_ids.residual_kmeans import admit  # noqa: E402
from tests.references import naive_admit  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small, and written nowhere")
    quick = parser.parse_args().quick
    rows = build_rows(2_000, 32, 16) if quick else build_rows(100_000, 768, 256)
    rows += admit_rows(500, 16, 3) if quick else admit_rows(20_000, 256, 3)
    for row in rows:
        print(f"{row['case']:32} {row['system']:12} {row['metric']:14} {row['p50']:>10} s  x {row.get('ratio', '')}")  # noqa: T201
    if not quick:
        write_results("semantic_ids", rows)


def build_rows(number: int, width: int, codes: int) -> list:
    """Seconds to build IDs, once each: plain, and balanced."""
    vectors = catalogue(number, width)
    item_ids = list(map(str, range(number)))

    def build(balance: float | None) -> float:
        return seconds(lambda: build_semantic_ids(item_ids, vectors, levels=4, codebook_size=codes, balance=balance))

    values = in_turn({"k-means": lambda: build(None), "balance 2": lambda: build(2)}, rounds=1)
    return compare("semantic_ids", f"{number:,} x {width}, 4 x {codes}", "build", "s", values, "k-means")


def admit_rows(number: int, codes: int, rounds: int) -> list:
    """Seconds to settle who gets which code, in groups of ten items that want few codes."""
    generator = np.random.default_rng(0)
    distances = generator.random((number, codes)).astype(np.float32)
    distances[:, : codes // 32 + 1] *= 0.01  # where most items want to go
    groups = np.arange(number) // 10
    lists = distances.tolist(), groups.tolist()
    systems = {
        "arrays": lambda: seconds(lambda: admit(distances, groups, 1)),
        "plain loop": lambda: seconds(lambda: naive_admit(*lists, 1, [])),
    }
    assert admit(distances, groups, 1).tolist() == naive_admit(*lists, 1, [])
    values = in_turn(systems, rounds)
    return compare("semantic_ids", f"{number:,} items, {codes} codes", "unique codes", "s", values, "plain loop")


def catalogue(number: int, width: int) -> np.ndarray:
    """Unit vectors around 500 centres, of low rank but for noise, two in a hundred of them twice."""
    generator = np.random.default_rng(0)
    centres, directions = generator.normal(size=(500, width)), generator.normal(size=(20, width))
    vectors = centres[generator.integers(0, 500, number)] + 0.3 * generator.normal(size=(number, width))
    vectors += 0.5 * generator.normal(size=(number, 20)) @ directions
    vectors[: number // 50] = vectors[number // 50 : 2 * (number // 50)]
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
