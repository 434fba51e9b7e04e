"""
How often the 95% intervals of a study hold the true difference, on drawn data: by the number of seeds, and by whether
users, single runs or seeds make the chance. From the root of the repository, about a minute:

    python benchmarks/accuracy/study_coverage.py
    python benchmarks/accuracy/study_coverage.py --quick  # fewer rounds, written nowhere

Writes benchmarks/results/study_coverage.csv.
"""

import argparse
import sys
from pathlib import Path


sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np  # noqa: E402

from benchmarks.speed.measurements import write_results  # noqa: E402
from ilrec_trl.evaluation.statistics import Difference, paired_bootstrap  # noqa: E402


USERS, RESAMPLES = 150, 400
ALIKE = 1 / USERS**0.5  # as large as what one run's users make of the mean
# Standard deviations of users, of seeds, and of single runs by user
CHANCE = {
    "users differ": (1, 0, 0),
    "each run differs by user": (0, 0, 1),
    "seeds differ as much besides": (0, ALIKE, 1),
    "seeds differ five times as much": (0, 5 * ALIKE, 1),
}


def coverage(seeds: int, chance: tuple[float, float, float], rounds: int) -> float:
    """Share of the intervals that hold the true difference, 0."""
    of_user, of_seed, of_run = chance
    generator = np.random.default_rng(0)
    inside = 0
    for number in range(rounds):
        values = of_user * generator.normal(size=USERS) + of_seed * generator.normal(size=(seeds, 1))
        values = values + of_run * generator.normal(size=(seeds, USERS))  # (S, Q)
        (test,) = paired_bootstrap([Difference(values, np.arange(USERS))], resamples=RESAMPLES, seed=number)
        inside += test.low <= 0 <= test.high
    return inside / rounds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    rounds = 40 if arguments.quick else 1000
    rows = []
    for seeds in (2, 3, 5):
        for case, chance in CHANCE.items():
            share = coverage(seeds, chance, rounds)
            print(f"{seeds} seeds, {case}: {share:.1%}")  # noqa: T201
            about = {"benchmark": "study_coverage", "case": case, "system": f"{seeds} seeds"}
            rows.append(about | {"metric": "coverage of 95% intervals", "unit": "share", "p50": f"{share:.4g}"})
    if not arguments.quick:
        print(f"written to {write_results('study_coverage', rows)}")  # noqa: T201


if __name__ == "__main__":
    main()
