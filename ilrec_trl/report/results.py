"""What a comparison found: typed results, how they are computed from ranks, and the files that hold them."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ..evaluation.metrics import metric_values, standard_error
from ..evaluation.statistics import Difference, holm, paired_bootstrap


CUTS = (1, 5, 10)
METRICS = ("hit@1", "hit@5", "hit@10", "ndcg@5", "ndcg@10", "mrr")
# The metric that Holm's correction is made for, and that is compared in parts of the users.
PRIMARY = "ndcg@10"
COMPARED_METRICS = ("ndcg@10", "hit@10", "hit@1")

Values = dict[str, NDArray[np.float64]]


@dataclass
class MethodRanks:
    """
    Where one run of a method put every user's target.

    Args:
        method (`str`): Name of the method, such as `"ILRec"`.
        users (`list[str]`): User of each of the Q questions, in one order for all methods of a comparison.
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

    def values(self) -> Values:
        """Every metric's value `(Q,)` for each question."""
        return metric_values(self.starts, self.ties, CUTS)


@dataclass
class DataSummary:
    """The data of a comparison: its sizes, and notes that a reader of the report has to know."""

    name: str
    users: int
    items: int
    interactions: int
    test_users: int
    notes: list[str] = field(default_factory=list)


@dataclass
class SeedResult:
    """
    One run of a method.

    Args:
        seed (`int`, *optional*): Its seed.
        metrics (`dict[str, float]`): Mean of each metric over the questions.
        settings (`dict`): What it was run with.
    """

    seed: int | None
    metrics: dict[str, float]
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass
class MethodResult:
    """
    A method over all its seeds.

    Args:
        metrics (`dict[str, float]`): Mean of each metric over questions and seeds.
        standard_error (`dict[str, float]`): Standard error of that mean over users, who may have several questions.
        per_seed (`list[SeedResult]`): Each run.
    """

    metrics: dict[str, float]
    standard_error: dict[str, float]
    per_seed: list[SeedResult]

    @property
    def settings(self) -> dict[str, Any]:
        """What the first run was run with."""
        return self.per_seed[0].settings


@dataclass
class Comparison:
    """
    `a` minus `b` for one metric, paired by user and by seed; see [`~evaluation.statistics.paired_bootstrap`].

    Args:
        a, b (`str`): Methods.
        metric (`str`): Metric.
        difference, low, high, p_value (`float`): Mean over questions and seeds, its 95% interval, two-sided p-value.
        standard_error, seeds_error (`float`): From the choice of users, and of seeds (`None` with one seed).
        seeds (`list[int]`), each_seed (`list[float]`): The paired seeds, and the difference for each of them.
        questions (`int`): Number of questions.
        part (`str`, *optional*): Part of the questions that this is about; `None` for all of them.
        holm_p_value (`float`, *optional*): The p-value corrected for all comparisons of the primary metric.
        single (`list[str]`): Of `a` and `b`, those whose one run stands beside each seed of the other.
    """

    a: str
    b: str
    metric: str
    difference: float
    low: float
    high: float
    p_value: float
    standard_error: float
    seeds_error: float | None
    seeds: list[int | None]
    each_seed: list[float]
    questions: int
    part: str | None = None
    holm_p_value: float | None = None
    single: list[str] = field(default_factory=list)


@dataclass
class RunResult:
    """
    What one data set's comparison found; `results.json` holds it as it is here.

    Args:
        data (`DataSummary`): The data.
        seeds (`list[int]`), command (`str`): Seeds of the trained methods, and what was run.
        revision (`str`), versions (`dict[str, str]`), device (`str`): What it ran on.
        seconds (`dict[str, float]`): Time of each stage.
        selection (`str`): How each method's epoch was chosen, as a sentence.
        methods (`dict[str, MethodResult]`): Every method by name.
        paired (`list[Comparison]`): Every declared comparison.
    """

    data: DataSummary
    seeds: list[int]
    command: str
    revision: str
    versions: dict[str, str]
    device: str
    seconds: dict[str, float]
    selection: str
    methods: dict[str, MethodResult]
    paired: list[Comparison]

    def comparison(self, a: str, b: str, metric: str = PRIMARY) -> Comparison | None:
        """The comparison of two methods over all questions, if it was made."""
        wanted = (a, b, metric, None)
        return next((row for row in self.paired if (row.a, row.b, row.metric, row.part) == wanted), None)


def summarise_methods(ranks: Sequence[MethodRanks]) -> dict[str, MethodResult]:
    """
    Every method's metrics with their standard errors over users, who may have several questions each. With several
    seeds a metric is the mean over them, and its standard error is that of the questions' means.
    """
    _check_users(ranks)
    methods = {}
    for name, entries in by_method(ranks).items():
        each = [entry.values() for entry in entries]
        means = {metric: np.mean([values[metric] for values in each], axis=0) for metric in METRICS}  # (Q,)
        methods[name] = MethodResult(
            metrics={metric: float(means[metric].mean()) for metric in METRICS},
            standard_error={metric: standard_error(means[metric], entries[0].users) for metric in METRICS},
            per_seed=[
                SeedResult(entry.seed, {name: float(values[name].mean()) for name in METRICS}, entry.settings)
                for entry, values in zip(entries, each, strict=True)
            ],
        )
    return methods


def by_method(ranks: Sequence[MethodRanks]) -> dict[str, list[MethodRanks]]:
    """The runs of each method, in their order."""
    names = dict.fromkeys(entry.method for entry in ranks)
    return {name: [entry for entry in ranks if entry.method == name] for name in names}


def compare_methods(
    ranks: Sequence[MethodRanks],
    pairs: Sequence[tuple[str, str]],
    parts: Mapping[str, NDArray[np.bool_]] | None = None,
) -> list[Comparison]:
    """
    Compare pairs of methods by one bootstrap over users and seeds.

    Args:
        ranks (`list[MethodRanks]`): Runs of all methods, with the same questions.
        pairs (`list[tuple[str, str]]`): `(a, b)`; a pair without runs to compare is left out.
        parts (`dict[str, np.ndarray]`, *optional*): By name, which questions `(Q,)` belong to a part of the users.

    Returns:
        `list[Comparison]`: for each pair NDCG@10 over all questions and over each part, then the other metrics.
    """
    _check_users(ranks)
    methods = by_method(ranks)
    values = {name: [entry.values() for entry in entries] for name, entries in methods.items()}
    users = np.unique(ranks[0].users if ranks else [], return_inverse=True)[1].astype(np.int64)  # (Q,)
    everyone = np.ones(len(users), dtype=bool)
    asked: list[tuple[Comparison, Difference]] = []
    for a, b in pairs:
        seeds, rows = _paired_runs(methods, a, b)
        if not rows:
            continue
        single = [name for name in (a, b) if len(seeds) > 1 and len(methods[name]) == 1]
        chosen: list[tuple[str, str | None, NDArray[np.bool_]]] = [(PRIMARY, None, everyone)]
        chosen += [(PRIMARY, part, inside) for part, inside in (parts or {}).items()]
        chosen += [(metric, None, everyone) for metric in COMPARED_METRICS[1:]]
        for metric, part, inside in chosen:
            each = np.stack([values[a][i][metric][inside] - values[b][j][metric][inside] for i, j in rows])  # (S, Q)
            difference = Difference(each, users[inside])
            row = Comparison(
                *(a, b, metric, 0.0, 0.0, 0.0, 0.0, 0.0, None, seeds, each.mean(1).tolist(), int(inside.sum()), part),
                single=single,
            )
            asked.append((row, difference))
    for (row, _), test in zip(asked, paired_bootstrap([each for _, each in asked]), strict=True):
        row.difference, row.low, row.high, row.p_value = test.difference, test.low, test.high, test.p_value
        row.standard_error, row.seeds_error = test.users_error, test.seeds_error
    primary = [row for row, _ in asked if row.metric == PRIMARY and row.part is None]
    for row, adjusted in zip(primary, holm([row.p_value for row in primary]), strict=True):
        row.holm_p_value = adjusted
    return [row for row, _ in asked]


def _check_users(ranks: Sequence[MethodRanks]) -> None:
    if any(entry.users != ranks[0].users for entry in ranks):
        raise ValueError("the runs hold different users or another order of them; evaluate all on one split")


def _paired_runs(
    methods: Mapping[str, Sequence[MethodRanks]], a: str, b: str
) -> tuple[list[int | None], list[tuple[int, int]]]:
    """
    Seeds, and which run of each method stands for a seed; a method with a single run, such as popularity, stands
    beside each run of the other.
    """
    if a not in methods or b not in methods:
        return [], []
    first, second = ([entry.seed for entry in methods[name]] for name in (a, b))
    if len(first) == 1 or len(second) == 1:
        seeds = first if len(second) == 1 else second
        rows = range(len(seeds))
        return list(seeds), [(0 if len(first) == 1 else row, 0 if len(second) == 1 else row) for row in rows]
    shared = [seed for seed in first if seed in second]
    return list(shared), [(first.index(seed), second.index(seed)) for seed in shared]


def write_results(results: Any, path: str | Path) -> None:
    """Write a dataclass or a `dict` as JSON; a figure that does not exist (`nan`) becomes `null`."""
    Path(path).write_text(json.dumps(as_json(results), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


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


def as_json(value: Any) -> Any:
    """
    Numbers and containers of the standard library only, so that any JSON reader can read them. The metrics of a method
    stand beside its other entries.
    """
    if isinstance(value, MethodResult | SeedResult):
        fields = {each.name: getattr(value, each.name) for each in dataclasses.fields(value) if each.name != "metrics"}
        first = {"settings": value.settings} if isinstance(value, MethodResult) else {}
        return as_json(value.metrics | first | fields)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {each.name: as_json(getattr(value, each.name)) for each in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): as_json(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(entry) for entry in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
