"""The plan of a study with the time it will take."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict

from ..report.console import duration
from .estimate import estimate_seconds
from .prepare import prepare
from .study_options import parts_of
from .study_plan import UNTRAINED, Job, StudyPlan, slug


# Fusion beside beam search: more beams, and the candidates that only SASRec has.
FUSION_FACTOR = 4


def plan_rows(plan: StudyPlan, jobs: list[Job]) -> tuple[list[str], list[list[str]]]:
    """
    Header and rows of a table of the runs that are known now: what is there, and an estimate for what is left, from a
    few steps measured on this machine. Runs that wait for a choice on validation are one row a method.
    """
    known: dict[str, dict[str, float]] = {}
    rows, left = [], 0.0
    for job in jobs:
        cost = 0.0 if job.finished else _cost(job, known)
        rows.append([job.title, "done" if job.finished else "to do", "" if job.finished else duration(cost)])
        left += cost
    number = len(plan.options.seeds)
    for title, first in _waiting(plan, jobs):
        cost = number * _cost(first, known, test=True)
        rows.append([f"{title}, {number} seeds of what validation chooses", "to do", duration(cost)])
        left += cost
    rows.append(["all, one after the other", "", duration(left)])
    return ["run", "state", "estimated time"], rows


def _waiting(plan: StudyPlan, jobs: list[Job]) -> Iterator[tuple[str, Job]]:
    """Methods whose candidates are not all there, with the job of one candidate."""
    for data in plan.data.values():
        for method in data.methods.values():
            folder = plan.folder / slug(data.name) / slug(method.name)
            candidates = [job for job in jobs if job.folder.parent == folder / "tune"]
            if candidates and not any(job.folder.parent == folder for job in jobs):
                yield f"{data.name}: {method.name}", candidates[0]


def _cost(job: Job, known: dict[str, dict[str, float]], test: bool | None = None) -> float:
    """Seconds of a run; those of a method that is neither SFT nor ILRec are taken for ILRec's."""
    settings = job.settings
    if settings["job"] in UNTRAINED:
        return 0.0
    options = {name: value for name, value in settings["options"].items() if name != "train_on_validation"}
    data, model, teacher, training, evaluation = parts_of(options)
    budget = training.num_train_epochs, training.per_device_train_batch_size
    trained = asdict(teacher) if settings["job"] == "teacher" else None
    key = json.dumps([asdict(data), asdict(model), asdict(evaluation), budget, trained])
    if key not in known:
        prepared = prepare(data, model.model)
        known[key] = estimate_seconds(prepared, model, teacher, training, evaluation, 1)
    estimate = known[key]
    if settings["job"] == "teacher":
        return estimate.get("SASRec", 0.0)
    if settings["job"] == "fusion":
        return FUSION_FACTOR * estimate["evaluation"] / 2
    cost = estimate["SFT" if settings["method"] == "sft" else "ILRec"]
    return cost + (estimate["evaluation"] / 2 if (settings["test"] if test is None else test) else 0.0)
