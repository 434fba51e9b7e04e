"""Training SASRec through transformers' Trainer, and its quality over all users."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import EarlyStoppingCallback, EvalPrediction, Trainer, TrainingArguments, set_seed

from ..data.splits import NextItemExample, Splits, UserSequence
from .sasrec import SASRecConfig, SASRecModel
from .sequence_batches import IGNORE_INDEX, collate_sequences, length_batches


def sasrec_training_arguments(output_dir: str | Path, **changes: Any) -> TrainingArguments:
    """
    Settings that work on the Amazon data sets: keep the best epoch on validation users.

    Args:
        output_dir (`str` or `Path`): Where checkpoints go.
        **changes: Fields of [`transformers.TrainingArguments`] to set otherwise.
    """
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
    return TrainingArguments(output_dir=str(output_dir), **(settings | changes))


def train_sasrec(
    splits: Splits,
    item_ids: Sequence[str],
    args: TrainingArguments,
    *,
    config: SASRecConfig | None = None,
    patience: int | None = 2,
    resume_from_checkpoint: str | bool | None = None,
) -> SASRecModel:
    """
    Train a [`SASRecModel`] on whole user sequences, each item after the first being a target.

    After every epoch all validation users are ranked (`eval_hit@10`, `eval_ndcg@10`, `eval_mrr`); test users are never
    looked at.

    Args:
        splits ([`Splits`]): Its `train` and `validation` are used.
        item_ids (`list[str]`): All items that can be recommended, for example `catalog.item_ids`.
        args ([`transformers.TrainingArguments`]): See [`sasrec_training_arguments`]. `seed` also draws the first
        weights. config ([`SASRecConfig`], *optional*): Sizes; its `item_ids` are replaced.
        patience (`int`, *optional*, defaults to `2`): Number of evaluations without a better `metric_for_best_model`
            after which training ends. `None` trains all epochs.
        resume_from_checkpoint (`str` or `bool`, *optional*): As in [`transformers.Trainer.train`].

    Returns:
        [`SASRecModel`]: The best model where `args.load_best_model_at_end`, otherwise the last; in eval mode.

    Raises:
        ValueError: If `splits` mentions an item outside `item_ids`.
    """
    config = SASRecConfig() if config is None else config
    config.item_ids = list(item_ids)
    set_seed(args.seed)
    model = SASRecModel(config)
    trainer = Trainer(
        model=model,
        args=args,
        train_dataset=_training_rows(model, splits.train),
        eval_dataset=_evaluation_rows(model, splits.validation),
        data_collator=collate_sequences,
        preprocess_logits_for_metrics=_ranks,
        compute_metrics=_ranking_quality,
        callbacks=None if patience is None else [EarlyStoppingCallback(patience)],
    )
    trainer.train(resume_from_checkpoint=resume_from_checkpoint)
    return model.eval()


@torch.no_grad()
def evaluate_sasrec(
    model: SASRecModel, examples: Sequence[NextItemExample], batch_size: int = 512, exclude_history: bool = False
) -> np.ndarray:
    """
    Rank the target of every example among all items.

    Args:
        model ([`SASRecModel`]): Trained model.
        examples (`list[NextItemExample]`): For example `splits.test`; none is left out.
        batch_size (`int`, *optional*, defaults to `512`): Number of examples in one forward pass.
        exclude_history (`bool`, *optional*, defaults to `False`): Rank the items of a user's history last, a target
            among them too.

    Returns:
        `np.ndarray` of shape `(U,)` and dtype int64: Rank of each target, 1 is first; it counts the items that score
        as high as the target or higher, so that a model with constant scores is not rewarded.

    Raises:
        ValueError: For an empty history or an unknown item.
    """
    rows = _evaluation_rows(model, examples)
    ranks = np.empty(len(rows), dtype=np.int64)
    training = model.training
    model.eval()
    for chosen in length_batches([len(row["input_ids"]) for row in rows], batch_size, model.device):
        batch = collate_sequences([rows[row] for row in chosen])
        batch = {key: value.to(model.device) for key, value in batch.items()}
        logits = model(**batch).logits  # (B, I)
        if exclude_history:
            for row, number in enumerate(chosen):
                logits[row, [model.item_index[item] for item in examples[number].history]] = -torch.inf
        ranks[chosen] = _ranks(logits, batch["labels"]).cpu().numpy()
    model.train(training)
    return ranks


def _training_rows(model: SASRecModel, sequences: Sequence[UserSequence]) -> list[dict[str, list[int]]]:
    """Inputs and the item after each; a sequence beyond the model's length becomes several rows, no target twice."""
    rows = []
    length = model.config.max_position_embeddings
    for _, items in sequences:
        for start in range(0, len(items) - 1, length):
            window = items[start : start + length + 1]
            shifted = [index - 1 for index in model.input_ids(window[1:])]
            rows.append({"input_ids": model.input_ids(window[:-1]), "labels": shifted})
    return rows


def _evaluation_rows(model: SASRecModel, examples: Sequence[NextItemExample]) -> list[dict[str, list[int]]]:
    """Histories with one label each, at their last item."""
    rows = []
    for _, history, item in examples:
        input_ids = model.input_ids(history)
        target = model.input_ids([item])[0] - 1
        rows.append({"input_ids": input_ids, "labels": [IGNORE_INDEX] * (len(input_ids) - 1) + [target]})
    return rows


def _ranks(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Rank `(N,)` of the labelled item in each row of logits `(N, I)`: the number of items not below it."""
    targets = labels[labels != IGNORE_INDEX]
    # a score that is not a number ranks last
    return (~(logits < logits.gather(1, targets[:, None]))).sum(1)


def _ranking_quality(prediction: EvalPrediction) -> dict[str, float]:
    ranks = np.asarray(prediction.predictions)
    hits = ranks <= 10
    return {
        "hit@10": float(hits.mean()),
        "ndcg@10": float((hits / np.log2(ranks + 1)).mean()),
        "mrr": float((1 / ranks).mean()),
    }
