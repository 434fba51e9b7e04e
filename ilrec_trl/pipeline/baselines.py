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
from ..rewards.sasrec import SASRecConfig, SASRecModel
from ..rewards.sasrec_training import evaluate_sasrec, sasrec_training_arguments, train_sasrec
from .options import TeacherOptions
from .prepare import PreparedData, input_errors


def train_teacher(prepared: PreparedData, options: TeacherOptions, output_dir: str | Path, seed: int) -> SASRecModel:
    """Train SASRec on the training sequences and save it, or load the one that `options.sasrec` names."""
    if options.sasrec is not None:
        with input_errors():
            model = SASRecModel.from_pretrained(options.sasrec)
            if unknown := set(prepared.catalog.item_ids) - set(model.config.item_ids):
                raise ValueError(f"{options.sasrec} does not know item {min(unknown)!r}; train SASRec on this data")
        return model.eval()
    # Validation items that are trained on can choose no epoch.
    whole = prepared.options.train_on_validation
    fixed = {"eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False} if whole else {}
    args = teacher_arguments(options, Path(output_dir) / "checkpoints", seed, **fixed)
    model = train_sasrec(
        prepared.splits,
        prepared.catalog.item_ids,
        args,
        config=teacher_config(options),
        patience=None if whole else 2,
    )
    model.save_pretrained(output_dir)
    return model


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


def teacher_settings(model: SASRecModel, options: TeacherOptions, seed: int) -> dict[str, Any]:
    """What the report says about SASRec."""
    sizes = ("hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings", "dropout")
    settings: dict[str, Any] = {name: getattr(model.config, name) for name in sizes}
    if options.sasrec is not None:
        return settings | {"loaded_from": options.sasrec}
    args = teacher_arguments(options, "unused", seed)
    budget = ("learning_rate", "num_train_epochs", "per_device_train_batch_size")
    return settings | {name: getattr(args, name) for name in budget} | {"seed": seed}


def teacher_ranks(
    model: SASRecModel, examples: Sequence[NextItemExample], settings: dict[str, Any], exclude_history: bool = False
) -> MethodRanks:
    """Ranks of SASRec over all items."""
    ranks = evaluate_sasrec(model, examples, exclude_history=exclude_history).astype(np.float64)
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
