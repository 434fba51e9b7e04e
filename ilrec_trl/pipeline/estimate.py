"""How long a run will take, from a few steps measured on this machine."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from ..rewards.sasrec import SASRecModel
from ..rewards.sasrec_arguments import num_sasrec_steps
from ..rewards.sasrec_training import sasrec_optimizer
from ..rewards.shared_vectors import share_vectors
from .baselines import teacher_arguments, teacher_config, teacher_features
from .environment import default_device
from .options import EvaluationOptions, ModelOptions, TrainingOptions
from .prepare import PreparedData
from .recommend import recommender_of
from .teacher_options import TeacherOptions
from .train import build_model


if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Steps of ILRec beside those of SFT at the shape of examples/configs/instruments_cpu.yaml: 1.68 in the first of six
# epochs, which computes the rewards, and 1.04 in the others, see docs/performance.md.
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

    trainings = teacher.members * teacher.folds
    if teacher.folds > 1:  # each is trained without one of them
        rows = math.ceil(rows * (1 - 1 / teacher.folds))
    steps = num_sasrec_steps(args, rows)
    share = SASREC_SHARE if steps > args.min_steps else MIN_STEPS_SHARE
    return trainings * (STAGE_OVERHEAD + share * steps * (_time(step) + STEP_OVERHEAD))


def _time(action: Callable[[], object], repeats: int = 3) -> float:
    """Mean seconds of a few repeats after one to warm up."""
    action()
    start = time.perf_counter()
    for _ in range(repeats):
        action()
    return (time.perf_counter() - start) / repeats
