"""From the folders of a study's runs to its figures and its report."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from benchmarks.accuracy.question_parts import question_parts
from benchmarks.accuracy.study_jobs import candidate_folders, chosen_candidate, read_json, study_jobs
from benchmarks.accuracy.study_plan import UNTRAINED, DataSet, Method, StudyPlan, is_finished, slug
from benchmarks.accuracy.study_plots import draw_study
from benchmarks.accuracy.study_report import render_study_report
from ilrec_trl.pipeline.environment import device, revision, versions
from ilrec_trl.pipeline.options import InputError
from ilrec_trl.report.console import show
from ilrec_trl.report.results import (
    DataSummary,
    MethodRanks,
    RunResult,
    as_json,
    compare_methods,
    summarise_methods,
    write_results,
)


def write_study_report(plan: StudyPlan, command: str) -> dict[str, Any]:
    """Write `report.md` and `results.json` from the runs that are there; returns what the latter holds."""
    results = study_results(plan, command)
    plan.folder.mkdir(parents=True, exist_ok=True)
    write_results(results, plan.folder / "results.json")
    try:
        pictures = draw_study(results, plan.folder)
    except ImportError as error:
        pictures = []
        show(str(error).replace("[", "\\["))
    (plan.folder / "report.md").write_text(render_study_report(results, pictures))
    return results


def study_results(plan: StudyPlan, command: str) -> dict[str, Any]:
    """
    Every figure of a study, JSON in form. An entry of `data_sets` is what `results.json` of a run holds, with what a
    study adds: `options`, `candidates`, `tuning` and `most_frequent_target`; and for each run of a method its
    `options`, and what it took to be `trained` and `tested`.
    """
    return {
        "command": command,
        "seeds": plan.options.seeds,
        "reference": plan.reference,
        "revision": revision(),
        "versions": versions(),
        "device": device(),
        "missing": [job.title for job in study_jobs(plan) if not job.finished],
        "data_sets": {name: _data_results(plan, data, command) for name, data in plan.data.items()},
    }


def _data_results(plan: StudyPlan, data: DataSet, command: str) -> dict[str, Any]:
    ranks, questions = read_ranks(plan, data)
    about = plan.folder / slug(data.name) / "popularity/data.json"
    parts = question_parts(about.parent / "questions.parquet", questions) if about.is_file() else {}
    item, number = Counter(target for _, target in questions).most_common(1)[0] if questions else ("", 0)
    others = np.array([target != item for _, target in questions])  # (Q,)
    if others.any():
        parts[f"all targets but the most frequent, {item}"] = others
    entries = [entry for runs in ranks.values() for entry in runs]
    found = RunResult(
        data=DataSummary(**read_json(about)) if about.is_file() else DataSummary(data.name, 0, 0, 0, 0),
        seeds=plan.options.seeds,
        command=command,
        revision=revision(),
        versions=versions(),
        device=device(),
        seconds={},
        selection="Options and epochs were chosen on validation items alone.",
        methods=summarise_methods(entries),
        paired=compare_methods(entries, plan.compare, parts),
    )
    results = as_json(found)
    for name, runs in ranks.items():
        for run, entry in zip(results["methods"][name]["per_seed"], runs, strict=True):
            run |= _about_run(plan, data, entry, others)
    return results | {
        "options": data.options,
        "candidates": {name: len(method.candidates) for name, method in data.methods.items()},
        "most_frequent_target": {"item": item, "questions": number, "share": number / max(1, len(questions))},
        "tuning": {name: _tuning(plan, data, method) for name, method in data.methods.items() if method.selects},
    }


def read_ranks(plan: StudyPlan, data: DataSet) -> tuple[dict[str, list[MethodRanks]], list[tuple[str, str]]]:
    """
    Test ranks of every run that is there, by method, one entry a seed; and the questions, users and targets, in their
    order.

    Raises:
        `InputError`: for a file whose users or targets are not those of the study.
    """
    files: dict[str, list[tuple[Path, int | None]]] = {}
    for name in (*plan.baselines, *plan.files, *data.methods, *plan.fusion):
        if name in plan.files:
            files[name] = [(Path(plan.files[name][data.name]), None)] if data.name in plan.files[name] else []
            continue
        seeds = [None] if name in UNTRAINED else plan.options.seeds
        files[name] = [(_run_folder(plan, data, name, seed) / "ranks.parquet", seed) for seed in seeds]
    questions: list[tuple[str, str]] = []
    ranks: dict[str, list[MethodRanks]] = {}
    for name, entries in files.items():
        for path, seed in entries:
            if path.is_file():
                ranks.setdefault(name, []).append(_read_ranks(name, path, seed, questions))
    return ranks, questions


def _read_ranks(name: str, path: Path, seed: int | None, questions: list[tuple[str, str]]) -> MethodRanks:
    """One file's ranks in the order of `questions`, which the first file sets."""
    try:
        table = pq.read_table(path, columns=["user", "item", "rank", "ties"]).to_pydict()
    except Exception as error:
        raise InputError(f"{path} cannot be read as ranks with columns user, item, rank and ties ({error})") from error
    asked = list(zip(map(str, table["user"]), map(str, table["item"]), strict=True))
    if not questions:
        questions += asked
    rows = {question: row for row, question in enumerate(asked)}
    if len(rows) != len(questions) or rows.keys() != set(questions):
        raise InputError(
            f"{path} holds {len(asked)} questions, the other runs {len(questions)}, and they are not the same users "
            "and targets; rank all methods on one split"
        )
    order = [rows[question] for question in questions]
    starts = np.array([np.inf if rank is None else float(rank) for rank in table["rank"]])[order]
    ties = np.array([tie or 1 for tie in table["ties"]], dtype=np.int64)[order]
    return MethodRanks(name, [user for user, _ in questions], starts, ties, seed)


def _about_run(plan: StudyPlan, data: DataSet, entry: MethodRanks, others: NDArray[np.bool_]) -> dict[str, Any]:
    """What a study says of one run; `others` are the questions for another target than the most frequent."""
    about: dict[str, Any] = {}
    if others.any():
        about["ndcg@10_of_others"] = float(entry.values()["ndcg@10"][others].mean())
    if entry.method not in plan.files:
        folder = _run_folder(plan, data, entry.method, entry.seed)
        there = [kind for kind in ("trained", "tested") if (folder / f"{kind}.json").is_file()]
        about |= {kind: read_json(folder / f"{kind}.json") for kind in there}
        about["options"] = read_json(folder / "settings.json")["options"]
    return about


def _run_folder(plan: StudyPlan, data: DataSet, name: str, seed: int | None) -> Path:
    folder = plan.folder / slug(data.name) / slug(name)
    if name in UNTRAINED:
        return folder
    if name in plan.baselines and data.options.get("refit"):
        folder /= "refit"
    return folder / f"seed{seed}"


def _tuning(plan: StudyPlan, data: DataSet, method: Method) -> dict[str, Any]:
    """Every candidate's figures on validation."""
    folders = candidate_folders(plan, data, method)
    candidates = [
        {"options": options, **(read_json(folder / "trained.json") if is_finished(folder) else {})}
        for options, folder in zip(method.candidates, folders, strict=True)
    ]
    return {"chosen": chosen_candidate(folders), "candidates": candidates}
