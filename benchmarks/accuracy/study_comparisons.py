"""The declared comparisons of a study: paired by user and seed, over all users and over parts of them."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ilrec_trl.evaluation.metrics import metric_values
from ilrec_trl.evaluation.statistics import Difference, holm, paired_bootstrap
from ilrec_trl.report.results import CUTS, MethodRanks


METRICS = ("ndcg@10", "hit@10", "hit@1")
# The one that Holm's correction is made for, and that is looked at in parts of the users.
PRIMARY = "ndcg@10"

Values = dict[str, NDArray[np.float64]]


def compare(
    ranks: dict[str, list[MethodRanks]], pairs: list[tuple[str, str]], parts: dict[str, NDArray[np.bool_]]
) -> list[dict[str, Any]]:
    """
    Test pairs of methods.

    Args:
        ranks (`dict[str, list[MethodRanks]]`): By method, one entry a seed, all with the same questions.
        pairs (`list[tuple[str, str]]`): `(a, b)`; one without runs that can be paired is left out.
        parts (`dict[str, np.ndarray]`): By name, which questions `(Q,)` belong to a part of the users.

    Returns:
        `list[dict]`: one entry a pair, `metrics` with a test each and `parts` with a test of NDCG@10 each.
    """
    values = {
        name: [metric_values(entry.starts, entry.ties, CUTS) for entry in entries] for name, entries in ranks.items()
    }
    users = np.unique(next(iter(ranks.values()))[0].users, return_inverse=True)[1].astype(np.int64) if ranks else None
    rows: list[dict[str, Any]] = []
    asked: list[tuple[dict[str, Any], str, Difference]] = []
    for a, b in pairs:
        seeds, runs = _paired_runs(ranks, values, a, b)
        if not runs or users is None:
            continue
        row: dict[str, Any] = {"a": a, "b": b, "seeds": seeds, "metrics": {}, "parts": {}}
        # Whose one run stands beside each seed of the other
        row["single"] = [name for name in (a, b) if len(seeds) > 1 and len(ranks[name]) == 1]
        rows.append(row)
        for metric in METRICS:
            each = np.stack([first[metric] - second[metric] for first, second in runs])  # (S, Q)
            asked.append((row["metrics"], metric, Difference(each, users)))
            if metric == PRIMARY:
                row["each_seed"] = each.mean(1).tolist()
                for name, inside in parts.items():
                    asked.append((row["parts"], name, Difference(each[:, inside], users[inside])))
    tests = paired_bootstrap([difference for _, _, difference in asked])
    for (place, name, difference), test in zip(asked, tests, strict=True):
        place[name] = asdict(test) | {"questions": len(difference.users)}
    for row, adjusted in zip(rows, holm([row["metrics"][PRIMARY]["p_value"] for row in rows]), strict=True):
        row["holm_p_value"] = adjusted
    return rows


def _paired_runs(
    ranks: dict[str, list[MethodRanks]], values: dict[str, list[Values]], a: str, b: str
) -> tuple[list[int | None], list[tuple[Values, Values]]]:
    """Runs of one seed side by side; a method with a single run, such as popularity, stands beside each."""
    if a not in ranks or b not in ranks:
        return [], []
    first, second = ([entry.seed for entry in ranks[name]] for name in (a, b))
    if len(first) == 1 or len(second) == 1:
        seeds = first if len(second) == 1 else second
        return list(seeds), [
            (values[a][0 if len(first) == 1 else row], values[b][0 if len(second) == 1 else row])
            for row in range(len(seeds))
        ]
    shared = [seed for seed in first if seed in second]
    return list(shared), [(values[a][first.index(seed)], values[b][second.index(seed)]) for seed in shared]


def question_parts(path: Path, questions: list[tuple[str, str]]) -> dict[str, NDArray[np.bool_]]:
    """
    Parts of the test questions: thirds by how often the target was trained on, halves by the length of the history.

    Args:
        path (`Path`): Parquet table with the columns `user`, `item`, `count` and `history`.
        questions (`list[tuple[str, str]]`): Users and targets in the order of the ranks.
    """
    table = pq.read_table(path).to_pydict()
    rows = {question: row for row, question in enumerate(zip(table["user"], table["item"], strict=True))}
    order = [rows[question] for question in questions]
    counts, lengths = np.array(table["count"])[order], np.array(table["history"])[order]  # (Q,), (Q,)
    low, high = (int(value) for value in np.quantile(counts, [1 / 3, 2 / 3], method="lower"))
    half = int(np.quantile(lengths, 0.5, method="lower"))
    parts = {
        f"tail targets (trained on {_span(0, low)} times)": counts <= low,
        f"middle targets ({_span(low + 1, high)} times)": (counts > low) & (counts <= high),
        f"head targets (over {high} times)": counts > high,
        f"short histories (up to {half} items)": lengths <= half,
        f"long histories (over {half} items)": lengths > half,
    }
    return {name: inside for name, inside in parts.items() if inside.any()}


def _span(first: int, last: int) -> str:
    return str(last) if first >= last else f"{first} to {last}"
