"""How long a study will take, from a few steps measured on this machine."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING

import torch

from benchmarks.accuracy.study_options import parts_of
from benchmarks.accuracy.study_plan import UNTRAINED, Job, StudyPlan, slug
from ilrec_trl.pipeline.environment import default_device
from ilrec_trl.pipeline.options import EvaluationOptions, ModelOptions, TeacherOptions, TrainingOptions
from ilrec_trl.pipeline.prepare import prepare
from ilrec_trl.pipeline.prepared_data import PreparedData
from ilrec_trl.pipeline.recommend import recommender_of
from ilrec_trl.pipeline.teacher import teacher_arguments, teacher_config, teacher_features
from ilrec_trl.pipeline.train import build_model
from ilrec_trl.report.console import duration
from ilrec_trl.rewards.sasrec import SASRecModel
from ilrec_trl.rewards.sasrec_training import sasrec_optimizer, steps_of_epochs, with_min_steps
from ilrec_trl.rewards.shared_vectors import share_vectors


if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Steps of ILRec beside those of SFT at the shape of examples/configs/instruments_cpu.yaml: 1.68 in the first of six
# epochs, which computes the rewards, and 1.04 in the others, see benchmarks/speed/README.md.
ILREC_FACTOR = 1.15
# SASRec usually stops before its last epoch.
SASREC_SHARE = 0.8
# And, where users are few, long before its least number of updates.
MIN_STEPS_SHARE = 0.5
# Collating, logging and the like, in seconds a training step.
STEP_OVERHEAD = 0.01
# Preparing a data set and writing checkpoints, in seconds a training.
STAGE_OVERHEAD = 6.0


def estimate_seconds(
    prepared: PreparedData,
    model_options: ModelOptions,
    teacher: TeacherOptions,
    training: TrainingOptions,
    evaluation: EvaluationOptions,
    num_seeds: int,
) -> dict[str, float]:
    """
    Seconds of each stage.

    One training step of the language model, one of SASRec and one batch of constrained beam search are timed, and
    multiplied by how many of each there will be. Expect it to be right within a factor of one and a half.
    """
    model = build_model(prepared, model_options, seed=0)
    rows = len(prepared.training_rows())
    targets = sum(max(0, len(items) - 1) for _, items in prepared.splits.train)
    tokens = prepared.item_trie.arrays.depth * (targets / max(rows, 1) + 1)
    length = max(2, min(math.ceil(tokens), prepared.max_length()))
    step = _training_step(model, training.per_device_train_batch_size, length)
    steps = math.ceil(rows / training.per_device_train_batch_size * training.num_train_epochs)
    search = _search(model.eval(), prepared, evaluation)
    asked = min(evaluation.validation_users, len(prepared.splits.validation)) * math.ceil(training.num_train_epochs)
    seconds = {} if teacher.sasrec is not None else {"SASRec": _sasrec(prepared, teacher)}
    # A validation user is ranked, and the loss on the target computed: a third of a training step's share.
    validation = STAGE_OVERHEAD + asked * (search + step / training.per_device_train_batch_size / 3)
    seconds["SFT"] = num_seeds * (steps * step + validation)
    seconds["ILRec"] = num_seeds * (steps * step * ILREC_FACTOR + validation)
    seconds["evaluation"] = num_seeds * 2 * len(prepared.splits.test) * search
    return seconds


def _training_step(model: PreTrainedModel, rows: int, length: int) -> float:
    input_ids = torch.randint(0, model.config.vocab_size, (rows, length), device=model.device)  # (B, S)
    optimizer = torch.optim.AdamW(model.parameters())

    def step() -> None:
        model(input_ids=input_ids, labels=input_ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return _time(step) + STEP_OVERHEAD


def _search(model: PreTrainedModel, prepared: PreparedData, evaluation: EvaluationOptions) -> float:
    """Seconds a user."""
    number = min(evaluation.eval_batch_size, len(prepared.splits.validation))
    histories = [example.history for example in prepared.splits.validation[:number]]
    beams = min(evaluation.num_beams, len(prepared.item_trie))
    recommender = recommender_of(prepared, model, beams)
    return _time(lambda: recommender.recommend(histories, top_k=beams)) / number


def _sasrec(prepared: PreparedData, teacher: TeacherOptions) -> float:
    args = teacher_arguments(teacher, "unused", seed=0)
    config = teacher_config(teacher)
    config.item_ids = list(prepared.catalog.item_ids)
    model = SASRecModel(config).to(default_device())  # type: ignore[arg-type]
    if (features := teacher_features(teacher, prepared)) is not None:
        share_vectors(model, features)
    optimizer = sasrec_optimizer(model, args) or torch.optim.AdamW(model.parameters())
    targets = [max(0, len(items) - 1) for _, items in prepared.splits.train]
    rows = sum(math.ceil(number / config.max_position_embeddings) for number in targets)
    shape = (args.per_device_train_batch_size, max(1, round(sum(targets) / max(rows, 1))))
    input_ids = torch.randint(1, len(prepared.catalog) + 1, shape, device=model.device)  # (B, S)

    def step() -> None:
        model(input_ids, labels=input_ids - 1).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    trainings = teacher.sasrec_ensemble * teacher.sasrec_folds
    if teacher.sasrec_folds > 1:  # each is trained without one of them
        rows = math.ceil(rows * (1 - 1 / teacher.sasrec_folds))
    args = with_min_steps(args, rows)
    steps = args.max_steps if args.max_steps > 0 else steps_of_epochs(args, rows)
    share = SASREC_SHARE if steps > args.min_steps else MIN_STEPS_SHARE
    return trainings * (STAGE_OVERHEAD + share * steps * (_time(step) + STEP_OVERHEAD))


def _time(action: Callable[[], object], repeats: int = 3) -> float:
    """Mean seconds of a few repeats after one to warm up."""
    action()
    start = time.perf_counter()
    for _ in range(repeats):
        action()
    return (time.perf_counter() - start) / repeats


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
