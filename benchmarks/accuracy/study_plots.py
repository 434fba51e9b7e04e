"""Pictures of a study: the declared differences, and quality against the share of users that are trained on."""

from __future__ import annotations

import json
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.accuracy.study_report import primary_rows


if TYPE_CHECKING:
    from matplotlib.axes import Axes

# What the data sets of one curve may differ in
_OF_A_CURVE = ("train_users_share", "num_train_epochs")


def draw_study(results: dict[str, Any], folder: str | Path) -> list[str]:
    """
    Draw what a study found.

    Args:
        results (`dict`): What the study's `results.json` holds.
        folder (`str` or `Path`): Receives `differences.png` and, where data sets differ by the share of their users,
            `low_data.png`.

    Returns:
        `list[str]`: names of the files; none where there is nothing to draw.

    Raises:
        ImportError: If matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("The pictures need matplotlib: pip install 'ilrec-trl[report]'") from error
    drawn = []
    compared = {name: primary_rows(data) for name, data in results["data_sets"].items() if data["paired"]}
    if compared:
        most = max(map(len, compared.values()))
        figure = Figure(figsize=(9, len(compared) * (1.2 + 0.35 * most)), layout="constrained")
        axes = figure.subplots(len(compared), squeeze=False)[:, 0]
        for each, (name, rows) in zip(axes, compared.items(), strict=True):
            _draw_differences(each, name, rows)
        figure.savefig(Path(folder) / "differences.png", dpi=110)
        drawn.append("differences.png")
    curves = low_data_curves(results)
    if curves:
        figure = Figure(figsize=(6.5 * len(curves), 4.5), layout="constrained")
        axes = figure.subplots(1, len(curves), squeeze=False)[0]
        for each, curve in zip(axes, curves, strict=True):
            _draw_curve(each, curve)
        figure.savefig(Path(folder) / "low_data.png", dpi=110)
        drawn.append("low_data.png")
    return drawn


def low_data_curves(results: dict[str, Any]) -> list[dict[float, dict[str, Any]]]:
    """Groups of data sets whose options differ in `train_users_share`, and in epochs at most: `{share: data}` each."""
    groups: dict[str, list[tuple[float, dict[str, Any]]]] = {}
    for data in results["data_sets"].values():
        others = {name: value for name, value in data["options"].items() if name not in _OF_A_CURVE}
        share = data["options"].get("train_users_share", 1.0)
        groups.setdefault(json.dumps(others, sort_keys=True), []).append((share, data))
    curves = [dict(sorted(group, key=itemgetter(0))) for group in groups.values()]
    # Not where one share stands twice, with other epochs
    return [curve for curve, group in zip(curves, groups.values(), strict=True) if len(curve) == len(group) > 1]


def _draw_differences(axes: Axes, name: str, rows: list[dict[str, Any]]) -> None:
    """NDCG@10 of one method minus that of another, with its interval and each seed."""
    for line, row in enumerate(rows):
        colour = "tab:blue" if row["holm_p_value"] < 0.05 else "tab:gray"
        axes.plot([row["low"], row["high"]], [line, line], color=colour, linewidth=2)
        axes.plot(row["difference"], line, "o", color=colour)
        axes.plot(row["each_seed"], [line + 0.22] * len(row["each_seed"]), "|", color=colour, markersize=6)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set(yticks=range(len(rows)), ylim=(len(rows) - 0.4, -0.6), xlabel="difference of NDCG@10")
    axes.set_yticklabels([f"{row['a']} - {row['b']}" for row in rows])
    axes.set_title(f"{name}: 95% intervals, ticks are seeds; blue: p < 0.05 after Holm", loc="left", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_curve(axes: Axes, curve: dict[float, dict[str, Any]]) -> None:
    """NDCG@10 against the share of the users, a line a method, a band from the worst to the best seed."""
    for name in dict.fromkeys(name for data in curve.values() for name in data["methods"]):
        there = {share: data["methods"] for share, data in curve.items() if name in data["methods"]}
        points = [(share, methods[name]["per_seed"]) for share, methods in there.items()]
        shares = [100 * share for share, _ in points]
        seeds = [[run["ndcg@10"] for run in runs] for _, runs in points]
        (line,) = axes.plot(shares, [np.mean(each) for each in seeds], "o-", label=name)
        axes.fill_between(
            shares, [*map(min, seeds)], [*map(max, seeds)], color=line.get_color(), alpha=0.2, linewidth=0
        )
    ticks = [100 * share for share in curve]
    axes.set(xscale="log", xlabel="users trained on, %", ylabel="NDCG@10 of all users", ylim=(0, None))
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.legend(frameon=False, fontsize=8)
    axes.set_title("Lines: mean over seeds; bands: worst to best seed", loc="left", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
