"""How SASRec is trained: transformers' arguments, and enough updates where users are few."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import TrainingArguments
from transformers.trainer_utils import IntervalStrategy


MIN_STEPS = 2_000
# Where no validation items are left to end it early: the best came after 200 to 1,000 updates, see docs/rewards.md.
MIN_STEPS_UNSEEN = 500
_NUM_EVALUATIONS = 20


@dataclass
class SASRecTrainingArguments(TrainingArguments):
    """
    [`transformers.TrainingArguments`], and how long to train at least.

    Args:
        min_steps (`int`, *optional*, defaults to `0`):
            Least number of updates. Where `num_train_epochs` come to fewer, as they do with some hundred users,
            training goes on up to this number and evaluates 20 times instead of after every epoch.
    """

    min_steps: int = field(default=0, metadata={"help": "Least number of updates; more epochs where users are few."})


def sasrec_training_arguments(output_dir: str | Path, **changes: Any) -> SASRecTrainingArguments:
    """
    Settings that work on the Amazon data sets: keep the best epoch on validation users.

    14 epochs, and where users are few as many more as make 2,000 updates; neither holds where `num_train_epochs` or
    `max_steps` is given.

    Args:
        output_dir (`str` or `Path`): Where checkpoints go.
        **changes: Fields of [`SASRecTrainingArguments`] to set otherwise.
    """
    length = {} if changes.keys() & {"num_train_epochs", "max_steps"} else {"min_steps": MIN_STEPS}
    settings: dict[str, Any] = {
        "num_train_epochs": 14,
        "per_device_train_batch_size": 64,
        "per_device_eval_batch_size": 512,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "linear",
        "train_sampling_strategy": "group_by_length",
        "eval_strategy": "epoch",
        "save_strategy": "epoch",
        "logging_strategy": "epoch",
        "save_total_limit": 1,
        "load_best_model_at_end": True,
        "metric_for_best_model": "ndcg@10",
        "greater_is_better": True,
        "report_to": "none",
    }
    return SASRecTrainingArguments(output_dir=str(output_dir), **(settings | length | changes))


def num_sasrec_steps(args: TrainingArguments, num_rows: int) -> int:
    """Number of updates that `args` ask for with so many training rows, `min_steps` counted."""
    if args.max_steps > 0:
        return args.max_steps
    return max(_steps_of_epochs(args, num_rows), getattr(args, "min_steps", 0))


def _steps_of_epochs(args: TrainingArguments, num_rows: int) -> int:
    batch = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    return math.ceil(math.ceil(num_rows / batch) * args.num_train_epochs)


def with_min_steps(args: TrainingArguments, num_rows: int) -> TrainingArguments:
    """The arguments with as many steps as `min_steps` asks for."""
    least = getattr(args, "min_steps", 0)
    if args.max_steps > 0 or _steps_of_epochs(args, num_rows) >= least:
        return args
    args = copy.copy(args)
    args.max_steps = least
    for name in ("eval", "save", "logging"):
        if getattr(args, f"{name}_strategy") == "epoch":
            setattr(args, f"{name}_strategy", IntervalStrategy.STEPS)
            setattr(args, f"{name}_steps", math.ceil(least / _NUM_EVALUATIONS))
    return args
