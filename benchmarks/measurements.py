"""
What every benchmark shares: systems measured in turn, ratios to a baseline of the same round, and one CSV a benchmark.
"""

import csv
import datetime
import os
import platform
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np


RESULTS = Path(__file__).parent / "results"
COLUMNS = (
    "benchmark,case,system,baseline,metric,unit,p20,p50,p80,ratio,ratio_low,ratio_high,device,versions,date"
).split(",")
PACKAGES = ("torch", "transformers", "trl")


def in_turn(systems: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """
    Measure every system once a round, in an order that moves on by one each round, so that whatever else the machine
    does meets all of them alike.

    Args:
        systems (`dict[str, Callable[[], float]]`): Functions that return one measurement.
        rounds (`int`): Measurements of each.
    """
    names = list(systems)
    values: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            values[name].append(systems[name]())
    return values


def compare(
    benchmark: str, case: str, metric: str, unit: str, values: dict[str, Sequence[float]], baseline: str
) -> list[dict[str, Any]]:
    """
    One CSV row a system: its 20th, 50th and 80th percentile, and those of its ratio to the baseline, round by round.
    A baseline that was not measured leaves the ratios empty.
    """
    rows = []
    for system, measured in values.items():
        row = {"benchmark": benchmark, "case": case, "system": system, "baseline": "", "metric": metric, "unit": unit}
        row |= {
            name: f"{value:.6g}" for name, value in zip(("p20", "p50", "p80"), _percentiles(measured), strict=True)
        }
        if baseline in values:
            ratios = np.divide(measured, values[baseline])
            low, middle, high = (f"{value:.4g}" for value in _percentiles(ratios))
            row |= {"baseline": baseline, "ratio": middle, "ratio_low": low, "ratio_high": high}
        rows.append(row)
    return rows


def write_results(benchmark: str, rows: list[dict[str, Any]], folder: Path = RESULTS) -> Path:
    """Write `<folder>/<benchmark>.csv` with device, versions and date on every row."""
    about = {
        "device": device(),
        "versions": " ".join([f"python={platform.python_version()}", *map(_version, PACKAGES)]),
        "date": datetime.date.today().isoformat(),
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{benchmark}.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(row | about for row in rows)
    return path


def device() -> str:
    """The accelerator, or the processor with the threads that torch uses."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name(0)
    return f"{_processor()}, {torch.get_num_threads()} of {os.cpu_count()} cores"


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _version(package: str) -> str:
    return f"{package}={metadata.version(package)}"


def _percentiles(values: Sequence[float]) -> tuple[float, float, float]:
    low, middle, high = np.percentile(values, (20, 50, 80))
    return float(low), float(middle), float(high)
