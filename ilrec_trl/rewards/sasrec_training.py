"""Training SASRec with transformers' Trainer, and ranking all items with it."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F
from transformers import EarlyStoppingCallback, EvalPrediction, Trainer, TrainerCallback, TrainingArguments, set_seed
from transformers.trainer_utils import IntervalStrategy
from transformers.utils import logging

from ..data.splits import LazyRows, NextItemExample, Splits, UserSequence
from .sasrec import SASRecConfig, SASRecModel
from .sequence_batches import ItemSequences, collate_sequences, length_batches
from .shared_vectors import ItemFeatures, fold_vectors, share_vectors


logger = logging.get_logger(__name__)

MIN_STEPS = 2_000
# Used where no validation items are left for early stopping: the best epoch came after 200 to 1,000 updates
MIN_STEPS_UNSEEN = 500
_NUM_EVALUATIONS = 20
_SCORES_AT_ONCE = 1 << 24  # item scores in memory while targets are ranked: 64 MiB


def train_sasrec(
    splits: Splits,
    item_ids: Sequence[str],
    args: TrainingArguments,
    *,
    config: SASRecConfig | None = None,
    item_features: ItemFeatures | None = None,
    patience: int | None = 2,
    resume_from_checkpoint: str | bool | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> SASRecModel:
    """
    Train a [`SASRecModel`] on whole user sequences; each item after the first is a target.

    After every epoch, or 20 times if `args.min_steps` adds epochs, all validation users are ranked (`eval_hit@10`,
    `eval_ndcg@10`, `eval_mrr`). Test users are not read.

    For catalogues of more than 100,000 items (see `SASRecConfig.num_sampled_negatives`) the loss is a
    [`sampled_softmax_loss`], and Adam updates only the vectors of sampled items; validation still ranks all items. The
    two vectors of an item and their moments take 3 KiB at a width of 128, in memory and in a checkpoint;
    `args.save_only_model` saves 1 KiB.

    Args:
        splits ([`Splits`]): Its `train` and `validation` are used.
        item_ids (`list[str]`): All items that can be recommended, for example `catalog.item_ids`.
        args ([`transformers.TrainingArguments`]): See [`sasrec_training_arguments`]. `seed` also draws the first
            weights.
        config ([`SASRecConfig`], *optional*): Sizes; its `item_ids` are replaced.
        item_features (`list[list]`, *optional*): Features of each item of `item_ids`, such as the codes of its
            semantic ID (`catalog.semantic_ids`), a brand, a category. An item's vectors are then trained as its own
            plus those of its features, which similar items share, as in VQ-Rec (Hou et al., 2023). The trained model
            holds the sums.
        patience (`int`, *optional*, defaults to `2`): Training ends after this number of evaluations without a better
            `metric_for_best_model`. `None` trains all epochs.
        resume_from_checkpoint (`str` or `bool`, *optional*): As in [`transformers.Trainer.train`].
        callbacks (`list[transformers.TrainerCallback]`, *optional*): Further callbacks of the trainer.

    Returns:
        [`SASRecModel`]: The best model with `args.load_best_model_at_end`, otherwise the last; in eval mode.

    Raises:
        ValueError: If `splits` holds an item outside `item_ids`, `item_features` do not fit them, or a sampled softmax
            is combined with weight decay, item features or an `args.optim` other than Adam.
    """
    config = SASRecConfig() if config is None else config
    config.item_ids = list(item_ids)
    set_seed(args.seed)
    model = SASRecModel(config).to(args.device)  # type: ignore[arg-type]
    if item_features is not None:
        share_vectors(model, item_features)
    if config.samples_items:
        logger.warning(
            f"SASRec of {len(item_ids):,} items: each step draws {config.samples_items:,} of them as negatives for a "
            "sampled softmax. `SASRecConfig(num_sampled_negatives=0)` computes it over all."
        )
    rows = _training_rows(model, splits.train)
    trainer = _SASRecTrainer(
        model=model,
        args=with_min_steps(args, len(rows)),
        train_dataset=rows,
        eval_dataset=_evaluation_rows(model, splits.validation),
        data_collator=collate_sequences,
        compute_metrics=_ranking_quality,
        callbacks=[*([] if patience is None else [EarlyStoppingCallback(patience)]), *callbacks],
        optimizers=(sasrec_optimizer(model, args), None),
    )
    trainer.train(resume_from_checkpoint=resume_from_checkpoint)
    fold_vectors(model)
    return model.eval()


@torch.no_grad()
def evaluate_sasrec(
    model: SASRecModel | Sequence[SASRecModel],
    examples: Sequence[NextItemExample],
    batch_size: int = 512,
    exclude_history: bool = False,
) -> np.ndarray:
    """
    Rank the target of every example among all items.

    Args:
        model ([`SASRecModel`] or `list` of them): Trained model, or an ensemble over the same items in the same order,
            which ranks by the mean of its probabilities.
        examples (`list[NextItemExample]`): For example `splits.test`.
        batch_size (`int`, *optional*, defaults to `512`): Number of examples in one forward pass.
        exclude_history (`bool`, *optional*, defaults to `False`): Rank the items of a user's history last, also a
            target among them.

    Returns:
        `np.ndarray` of shape `(U,)` and dtype int64: Rank of each target; 1 is first. It counts the items that score
        as high as the target or higher, so that constant scores give the last rank.

    Raises:
        ValueError: For an empty history or an unknown item.
    """
    models = [model] if isinstance(model, SASRecModel) else list(model)
    first = models[0]
    rows = _evaluation_rows(first, examples)
    ranks = np.empty(len(rows), dtype=np.int64)
    training = [each.training for each in models]
    for each in models:
        each.eval()
    for chosen in length_batches([len(row["input_ids"]) for row in rows], batch_size, first.device):
        seen = [first.indices(examples[row].history) for row in chosen] if exclude_history else None
        batch = collate_sequences([rows[row] for row in chosen])
        ranks[chosen] = _rank_targets(models, batch["input_ids"], batch["labels"], seen)[0].cpu().numpy()
    for each, was_training in zip(models, training, strict=True):
        each.train(was_training)
    return ranks


@dataclass
class SASRecTrainingArguments(TrainingArguments):
    """
    [`transformers.TrainingArguments`], and the least number of updates.

    Args:
        min_steps (`int`, *optional*, defaults to `0`): Least number of updates. If `num_train_epochs` make fewer, as
            with a few hundred users, training goes on up to this number and evaluates 20 times instead of after every
            epoch.
    """

    min_steps: int = field(default=0, metadata={"help": "Least number of updates; more epochs where users are few."})


def sasrec_training_arguments(output_dir: str | Path, **changes: Any) -> SASRecTrainingArguments:
    """
    Settings that work on the Amazon data sets; the best epoch on validation users is kept.

    Training takes 14 epochs and at least 2,000 updates, unless `num_train_epochs` or `max_steps` is given.

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


def steps_of_epochs(args: TrainingArguments, num_rows: int) -> int:
    """Number of updates that the epochs of `args` make with so many training rows."""
    batch = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    return math.ceil(math.ceil(num_rows / batch) * args.num_train_epochs)


def with_min_steps(args: TrainingArguments, num_rows: int) -> TrainingArguments:
    """The arguments, with `max_steps` set if `min_steps` asks for more updates than the epochs make."""
    least = getattr(args, "min_steps", 0)
    if args.max_steps > 0 or steps_of_epochs(args, num_rows) >= least:
        return args
    args = copy.copy(args)
    args.max_steps = least
    for name in ("eval", "save", "logging"):
        if getattr(args, f"{name}_strategy") == "epoch":
            setattr(args, f"{name}_strategy", IntervalStrategy.STEPS)
            setattr(args, f"{name}_steps", math.ceil(least / _NUM_EVALUATIONS))
    return args


class _SASRecTrainer(Trainer):
    """Trainer that evaluates by ranks instead of scores, and clips sparse gradients."""

    model: Any  # a SASRecModel

    def prediction_step(
        self, model: Any, inputs: dict[str, torch.Tensor], prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        ranks, losses = _rank_targets([self.model], inputs["input_ids"], inputs["labels"])
        return losses.mean(), ranks, ranks

    def _clip_grad_norm(self, model: Any) -> torch.Tensor:
        if self.model.config.samples_items:
            return clip_sparse_grad_norm(list(model.parameters()), self.args.max_grad_norm or torch.inf)
        return super()._clip_grad_norm(model)

    def _get_grad_norm(self, model: Any, grad_norm: torch.Tensor | None = None) -> Any:
        return super()._get_grad_norm(model, self._clip_grad_norm(model) if grad_norm is None else grad_norm)


def _training_rows(model: SASRecModel, sequences: Sequence[UserSequence]) -> LazyRows[dict[str, NDArray[np.int32]]]:
    """Inputs and the item after each. A sequence longer than the model becomes several rows, each target in one."""
    items = ItemSequences(model.indices(items) for _, items in sequences)
    starts, ends = items.windows(model.config.max_position_embeddings)
    return LazyRows(partial(_training_row, items.items, starts, ends), range(len(starts)))


def _training_row(
    items: NDArray[np.int32], starts: NDArray[np.int64], ends: NDArray[np.int64], row: int
) -> dict[str, NDArray[np.int32]]:
    window = items[starts[row] : ends[row]]
    return {"input_ids": window[:-1] + 1, "labels": window[1:]}


def _evaluation_rows(
    model: SASRecModel, examples: Sequence[NextItemExample]
) -> LazyRows[dict[str, NDArray[np.int32]]]:
    """The latest items of each history, and its one target."""
    items = ItemSequences(
        [index - 1 for index in model.input_ids(history)] + model.indices([item]) for _, history, item in examples
    )
    return LazyRows(partial(_evaluation_row, items), range(len(items.offsets) - 1))


def _evaluation_row(items: ItemSequences, row: int) -> dict[str, NDArray[np.int32]]:
    sequence = items.items[items.offsets[row] : items.offsets[row + 1]]
    return {"input_ids": sequence[:-1] + 1, "labels": sequence[-1:]}


@torch.no_grad()
def _rank_targets(
    models: Sequence[SASRecModel],
    input_ids: torch.Tensor,
    labels: torch.Tensor,
    excluded: Sequence[list[int]] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Rank and cross-entropy `(B,)` of the label `(B, 1)` after each history `(B, S)`. The rank is the number of items
    that do not score below it; `excluded` items score minus infinity.
    """
    device = models[0].device
    vectors = [model.last_vectors(input_ids.to(model.device)) for model in models]  # each (B, H)
    targets = labels.to(device)  # (B, 1)
    ranks, losses = [], []
    rows = max(1, _SCORES_AT_ONCE // len(models[0].item_index))
    for start in range(0, len(targets), rows):
        part = slice(start, start + rows)
        logits = F.linear(vectors[0][part], *models[0].item_head()).float()  # (b, I)
        for number, (model, own) in enumerate(zip(models[1:], vectors[1:], strict=True), 1):
            more = F.linear(own[part], *model.item_head()).float().log_softmax(-1).to(device)
            # Log of the sum of probabilities: ranks by their mean
            logits = torch.logaddexp(logits.log_softmax(-1) if number == 1 else logits, more)
        losses.append(F.cross_entropy(logits, targets[part, 0], reduction="none"))
        for row, items in enumerate(excluded[part] if excluded is not None else ()):
            logits[row, items] = -torch.inf
        # A score that is not a number ranks last
        ranks.append((~(logits < logits.gather(1, targets[part]))).sum(1))
    return torch.cat(ranks), torch.cat(losses)


def _ranking_quality(prediction: EvalPrediction) -> dict[str, float]:
    ranks = np.asarray(prediction.predictions)
    hits = ranks <= 10
    return {
        "hit@10": float(hits.mean()),
        "ndcg@10": float((hits / np.log2(ranks + 1)).mean()),
        "mrr": float((1 / ranks).mean()),
    }


def sasrec_optimizer(model: Any, args: TrainingArguments) -> SparseRowsAdam | None:
    """Optimizer for the sparse gradients of a sampled softmax; `None` for a full softmax, which uses Trainer's."""
    if not model.config.samples_items:
        return None
    if args.weight_decay:
        raise ValueError(
            f"Got weight_decay={args.weight_decay}, which would touch every item at every step; a sampled softmax "
            "expects 0. Set it to 0, or set `SASRecConfig(num_sampled_negatives=0)`."
        )
    if not args.optim.startswith("adamw_torch"):
        raise ValueError(
            f"Got optim={args.optim!r}, but a sampled softmax is trained with a sparse Adam. Leave it at the default, "
            "or set `SASRecConfig(num_sampled_negatives=0)`."
        )
    matrices = [model.item_embedding.weight, *([] if model.output is None else [model.output.weight])]
    others = [parameter for parameter in model.parameters() if all(parameter is not matrix for matrix in matrices)]
    dense = torch.optim.AdamW(
        others, lr=args.learning_rate, betas=(args.adam_beta1, args.adam_beta2), eps=args.adam_epsilon, weight_decay=0
    )
    return SparseRowsAdam(matrices, dense)


class SparseRowsAdam(torch.optim.Optimizer):
    """
    One optimizer of two: SparseAdam for parameters with sparse gradients, of which a step reads and writes only the
    touched rows, and `dense` for the others. The settings of `dense` hold for both, except for weight decay, which
    would touch every row.
    """

    def __init__(self, sparse: list[nn.Parameter], dense: torch.optim.Optimizer) -> None:
        settings = {name: dense.defaults[name] for name in ("lr", "betas", "eps")}
        self.parts = (torch.optim.SparseAdam(sparse, **settings), dense)
        # The groups are shared with the parts, so that a schedule reaches them
        super().__init__([group for part in self.parts for group in part.param_groups], {})

    def step(self, closure: Any = None) -> Any:
        loss = None if closure is None else closure()
        for part in self.parts:
            part.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self.param_groups = [group for part in self.parts for group in part.param_groups]


def clip_sparse_grad_norm(parameters: list[nn.Parameter], max_norm: float) -> torch.Tensor:
    """As `torch.nn.utils.clip_grad_norm_`, which refuses sparse gradients, but for parameters with and without."""
    gradients = []
    for parameter in parameters:
        if parameter.grad is None:
            continue
        if parameter.grad.is_sparse:
            parameter.grad = parameter.grad.coalesce()
            gradients.append(parameter.grad.values())
        else:
            gradients.append(parameter.grad)
    norm = torch.nn.utils.get_total_norm(gradients)
    for gradient in gradients:
        gradient.mul_((max_norm / (norm + 1e-6)).clamp(max=1.0))
    return norm
