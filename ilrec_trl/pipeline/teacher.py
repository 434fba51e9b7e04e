"""SASRec as the teacher: trained or loaded, judged on validation items, and turned into rewards."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from transformers.utils import logging

from ..data.splits import NextItemExample, sample
from ..evaluation.metrics import ndcg
from ..report.markdown import teacher_note
from ..report.results import MethodRanks
from ..rewards.combined_rewards import EnsembleReward
from ..rewards.rewards import RewardFunc, SASRecReward
from ..rewards.sasrec import FULL_SOFTMAX_ITEMS, SASRecConfig, SASRecModel
from ..rewards.sasrec_group import GROUP_FILE, SASRecGroup, check_group, train_sasrec_group
from ..rewards.sasrec_training import (
    MIN_STEPS_UNSEEN,
    SASRecTrainingArguments,
    evaluate_sasrec,
    sasrec_training_arguments,
    train_sasrec,
)
from ..rewards.transitions import TransitionReward
from .baselines import popularity_ranks, transition_ranks
from .option_checks import NEEDS_FOLDS, check_teacher
from .options import EvaluationOptions, InputError, TeacherOptions, input_errors
from .prepared_data import PreparedData


logger = logging.get_logger(__name__)

Teacher: TypeAlias = SASRecModel | SASRecGroup


def train_teacher(prepared: PreparedData, options: TeacherOptions, output_dir: str | Path, seed: int) -> Teacher:
    """
    Train SASRec on the training sequences and save it, or load the one that `options.sasrec` names. With folds or an
    ensemble there are several; what was finished in `output_dir` by the same settings is not trained again.
    """
    check_teacher(options)
    if options.sasrec is not None:
        teacher = load_teacher(options.sasrec, prepared)
        _temperature(teacher, options)
        return teacher
    # Validation items that are trained on can choose no epoch.
    whole = prepared.options.train_on_validation
    fixed: dict[str, Any] = {}
    if whole:
        fixed = {"eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False}
        fixed |= {"min_steps": MIN_STEPS_UNSEEN} if options.sasrec_epochs is None else {}
    args = teacher_arguments(options, Path(output_dir) / "checkpoints", seed, **fixed)
    data = prepared.splits, prepared.catalog.item_ids, args
    settings: dict[str, Any] = {"config": teacher_config(options), "patience": None if whole else 2}
    settings["item_features"] = teacher_features(options, prepared)
    if settings["item_features"] is None and options.sasrec_item_tokens is None:
        logger.warning("SASRec learns no vectors of the items' tokens, since its softmax is sampled.")
    if options.several:
        members, folds = options.sasrec_ensemble, None if options.sasrec_folds == 1 else options.sasrec_folds
        with input_errors():
            check_group(prepared.splits, members, folds)
        return train_sasrec_group(*data, output_dir, members=members, folds=folds, **settings)
    model = train_sasrec(*data, **settings)
    model.save_pretrained(output_dir)
    (Path(output_dir) / GROUP_FILE).unlink(missing_ok=True)
    return model


def teacher_features(options: TeacherOptions, prepared: PreparedData) -> list[list[int]] | None:
    """The items' tokens where SASRec is to learn vectors of them."""
    item_ids = prepared.catalog.item_ids
    sampled = SASRecConfig(item_ids=item_ids).samples_items > 0
    if sampled and options.sasrec_item_tokens:
        raise InputError(
            f"--sasrec_item_tokens cannot be had for {len(item_ids):,} items: above {FULL_SOFTMAX_ITEMS:,} SASRec's "
            "softmax is sampled; leave it out"
        )
    return prepared.item_trie.sequences(item_ids) if _learns_tokens(options, sampled) else None


def _learns_tokens(options: TeacherOptions, sampled: bool) -> bool:
    return options.sasrec_item_tokens is not False and not sampled


def load_teacher(folder: str, prepared: PreparedData) -> Teacher:
    """The SASRec, or several, that training saved in `folder`; it must know every item of the data."""
    with input_errors():
        group = (Path(folder) / GROUP_FILE).is_file()
        teacher = SASRecGroup.load(folder) if group else SASRecModel.from_pretrained(folder).eval()
        items, known = set(prepared.catalog.item_ids), set(teacher.config.item_ids or ())
        if unknown := items - known:
            raise ValueError(f"{folder} does not know item {min(unknown)!r}; train SASRec on this data")
        if others := known - items:
            logger.warning(
                f"{folder} knows {len(others):,} further items, such as {min(others)!r}, and ranks them too: its own "
                "figures are those of a larger catalogue."
            )
    return teacher


def teacher_reward(
    teacher: Teacher,
    prepared: PreparedData,
    options: TeacherOptions,
    evaluation: EvaluationOptions,
    device: torch.device | None = None,
) -> tuple[RewardFunc, dict[str, Any]]:
    """
    The scores in training: SASRec's, with a share of what followed what where that is asked for. SASRec ranks the
    validation items that the methods will be asked, as they will be; one no better than popularity is warned of.
    Returns the rewards, and what the report says about them.
    """
    temperature, share = _temperature(teacher, options), options.transition_share
    settings: dict[str, Any] = {"reward_temperature": temperature, "transition_share": share}
    if figures := _validation_figures(teacher, prepared, evaluation):
        settings["teacher_ndcg@10"] = figures
        if note := teacher_note(settings):
            logger.warning(note)
    if isinstance(teacher, SASRecGroup):
        reward_func = teacher.reward_func(prepared.item_trie, temperature, device)
    else:
        reward_func = SASRecReward(teacher, prepared.item_trie, temperature, device)
    if share > 0:
        transitions = TransitionReward(prepared.splits.train, prepared.item_trie)
        reward_func = EnsembleReward([reward_func, transitions], [1 - share, share])
    return reward_func, settings


def _validation_figures(teacher: Teacher, prepared: PreparedData, evaluation: EvaluationOptions) -> dict[str, float]:
    """NDCG@10 of SASRec and of what needs no training on validation items, and how many were asked, if they can be."""
    train, exclude_history = prepared.splits.train, evaluation.exclude_history
    examples = sample(prepared.splits.validation, evaluation.validation_users)
    if prepared.options.train_on_validation or not examples:
        return {}
    # Each user of the training is scored by few of the models, so not their mean probability counts but their mean
    each = [evaluate_sasrec(model, examples, exclude_history=exclude_history) for model in _models(teacher)]
    counted = [
        popularity_ranks(train, examples, prepared.catalog.item_ids, exclude_history),
        transition_ranks(train, examples, prepared.item_trie, exclude_history),
    ]
    figures = {"SASRec": np.mean([ndcg(ranks, np.ones(len(ranks)), 10).mean() for ranks in each])}
    figures |= {ranks.method: ndcg(ranks.starts, ranks.ties, 10).mean() for ranks in counted}
    return {name: float(value) for name, value in figures.items()} | {"questions": len(examples)}


def _temperature(teacher: Teacher, options: TeacherOptions) -> float:
    if not options.calibrate_rewards:
        return options.reward_temperature
    if not isinstance(teacher, SASRecGroup) or teacher.temperature is None:
        raise InputError(NEEDS_FOLDS)
    return teacher.temperature


def _models(teacher: Teacher) -> Sequence[SASRecModel]:
    return teacher.models if isinstance(teacher, SASRecGroup) else [teacher]


def teacher_config(options: TeacherOptions) -> SASRecConfig:
    """Sizes of SASRec."""
    return SASRecConfig(hidden_size=options.sasrec_hidden_size, dropout=options.sasrec_dropout)


def teacher_arguments(
    options: TeacherOptions, output_dir: str | Path, seed: int, **fixed: Any
) -> SASRecTrainingArguments:
    """How SASRec is trained."""
    length = {} if options.sasrec_epochs is None else {"num_train_epochs": options.sasrec_epochs}
    return sasrec_training_arguments(
        output_dir,
        per_device_train_batch_size=options.sasrec_batch_size,
        learning_rate=options.sasrec_learning_rate,
        seed=seed,
        dataloader_pin_memory=torch.cuda.is_available(),
        **length,
        **fixed,
    )


def teacher_settings(model: Teacher, options: TeacherOptions, seed: int) -> dict[str, Any]:
    """What the report says about SASRec."""
    sizes = ("hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings", "dropout")
    settings: dict[str, Any] = {name: getattr(model.config, name) for name in sizes}
    if isinstance(model, SASRecGroup):
        settings |= {"folds": model.num_folds, "ensemble": model.num_members, "temperature": model.temperature}
    if options.sasrec is not None:
        return settings | {"loaded_from": options.sasrec}
    args = teacher_arguments(options, "unused", seed)
    budget = ("learning_rate", "num_train_epochs", "per_device_train_batch_size")
    settings |= {name: getattr(args, name) for name in budget}
    settings["item_tokens"] = _learns_tokens(options, model.config.samples_items > 0)
    return settings | ({"min_steps": args.min_steps} if args.min_steps else {}) | {"seed": seed}


def teacher_ranks(
    model: Teacher, examples: Sequence[NextItemExample], settings: dict[str, Any], exclude_history: bool = False
) -> MethodRanks:
    """Ranks of SASRec over all items; of several, by their mean probability."""
    ranks = evaluate_sasrec(_models(model), examples, exclude_history=exclude_history).astype(np.float64)
    users = [example.user for example in examples]
    return MethodRanks("SASRec", users, ranks, np.ones(len(users), dtype=np.int64), settings=settings)
