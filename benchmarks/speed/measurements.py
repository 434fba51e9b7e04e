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


RESULTS = Path(__file__).parents[1] / "results"
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


def plot_ratios(rows: list[dict[str, Any]], metric: str, path: Path) -> None:
    """Every ratio of one metric to its baseline, a panel a case: medians, with the 20th and 80th percentile."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    chosen = [row for row in rows if row["metric"] == metric and row.get("ratio") and row["system"] != row["baseline"]]
    cases = list(dict.fromkeys(row["case"] for row in chosen))
    groups = [[row for row in chosen if row["case"] == case] for case in cases]
    heights = [0.8 + 0.32 * len(group) for group in groups]
    figure, panels = pyplot.subplots(
        len(cases), figsize=(8, sum(heights)), height_ratios=heights, squeeze=False, layout="constrained"
    )
    for panel, case, group in zip(panels[:, 0], cases, groups, strict=True):
        middle, low, high = (
            np.array([float(row[name]) for row in group]) for name in ("ratio", "ratio_low", "ratio_high")
        )
        names = [row["system"] for row in group]
        panel.barh(names, middle, xerr=(middle - low, high - middle), color="tab:blue", height=0.6)
        panel.axvline(1, color="black", linewidth=0.8)
        panel.invert_yaxis()
        panel.set_title(f"{case}: {metric} / {group[0]['baseline']}", fontsize=9, loc="left")
        panel.tick_params(labelsize=8)
        for place, value in enumerate(middle):
            panel.annotate(f" {value:.2f}", (high[place], place), va="center", fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def resident_mib(field: str) -> float:
    """Memory of this process in MiB: `"VmRSS"` now, `"VmHWM"` at its peak. `getrusage` counts its parent's, too."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def peak_mib() -> float:
    """Most memory of this process since it began, or since [`reset_peak`]."""
    return resident_mib("VmHWM")


def reset_peak() -> None:
    """From now on [`peak_mib`] counts afresh."""
    Path("/proc/self/clear_refs").write_text("5")


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
