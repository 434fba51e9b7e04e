"""Figures of a run: what `results.json` holds, and the ranks behind it."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ..evaluation.metrics import metric_values, paired_test, standard_error


CUTS = (1, 5, 10)
METRICS = ("hit@1", "hit@5", "hit@10", "ndcg@5", "ndcg@10", "mrr")


@dataclass
class MethodRanks:
    """
    Where one method put every user's target.

    Args:
        method (`str`): Name of the method, such as `"ILRec"`.
        users (`list[str]`): User of each question, in one order for all methods of a run.
        starts (`np.ndarray` of shape `(Q,)`): First rank the target can have, from 1; `inf` when not retrieved.
        ties (`np.ndarray` of shape `(Q,)`): Number of items that share the target's place.
        seed (`int`, *optional*): Seed of the run; `None` for a method without chance.
        settings (`dict`, *optional*): What the method was run with.
    """

    method: str
    users: list[str]
    starts: NDArray[np.float64]
    ties: NDArray[np.int64]
    seed: int | None = None
    settings: dict[str, Any] = field(default_factory=dict)


def summarise_methods(ranks: Sequence[MethodRanks]) -> dict[str, dict[str, Any]]:
    """
    Every method's metrics with their standard errors over users, who may be asked several questions each.

    With several seeds a metric is the mean over them, and its standard error is that of the questions' means;
    `per_seed` then holds each seed's figures.
    """
    methods: dict[str, dict[str, Any]] = {}
    for name in dict.fromkeys(entry.method for entry in ranks):
        entries = [entry for entry in ranks if entry.method == name]
        values, users = question_values(ranks, name), entries[0].users
        summary: dict[str, Any] = {metric: float(values[metric].mean()) for metric in METRICS}
        summary["standard_error"] = {metric: standard_error(values[metric], users) for metric in METRICS}
        summary["settings"] = entries[0].settings
        if len(entries) > 1:
            summary["per_seed"] = [_seed_figures(entry) for entry in entries]
        methods[name] = summary
    return methods


def question_values(
    ranks: Sequence[MethodRanks], method: str, seed: int | None = None
) -> dict[str, NDArray[np.float64]]:
    """One method's metrics, one value a question: of one seed, or the mean over all of them."""
    entries = [entry for entry in ranks if entry.method == method and seed in (None, entry.seed)]
    if not entries:
        raise ValueError(f"there are no ranks of method {method!r} and seed {seed}; known: {_known(ranks)}")
    if any(entry.users != ranks[0].users for entry in ranks):
        raise ValueError("the runs hold different users or another order of them; evaluate all on one split")
    each = [metric_values(entry.starts, entry.ties, CUTS) for entry in entries]
    return {metric: np.mean([values[metric] for values in each], axis=0) for metric in METRICS}


def compare_methods(ranks: Sequence[MethodRanks], pairs: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
    """
    Paired tests over users, `a` minus `b`: one row a pair and metric over all seeds, then one for each single seed
    where both methods have several.
    """
    rows = []
    for a, b in pairs:
        seeds = [entry.seed for entry in ranks if entry.method == a]
        shared = [seed for seed in seeds if seed in {entry.seed for entry in ranks if entry.method == b}]
        for seed in [None, *(shared if len(shared) > 1 else [])]:
            first, second = question_values(ranks, a, seed), question_values(ranks, b, seed)
            for metric in METRICS:
                test = paired_test(first[metric], second[metric], ranks[0].users)
                rows.append(
                    {
                        "a": a,
                        "b": b,
                        "metric": metric,
                        "difference": test.difference,
                        "standard_error": test.standard_error,
                        "p_value": test.p_value,
                        "seeds": seeds if seed is None else [seed],
                    }
                )
    return rows


def write_results(results: dict[str, Any], path: str | Path) -> None:
    """Write `results.json`; a figure that does not exist (`nan`) becomes `null`."""
    Path(path).write_text(json.dumps(_plain(results), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_ranks(ranks: Sequence[MethodRanks], items: Sequence[str], path: str | Path) -> None:
    """
    Write every user's ranks as a Parquet table: `user`, `item` (the target), `method`, `seed`, `rank`, `ties`.

    `rank` is null where the target was not retrieved.
    """
    tables = []
    for entry in ranks:
        size = len(entry.users)
        columns = {
            "user": pa.array(entry.users, pa.string()),
            "item": pa.array(items, pa.string()),
            "method": pa.array([entry.method] * size, pa.string()),
            "seed": pa.array([entry.seed] * size, pa.int64()),
            "rank": pa.array([int(start) if math.isfinite(start) else None for start in entry.starts], pa.int64()),
            "ties": pa.array(entry.ties, pa.int64()),
        }
        tables.append(pa.table(columns))
    pq.write_table(pa.concat_tables(tables), str(path))


def _seed_figures(entry: MethodRanks) -> dict[str, Any]:
    values = metric_values(entry.starts, entry.ties, CUTS)
    figures = {"seed": entry.seed} | {metric: float(values[metric].mean()) for metric in METRICS}
    return figures | {name: value for name, value in entry.settings.items() if name == "best_epoch"}


def _known(ranks: Sequence[MethodRanks]) -> list[tuple[str, int | None]]:
    return [(entry.method, entry.seed) for entry in ranks]


def _plain(value: Any) -> Any:
    """Numbers and containers of the standard library only, so that any JSON reader can read them."""
    if isinstance(value, dict):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
