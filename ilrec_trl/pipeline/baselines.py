"""Methods that need no language model: SASRec, which is the teacher too, and popularity."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import TrainingArguments

from ..data.splits import NextItemExample, UserSequence
from ..report.results import MethodRanks
from ..rewards.rewards import RewardFunc, SASRecReward
from ..rewards.sasrec import SASRecConfig, SASRecModel
from ..rewards.sasrec_group import GROUP_FILE, SASRecGroup, check_group, train_sasrec_group
from ..rewards.sasrec_training import evaluate_sasrec, sasrec_training_arguments, train_sasrec
from .options import InputError, TeacherOptions
from .prepare import PreparedData, input_errors


_CALIBRATION = "--calibrate_rewards needs cross-fitted SASRecs, --sasrec_folds 5 say, and no --reward_temperature"


def check_teacher(options: TeacherOptions) -> None:
    """Refuse options that contradict each other, before any work."""
    if options.sasrec is not None and (options.sasrec_folds is not None or options.sasrec_ensemble is not None):
        raise InputError("--sasrec names trained ones; leave out --sasrec_folds and --sasrec_ensemble")
    if options.calibrate_rewards and (
        options.reward_temperature != 1 or (options.sasrec is None and options.folds == 1)
    ):
        raise InputError(_CALIBRATION)


def train_teacher(
    prepared: PreparedData, options: TeacherOptions, output_dir: str | Path, seed: int
) -> SASRecModel | SASRecGroup:
    """
    Train SASRec on the training sequences and save it, or load the one that `options.sasrec` names. With folds or an
    ensemble there are several; what was finished in `output_dir` by the same settings is not trained again.
    """
    check_teacher(options)
    if options.sasrec is not None:
        return load_teacher(options.sasrec, prepared)
    # Validation items that are trained on can choose no epoch.
    whole = prepared.options.train_on_validation
    fixed = {"eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False} if whole else {}
    args = teacher_arguments(options, Path(output_dir) / "checkpoints", seed, **fixed)
    data = prepared.splits, prepared.catalog.item_ids, args
    settings: dict[str, Any] = {"config": teacher_config(options), "patience": None if whole else 2}
    if options.several:
        members, folds = options.members, None if options.folds == 1 else options.folds
        with input_errors():
            check_group(prepared.splits, members, folds)
        return train_sasrec_group(*data, output_dir, members=members, folds=folds, **settings)
    model = train_sasrec(*data, **settings)
    model.save_pretrained(output_dir)
    (Path(output_dir) / GROUP_FILE).unlink(missing_ok=True)
    return model


def load_teacher(folder: str, prepared: PreparedData) -> SASRecModel | SASRecGroup:
    """The SASRec, or several, that training saved in `folder`; it must know every item of the data."""
    with input_errors():
        group = (Path(folder) / GROUP_FILE).is_file()
        teacher = SASRecGroup.load(folder) if group else SASRecModel.from_pretrained(folder).eval()
        if unknown := set(prepared.catalog.item_ids) - set(teacher.config.item_ids or ()):
            raise ValueError(f"{folder} does not know item {min(unknown)!r}; train SASRec on this data")
    return teacher


def teacher_reward(
    teacher: SASRecModel | SASRecGroup,
    prepared: PreparedData,
    options: TeacherOptions,
    device: torch.device | None = None,
) -> RewardFunc:
    """The scores that SASRec gives in training."""
    temperature = options.reward_temperature
    if options.calibrate_rewards:
        if not isinstance(teacher, SASRecGroup) or not teacher.folds:
            raise InputError(_CALIBRATION)
        temperature = teacher.temperature
    if isinstance(teacher, SASRecGroup):
        return teacher.reward_func(prepared.item_trie, temperature, device)
    return SASRecReward(teacher, prepared.item_trie, temperature, device)


def teacher_config(options: TeacherOptions) -> SASRecConfig:
    """Sizes of SASRec, its own defaults where an option is None."""
    config = SASRecConfig()
    if options.sasrec_hidden_size is not None:
        config.hidden_size = options.sasrec_hidden_size
    if options.sasrec_dropout is not None:
        config.dropout = options.sasrec_dropout
    return config


def teacher_arguments(options: TeacherOptions, output_dir: str | Path, seed: int, **fixed: Any) -> TrainingArguments:
    """How SASRec is trained, by its own defaults where an option is None."""
    changes = {
        "num_train_epochs": options.sasrec_epochs,
        "per_device_train_batch_size": options.sasrec_batch_size,
        "learning_rate": options.sasrec_learning_rate,
    }
    changes = {name: value for name, value in changes.items() if value is not None}
    pin_memory = torch.cuda.is_available()
    return sasrec_training_arguments(output_dir, **changes, **fixed, seed=seed, dataloader_pin_memory=pin_memory)


def teacher_settings(model: SASRecModel | SASRecGroup, options: TeacherOptions, seed: int) -> dict[str, Any]:
    """What the report says about SASRec."""
    sizes = ("hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings", "dropout")
    settings: dict[str, Any] = {name: getattr(model.config, name) for name in sizes}
    if isinstance(model, SASRecGroup):
        settings |= {"folds": model.num_folds, "ensemble": model.num_members, "temperature": model.temperature}
    if options.sasrec is not None:
        return settings | {"loaded_from": options.sasrec}
    args = teacher_arguments(options, "unused", seed)
    budget = ("learning_rate", "num_train_epochs", "per_device_train_batch_size")
    return settings | {name: getattr(args, name) for name in budget} | {"seed": seed}


def teacher_ranks(
    model: SASRecModel | SASRecGroup,
    examples: Sequence[NextItemExample],
    settings: dict[str, Any],
    exclude_history: bool = False,
) -> MethodRanks:
    """Ranks of SASRec over all items; of several, by their mean probability."""
    models = model.models if isinstance(model, SASRecGroup) else [model]
    ranks = evaluate_sasrec(models, examples, exclude_history=exclude_history).astype(np.float64)
    users = [example.user for example in examples]
    return MethodRanks("SASRec", users, ranks, np.ones(len(users), dtype=np.int64), settings=settings)


def popularity_ranks(
    train: Sequence[UserSequence],
    examples: Sequence[NextItemExample],
    item_ids: Sequence[str],
    exclude_history: bool = False,
) -> MethodRanks:
    """Ranks by the number of training interactions; items of one count share a place."""
    counts = Counter(item for _, items in train for item in items)
    values = np.array([counts[item] for item in item_ids])  # (I,)
    ordered = np.sort(values)
    targets = np.array([counts[example.item] for example in examples])  # (U,)
    not_below = len(ordered) - np.searchsorted(ordered, targets, side="left")  # (U,)
    above: NDArray[np.int64] = len(ordered) - np.searchsorted(ordered, targets, side="right")  # (U,)
    if exclude_history:
        for row, example in enumerate(examples):
            seen = np.array([counts[item] for item in set(example.history) - {example.item}])
            above[row] -= (seen > targets[row]).sum()
            not_below[row] -= (seen >= targets[row]).sum()
    starts = (above + 1).astype(np.float64)
    if exclude_history:
        starts[[example.item in example.history for example in examples]] = np.inf
    return MethodRanks("popularity", [example.user for example in examples], starts, not_below - above)
