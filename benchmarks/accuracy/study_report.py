"""The report of a study as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ilrec_trl.report.markdown import METRIC_TITLES, epochs_note, table, teacher_notes
from ilrec_trl.report.results import METRICS


def render_comparisons(data: dict[str, Any]) -> list[str]:
    """The declared comparisons on one data set, over all users and over parts of them."""
    rows = data["comparisons"]
    comparisons = f"{len(rows)} comparison{'s' if len(rows) > 1 else ''}"
    others = [METRIC_TITLES[name] for name in rows[0]["metrics"] if name != "ndcg@10"]
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
        table(["a", "b", *others], _other_rows(rows)),
        *(_part_tables(rows) if rows[0]["parts"] else []),
    ]


def _difference_rows(rows: list[dict[str, Any]]) -> list[list[str]]:
    lines = []
    for row in rows:
        test = row["metrics"]["ndcg@10"]
        seeds_error = "-" if test["seeds_error"] is None else f"{test['seeds_error']:.4f}"
        lines.append(
            [
                *(row["a"], row["b"], f"{test['difference']:+.4f}", interval(test)),
                " ".join(f"{value:+.4f}" for value in row["each_seed"]),
                *(f"{test['users_error']:.4f}", seeds_error, f"{test['p_value']:.2g}", f"{row['holm_p_value']:.2g}"),
            ]
        )
    return lines


def interval(test: dict[str, Any]) -> str:
    """A confidence interval."""
    return f"{test['low']:+.4f} to {test['high']:+.4f}"


def _seed_warnings(rows: list[dict[str, Any]]) -> str:
    """Comparisons in which few seeds tell too little."""
    few = [
        f"{row['a']} - {row['b']}"
        for row in rows
        if (error := row["metrics"]["ndcg@10"]["seeds_error"]) is not None
        and len(row["seeds"]) < 6
        and error > 2 * row["metrics"]["ndcg@10"]["users_error"]
    ]
    if not few:
        return ""
    listed = "; ".join(few)
    return f"**Seeds differ more than users tell; these intervals are too narrow, run more seeds:** {listed}."


def _other_rows(rows: list[dict[str, Any]]) -> list[list[str]]:
    return [
        [
            row["a"],
            row["b"],
            *(
                f"{test['difference']:+.4f} ({interval(test)})"
                for name, test in row["metrics"].items()
                if name != "ndcg@10"
            ),
        ]
        for row in rows
    ]


def _part_tables(rows: list[dict[str, Any]]) -> list[str]:
    names = list(rows[0]["parts"])
    header = [f"{name}, n = {rows[0]['parts'][name]['questions']:,}" for name in names]
    lines = []
    for row in rows:
        tests = [row["parts"][name] for name in names]
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
    for name, data in results["data"].items():
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
    runs = [run for data in results["data"].values() for method in data["methods"].values() for run in method["runs"]]
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
    about = data["about"] or {}
    notes = "\n".join(f"- {note}" for note in about.get("notes", []))
    sizes = ", ".join(
        f"{about[key]:,} {key.replace('_', ' ')}"
        for key in ("users", "items", "interactions", "test_users")
        if key in about
    )
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
        *(render_comparisons(data) if data["comparisons"] else []),
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
    means = a["mean"][key], b["mean"][key]
    if {name, reference} & partial:
        by_seed = [{run["seed"]: run[key] for run in method["runs"]} for method in (a, b)]
        common = by_seed[0].keys() & by_seed[1].keys()
        if common:
            means = tuple(sum(runs[seed] for seed in common) / len(common) for runs in by_seed)
    return f"{means[0] / means[1] - 1:+.1%}" if means[1] else "-"


def _rows(data: dict[str, Any], reference: str, partial: set[str]) -> list[list[str]]:
    methods = data["methods"]
    rows = []
    for name, method in methods.items():
        cells = [f"{method['mean'][metric]:.4f}{_bracket(method['deviation'][metric])}" for metric in METRICS]
        rows.append([name, *cells, _gain(methods, name, reference, "ndcg@10", partial), str(len(method["runs"]))])
    return rows


def _trained_settings(data: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """What each run of each method was trained with."""
    return {
        name: [run.get("trained", {}).get("settings", {}) for run in method["runs"]]
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
        others = method["mean"][key]
        share = method["mean"]["ndcg@10"] - others * (1 - target["share"])
        gain = _gain(methods, name, reference, key, partial)
        rows.append([name, f"{share:.4f}", f"{others:.4f}{_bracket(method['deviation'][key])}", gain])
    return [
        "### What one target decides",
        f"{target['questions']:,} questions ({target['share']:.1%}) have one target, item {target['item']}. What it "
        "adds to NDCG@10, and NDCG@10 of the other questions:",
        table(["method", "added by it", "NDCG@10 of the others", "gain"], rows),
    ]


def _bracket(deviation: float | None) -> str:
    return "" if deviation is None else f" ({deviation:.4f})"


def _seed_rows(data: dict[str, Any]) -> list[list[str]]:
    return [
        [name, "-" if run["seed"] is None else str(run["seed"]), *(f"{run[metric]:.4f}" for metric in METRICS)]
        for name, method in data["methods"].items()
        for run in method["runs"]
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
        trained = [run["trained"] for run in method["runs"] if "trained" in run]
        tested = [run["tested"] for run in method["runs"] if "tested" in run]
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
        for run in method["runs"]:
            of_stages = [run.get(stage, {}).get("settings", {}) for stage in ("trained", "tested")]
            runs.append(run.get("options", {}) | of_stages[0] | of_stages[1])
        names = dict.fromkeys(name for run in runs for name in run)
        values = {name: list(dict.fromkeys(str(run.get(name)) for run in runs)) for name in names}
        rows.append([name, "; ".join(f"{name} = {' / '.join(each)}" for name, each in values.items()) or "-"])
    return rows
