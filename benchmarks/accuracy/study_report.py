"""The report of a study as Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from ilrec_trl.report.markdown import METRIC_TITLES, epochs_note, table, teacher_notes
from ilrec_trl.report.results import COMPARED_METRICS, METRICS, PRIMARY


def render_comparisons(data: dict[str, Any]) -> list[str]:
    """The declared comparisons on one data set, over all users and over parts of them."""
    rows = primary_rows(data)
    comparisons = f"{len(rows)} comparison{'s' if len(rows) > 1 else ''}"
    others = [metric for metric in COMPARED_METRICS if metric != PRIMARY]
    header = ["a", "b", "difference", "95% interval", "each seed", "error: users", "seeds", "p", "p, Holm"]
    single = ", ".join(dict.fromkeys(name for row in rows for name in row["single"] if name != "popularity"))
    one_seed = ", ".join(f"{row['a']} - {row['b']}" for row in rows if len(row["seeds"]) == 1)
    return [
        "### Do they differ?",
        "NDCG@10 of `a` minus that of `b`, paired by user and by seed; 10,000 resamples of users and seeds. In the "
        f"last column the p-value is corrected for {comparisons} (Holm).",
        table(header, _difference_rows(rows)),
        _seed_warnings(rows),
        f"One seed alone, so that its chance is not covered: {one_seed}." if one_seed else "",
        f"One run beside each seed of the other, so that its own chance is not covered: {single}." if single else "",
        "Other metrics, not corrected:",
        table(["a", "b", *(METRIC_TITLES[metric] for metric in others)], _other_rows(data, rows, others)),
        *_part_tables(data, rows),
    ]


def primary_rows(data: dict[str, Any]) -> list[dict[str, Any]]:
    """The comparisons of NDCG@10 over all questions, one for each declared pair."""
    return [row for row in data["paired"] if row["metric"] == PRIMARY and row["part"] is None]


def _of_pair(data: dict[str, Any], row: dict[str, Any]) -> list[dict[str, Any]]:
    """All comparisons of one pair of methods."""
    return [each for each in data["paired"] if (each["a"], each["b"]) == (row["a"], row["b"])]


def _difference_rows(rows: list[dict[str, Any]]) -> list[list[str]]:
    lines = []
    for row in rows:
        seeds_error = "-" if row["seeds_error"] is None else f"{row['seeds_error']:.4f}"
        lines.append(
            [
                *(row["a"], row["b"], f"{row['difference']:+.4f}", interval(row)),
                " ".join(f"{value:+.4f}" for value in row["each_seed"]),
                *(f"{row['standard_error']:.4f}", seeds_error, f"{row['p_value']:.2g}", f"{row['holm_p_value']:.2g}"),
            ]
        )
    return lines


def interval(row: dict[str, Any]) -> str:
    """A confidence interval."""
    return f"{row['low']:+.4f} to {row['high']:+.4f}"


def _seed_warnings(rows: list[dict[str, Any]]) -> str:
    """Comparisons in which few seeds tell too little."""
    few = [
        f"{row['a']} - {row['b']}"
        for row in rows
        if (error := row["seeds_error"]) is not None and len(row["seeds"]) < 6 and error > 2 * row["standard_error"]
    ]
    if not few:
        return ""
    listed = "; ".join(few)
    return f"**Seeds differ more than users tell; these intervals are too narrow, run more seeds:** {listed}."


def _other_rows(data: dict[str, Any], rows: list[dict[str, Any]], metrics: list[str]) -> list[list[str]]:
    lines = []
    for row in rows:
        by_metric = {each["metric"]: each for each in _of_pair(data, row) if each["part"] is None}
        tests = [by_metric[metric] for metric in metrics]
        lines.append([row["a"], row["b"], *(f"{test['difference']:+.4f} ({interval(test)})" for test in tests)])
    return lines


def _part_tables(data: dict[str, Any], rows: list[dict[str, Any]]) -> list[str]:
    parts = {test["part"]: test["questions"] for test in data["paired"] if test["part"] is not None}
    if not parts:
        return []
    header = [f"{name}, n = {number:,}" for name, number in parts.items()]
    lines = []
    for row in rows:
        by_part = {each["part"]: each for each in _of_pair(data, row)}
        tests = [by_part[name] for name in parts]
        lines.append([row["a"], row["b"], *(f"{test['difference']:+.4f} ({interval(test)})" for test in tests)])
    text = "NDCG@10 of `a` minus that of `b` for parts of the test questions, with 95% intervals, not corrected:"
    return ["### When does it help?", text, table(["a", "b", *header], lines)]


def render_study_report(results: dict[str, Any], pictures: Sequence[str] = ()) -> str:
    """
    The whole report.

    Args:
        results (`dict`): What the study's `results.json` holds.
        pictures (`list[str]`, *optional*): Files beside the report to show.
    """
    parts = ["# Study", _missing(results), *(f"![{name}]({name})" for name in pictures)]
    for name, data in results["data_sets"].items():
        parts += _data(name, data, results)
    parts += [
        "## How it was run",
        f"```bash\n{results['command']}\n```",
        f"Seeds: {', '.join(map(str, results['seeds']))}. Options and epochs were chosen on validation items alone; "
        "each run read the test split once, after its training.",
        table(["package", "version"], [[name, str(version)] for name, version in results["versions"].items()]),
        f"Report by revision `{results['revision']}`. {_made_by(results)}",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _made_by(results: dict[str, Any]) -> str:
    """Revisions and devices of the runs, which may be of different days."""
    runs = [
        run
        for data in results["data_sets"].values()
        for method in data["methods"].values()
        for run in method["per_seed"]
    ]
    stages = [run[stage] for run in runs for stage in ("trained", "tested") if stage in run]
    revisions = ", ".join(f"`{each}`" for each in dict.fromkeys(stage["revision"] for stage in stages))
    devices = "; ".join(dict.fromkeys(stage["device"] for stage in stages))
    return f"Runs by revision {revisions}, on: {devices}." if stages else ""


def _missing(results: dict[str, Any]) -> str:
    if not results["missing"]:
        return ""
    number = len(results["missing"])
    return f"**{number} {'runs are' if number > 1 else 'run is'} missing:** {'; '.join(results['missing'])}."


def _data(name: str, data: dict[str, Any], results: dict[str, Any]) -> list[str]:
    about = data["data"]
    notes = "\n".join(f"- {note}" for note in about["notes"])
    keys = ("users", "items", "interactions", "test_users")
    sizes = ", ".join(f"{about[key]:,} {key.replace('_', ' ')}" for key in keys) if about["users"] else ""
    reference = results["reference"]
    partial = {
        method
        for method in data["methods"]
        if any(f"{name}: {method} seed {seed}" in results["missing"] for seed in results["seeds"])
    }
    return [
        f"## {name}",
        f"{sizes}." if sizes else "",
        notes,
        "Full ranking of the test items of all users: mean over seeds, in brackets the standard deviation over them."
        f" Gains are of NDCG@10 over {reference}{', on common seeds where runs are missing' if partial else ''}.",
        table(
            ["method", *(METRIC_TITLES[metric] for metric in METRICS), "gain", "seeds"],
            _rows(data, reference, partial),
        ),
        *teacher_notes(_trained_settings(data), reference),
        *_most_frequent_target(data, reference, partial),
        *(render_comparisons(data) if data["paired"] else []),
        "### Each seed",
        table(["method", "seed", *(METRIC_TITLES[metric] for metric in METRICS)], _seed_rows(data)),
        "### Chosen on validation" if data["tuning"] else "",
        _uneven(data),
        _tuning(data),
        epochs_note(_trained_settings(data)),
        "### Cost",
        table(["method", "parameters", "training, s", "test, s", "peak memory, MiB", "GPU, MiB"], _cost_rows(data)),
        "### Settings",
        table(["method", "options"], _setting_rows(data)),
    ]


def _gain(methods: dict[str, Any], name: str, reference: str, key: str, partial: set[str]) -> str:
    """Relative gain over the reference: of the means, or of those over common seeds where either has runs missing."""
    if reference not in methods or name == reference:
        return "-"
    a, b = methods[name], methods[reference]
    means = _mean_and_deviation(a, key)[0], _mean_and_deviation(b, key)[0]
    if {name, reference} & partial:
        by_seed = [{run["seed"]: run[key] for run in method["per_seed"]} for method in (a, b)]
        common = by_seed[0].keys() & by_seed[1].keys()
        if common:
            means = tuple(sum(runs[seed] for seed in common) / len(common) for runs in by_seed)
    return f"{means[0] / means[1] - 1:+.1%}" if means[1] else "-"


def _rows(data: dict[str, Any], reference: str, partial: set[str]) -> list[list[str]]:
    methods = data["methods"]
    rows = []
    for name, method in methods.items():
        cells = [_with_deviation(method, metric) for metric in METRICS]
        rows.append([name, *cells, _gain(methods, name, reference, "ndcg@10", partial), str(len(method["per_seed"]))])
    return rows


def _trained_settings(data: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """What each run of each method was trained with."""
    return {
        name: [run.get("trained", {}).get("settings", {}) for run in method["per_seed"]]
        for name, method in data["methods"].items()
    }


def _most_frequent_target(data: dict[str, Any], reference: str, partial: set[str]) -> list[str]:
    """How much of each method's NDCG@10 comes from the target that most questions have."""
    target, methods = data["most_frequent_target"], data["methods"]
    if target["share"] in (0, 1):
        return []
    key = "ndcg@10_of_others"
    rows = []
    for name, method in methods.items():
        others = _mean_and_deviation(method, key)[0]
        share = method["ndcg@10"] - others * (1 - target["share"])
        gain = _gain(methods, name, reference, key, partial)
        rows.append([name, f"{share:.4f}", _with_deviation(method, key), gain])
    return [
        "### What one target decides",
        f"{target['questions']:,} questions ({target['share']:.1%}) have one target, item {target['item']}. What it "
        "adds to NDCG@10, and NDCG@10 of the other questions:",
        table(["method", "added by it", "NDCG@10 of the others", "gain"], rows),
    ]


def _mean_and_deviation(method: dict[str, Any], key: str) -> tuple[float, float | None]:
    """Mean and standard deviation of a figure over the seeds; no deviation with one seed."""
    values = [run[key] for run in method["per_seed"]]
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def _with_deviation(method: dict[str, Any], key: str) -> str:
    mean, deviation = _mean_and_deviation(method, key)
    return f"{mean:.4f}" + ("" if deviation is None else f" ({deviation:.4f})")


def _seed_rows(data: dict[str, Any]) -> list[list[str]]:
    return [
        [name, "-" if run["seed"] is None else str(run["seed"]), *(f"{run[metric]:.4f}" for metric in METRICS)]
        for name, method in data["methods"].items()
        for run in method["per_seed"]
    ]


def _uneven(data: dict[str, Any]) -> str:
    numbers = data["candidates"]
    if len(set(numbers.values())) < 2:
        return ""
    listed = ", ".join(f"{name} {number}" for name, number in numbers.items())
    return f"**The methods were not tuned with one budget.** Candidates: {listed}."


def _tuning(data: dict[str, Any]) -> str:
    if not data["tuning"]:
        return ""
    rows = []
    for name, tuning in data["tuning"].items():
        for number, candidate in enumerate(tuning["candidates"]):
            options = ", ".join(f"{key} = {value}" for key, value in candidate["options"].items()) or "as given"
            figures = ["missing", "-"]
            if "validation" in candidate:
                figures = [f"{candidate['validation']['ndcg@10']:.4f}", f"{candidate['best_epoch']:g}"]
            rows.append([name, options, *figures, "yes" if number == tuning["chosen"] else ""])
    return table(["method", "candidate", "NDCG@10 on validation", "epoch", "chosen"], rows)


def _cost_rows(data: dict[str, Any]) -> list[list[str]]:
    rows = []
    for name, method in data["methods"].items():
        trained = [run["trained"] for run in method["per_seed"] if "trained" in run]
        tested = [run["tested"] for run in method["per_seed"] if "tested" in run]
        both = [*trained, *tested]
        rows.append(
            [
                name,
                f"{trained[0]['parameters']:,}" if trained else "-",
                _mean([each["seconds"] for each in trained]),
                _mean([each["seconds"] for each in tested]),
                f"{max(each['peak_memory_mib'] for each in both):.0f}" if both else "-",
                _largest([each.get("peak_gpu_memory_mib") for each in both]),
            ]
        )
    return rows


def _mean(values: list[float]) -> str:
    return f"{sum(values) / len(values):.0f}" if values else "-"


def _largest(values: list[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{max(known):.0f}" if known else "-"


def _setting_rows(data: dict[str, Any]) -> list[list[str]]:
    """Every setting; values that differ between seeds one after the other."""
    rows = []
    for name, method in data["methods"].items():
        runs = []
        for run in method["per_seed"]:
            of_stages = [run.get(stage, {}).get("settings", {}) for stage in ("trained", "tested")]
            runs.append(run.get("options", {}) | of_stages[0] | of_stages[1])
        names = dict.fromkeys(name for run in runs for name in run)
        values = {name: list(dict.fromkeys(str(run.get(name)) for run in runs)) for name in names}
        rows.append([name, "; ".join(f"{name} = {' / '.join(each)}" for name, each in values.items()) or "-"])
    return rows
