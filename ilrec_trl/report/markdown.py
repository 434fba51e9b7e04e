"""`report.md`: the figures of a run for a reader."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

from .results import METRICS, Comparison, DataSummary, MethodResult, RunResult


METRIC_TITLES = {
    "hit@1": "Hit@1",
    "hit@5": "Hit@5",
    "hit@10": "Hit@10",
    "ndcg@5": "NDCG@5",
    "ndcg@10": "NDCG@10",
    "mrr": "MRR",
}
# Below this share of the reference's NDCG@10 on validation a teacher is spoken of: at 0.98 of it and above ILRec
# gained, at 0.83 it lost (docs/does_it_help.md).
CLEARLY_WORSE = 0.95


@dataclass
class ExampleList:
    """
    What the methods recommend to one user.

    Args:
        user (`str`): User id.
        history (`list[str]`): Texts of the latest items, oldest first.
        target (`str`): Text of the item that came next.
        lists (`dict[str, list[str]]`): Texts of the recommended items by method, best first.
    """

    user: str
    history: list[str]
    target: str
    lists: dict[str, list[str]]


def render_report(results: RunResult, examples: Sequence[ExampleList] = (), title: str = "Run") -> str:
    """
    The whole report.

    Args:
        results ([`~report.results.RunResult`]): What `results.json` holds.
        examples (`list[ExampleList]`, *optional*): Recommendation lists to show.
        title (`str`, *optional*, defaults to `"Run"`): Heading.
    """
    parts = [
        f"# {title}",
        _data(results.data),
        "## Results",
        "Full ranking over the catalogue; no user left out. In brackets one standard error over users.",
        table(["method", *(METRIC_TITLES[metric] for metric in METRICS)], _method_rows(results.methods)),
        _per_seed(results.methods),
        "## Do the methods differ?",
        verdict(results),
        epochs_note(run_settings(results.methods)),
        *teacher_notes(run_settings(results.methods)),
        "`a` minus `b`, paired by user and seed; 95% interval of 10,000 resamples of users and seeds. With one seed "
        "the interval does not cover the chance of the seed. The last column is corrected for the number of pairs "
        "(Holm).",
        table(
            ["a", "b", "metric", "difference", "95% interval", "p", "which seeds", "Holm"],
            _paired_rows(results.paired),
        ),
        "## Examples" if examples else "",
        *(_example(example) for example in examples),
        "## How it was run",
        f"```bash\n{results.command}\n```",
        f"{results.selection} The test split was read once, after all training.",
        _settings(results),
        "## Time",
        table(["stage", "seconds"], [[stage, f"{seconds:.0f}"] for stage, seconds in results.seconds.items()]),
        "## Versions",
        table(["package", "version"], [[name, str(version)] for name, version in results.versions.items()]),
        f"Revision `{results.revision}`, device: {results.device}.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; cells are kept on one line and pipes in them escaped."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def verdict(results: RunResult) -> str:
    """Two sentences on ILRec against SFT, by NDCG@10 over all seeds; empty where the run holds no such pair."""
    row = results.comparison("ILRec", "SFT")
    if row is None:
        return ""
    difference = f"{row.difference:+.4f} (95% interval {interval(row)}; p = {row.p_value:.2g})"
    word = "better" if row.difference > 0 else "worse"
    shown = f"ILRec is {word} than SFT" if row.p_value < 0.05 else "No difference between ILRec and SFT is shown"
    seeds, users = len(results.seeds), results.data.test_users
    basis = f"{users:,} test users and {seeds} seed{'s' if seeds > 1 else ''}"
    return f"**{shown}**: NDCG@10 {difference}. This rests on {basis}."


def interval(row: Comparison) -> str:
    """A confidence interval."""
    return f"{row.low:+.4f} to {row.high:+.4f}"


def teacher_note(settings: dict[str, Any], reference: str = "SFT", ranked: float | None = None) -> str:
    """
    Two sentences on a method whose rewards came from a SASRec that ranks validation items no better than popularity,
    or clearly worse than the reference, which has an NDCG@10 of `ranked` there; empty for any other.
    """
    figures = settings.get("teacher_ndcg@10")
    if figures is None:
        return ""
    asked, sasrec = f"SASRec ranks {figures['questions']:,} validation items", figures["SASRec"]
    if sasrec <= figures["popularity"]:
        return (
            f"{asked} no better than popularity does (NDCG@10 {sasrec:.4f} and {figures['popularity']:.4f}). Rewards "
            "of such a teacher make ILRec worse than SFT more likely than better: train it longer (--sasrec_epochs) "
            "or on more users, or leave its rewards out (--crr_weight 0)."
        )
    if ranked is not None and sasrec < CLEARLY_WORSE * ranked:
        return (
            f"{asked} at NDCG@10 {sasrec:.4f}, {reference} is better with {ranked:.4f}. ILRec gains little from "
            "rewards of such a teacher, or loses: give them less weight (--crr_weight 1) and keep what ranks "
            "validation items best."
        )
    return ""


def teacher_notes(settings: dict[str, list[dict[str, Any]]], reference: str = "SFT") -> list[str]:
    """[`teacher_note`] by the settings of all runs, each with its methods. A reference that is taught says nothing."""
    untaught = [run for run in settings.get(reference, []) if "teacher_ndcg@10" not in run]
    figures = [run["validation_ndcg@10"] for run in untaught if "validation_ndcg@10" in run]
    ranked = sum(figures) / len(figures) if figures else None
    methods: dict[str, list[str]] = {}
    for name, runs in settings.items():
        for run in runs:
            if note := teacher_note(run, reference, ranked):
                methods.setdefault(note, []).append(name)
    return [f"**{', '.join(dict.fromkeys(names))}:** {note}" for note, names in methods.items()]


def run_settings(methods: Mapping[str, MethodResult]) -> dict[str, list[dict[str, Any]]]:
    """Settings of every seed's run of each method."""
    return {name: [run.settings for run in method.per_seed] for name, method in methods.items()}


def epochs_note(settings: dict[str, list[dict[str, Any]]]) -> str:
    """
    A sentence on methods that were still getting better when training ended, by the settings of their runs. Those with
    preference steps after SFT, whose epochs of SFT nobody ranks, are not among them.
    """
    names = [
        name
        for name, runs in settings.items()
        if any((run.get("best_epoch") or 0) >= run.get("num_train_epochs", inf) for run in runs)
        and not any("preference_steps" in run for run in runs)
    ]
    if not names:
        return ""
    return f"Best on validation after the last epoch, so that more epochs may rank better: {', '.join(names)}."


def _data(data: DataSummary) -> str:
    sizes = [f"{size:,}" for size in (data.users, data.items, data.interactions, data.test_users)]
    text = table(["data", "users", "items", "interactions", "test users"], [[data.name, *sizes]])
    notes = [f"- {note}" for note in data.notes]
    return text + ("\n\n" + "\n".join(notes) if notes else "")


def _method_rows(methods: Mapping[str, MethodResult]) -> list[list[str]]:
    return [
        [name, *(f"{method.metrics[metric]:.4f} ({method.standard_error[metric]:.4f})" for metric in METRICS)]
        for name, method in methods.items()
    ]


def _per_seed(methods: Mapping[str, MethodResult]) -> str:
    rows = [
        [name, str(run.seed), *(f"{run.metrics[metric]:.4f}" for metric in METRICS)]
        for name, method in methods.items()
        if len(method.per_seed) > 1
        for run in method.per_seed
    ]
    return table(["method", "seed", *(METRIC_TITLES[metric] for metric in METRICS)], rows) if rows else ""


def _paired_rows(rows: Sequence[Comparison]) -> list[list[str]]:
    return [
        [
            *(row.a, row.b, METRIC_TITLES[row.metric], f"{row.difference:+.4f}", interval(row), f"{row.p_value:.2g}"),
            ", ".join("-" if seed is None else str(seed) for seed in row.seeds),
            "-" if row.holm_p_value is None else f"{row.holm_p_value:.2g}",
        ]
        for row in rows
    ]


def _example(example: ExampleList) -> str:
    history = "\n".join(f"{place}. {_escape(text)}" for place, text in enumerate(example.history, 1))
    columns = list(example.lists)
    depth = max(len(texts) for texts in example.lists.values())
    rows = []
    for place in range(depth):
        texts = [example.lists[name][place] if place < len(example.lists[name]) else "" for name in columns]
        rows.append([str(place + 1), *(f"**{text}**" if text == example.target else text for text in texts)])
    return (
        f"### User {example.user}\n\nLatest items:\n\n{history}\n\nNext item: **{_escape(example.target)}**\n\n"
        f"{table(['rank', *columns], rows)}"
    )


def _settings(results: RunResult) -> str:
    rows = [
        [name, "; ".join(f"{key} = {value}" for key, value in method.settings.items()) or "-"]
        for name, method in results.methods.items()
    ]
    return f"Seeds: {', '.join(map(str, results.seeds))}.\n\n" + table(["method", "settings"], rows)


def _cell(text: str) -> str:
    return _escape(text).replace("|", "\\|").replace("\n", " ")


def _escape(text: str) -> str:
    # A semantic-ID token such as <a_12> would be taken for an HTML tag and vanish.
    return str(text).replace("&", "&amp;").replace("<", "&lt;")
