"""Training every compared method: those of the library, and those that go on with preference steps after SFT."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trl import SFTConfig, SFTTrainer

from benchmarks.accuracy.preference import (
    CONFIGS,
    OWN_FIELDS,
    PreferenceOptions,
    preference_arguments,
    preference_data,
    preference_trainer,
    updates_of,
)
from ilrec_trl.data.splits import sample
from ilrec_trl.evaluation.recommendation_callback import RecommendationCallback
from ilrec_trl.pipeline import train
from ilrec_trl.pipeline.evaluate import evaluator_of
from ilrec_trl.pipeline.options import EvaluationOptions, InputError, TrainingOptions, mapping
from ilrec_trl.pipeline.prepare import PreparedData, input_errors
from ilrec_trl.trainer.ilrec_config import ILRecConfig


if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ilrec_trl.data.splits import NextItemExample
    from ilrec_trl.rewards.rewards import RewardFunc

METHODS = {**train.METHODS, "dpo": "DPO", "softmax_dpo": "softmax-DPO", "grpo": "GRPO"}


@dataclass
class ComparedTrainingOptions(PreferenceOptions, TrainingOptions):
    """Options of training, with those of the preference steps."""


def train_method(
    method: str,
    prepared: PreparedData,
    model: PreTrainedModel,
    training: ComparedTrainingOptions,
    evaluation: EvaluationOptions,
    output_dir: str | Path,
    *,
    seed: int = 0,
    reward_func: RewardFunc | None = None,
) -> train.TrainedModel:
    """
    [`~ilrec_trl.pipeline.train.train_method`], and `"dpo"`, `"softmax_dpo"` and `"grpo"`, which begin with SFT and go
    on with steps of their own, together as many as SFT makes.
    """
    if method not in CONFIGS:
        own = {name: getattr(training, name) for name in _names(TrainingOptions)}
        options = TrainingOptions(**own | {"trainer_args": extra_arguments(method, training) or None})
        return train.train_method(
            method, prepared, model, options, evaluation, output_dir, seed=seed, reward_func=reward_func
        )
    validation, callbacks = None, []
    if not prepared.options.train_on_validation:
        validation = sample(prepared.splits.validation, evaluation.validation_users)
        callbacks.append(RecommendationCallback(evaluator_of(prepared, validation, evaluation)))
    return _train_preference(method, prepared, model, training, validation, callbacks, output_dir, seed)


def _train_preference(
    method: str,
    prepared: PreparedData,
    model: PreTrainedModel,
    training: ComparedTrainingOptions,
    validation: Sequence[NextItemExample] | None,
    callbacks: list[RecommendationCallback],
    output_dir: str | Path,
    seed: int,
) -> train.TrainedModel:
    """Some epochs of SFT, of which the last counts, then preference steps, of which the best on validation does."""
    if "max_steps" in mapping("trainer_args", training.trainer_args, "{}"):
        raise InputError(f"max_steps of trainer_args is not for {method}; give --preference_steps")
    own = extra_arguments(method, training)
    rows = prepared.training_rows()
    shared = train.trainer_arguments(
        "sft", prepared, dataclasses.replace(training, trainer_args=None), output_dir, seed
    )
    shared |= {name: value for name, value in own.items() if name in _names(SFTConfig)}
    start = shared | train.NO_EVALUATION
    start |= {"output_dir": str(Path(output_dir) / "start"), "num_train_epochs": training.preference_start}
    with input_errors():
        sft_args = SFTConfig(**start)
    updates = updates_of(sft_args, len(rows))  # in an epoch
    with input_errors():
        args = CONFIGS[method](**preference_arguments(method, prepared, training, shared, updates) | own)
    data = preference_data(method, prepared, training, args, validation)
    history: list[dict[str, Any]] = []
    done = 0
    if training.preference_start > 0:
        sft = SFTTrainer(model, args=sft_args, train_dataset=rows, processing_class=prepared.tokenizer)
        sft.train()
        history, done = sft.state.log_history, sft.state.global_step
    trainer = preference_trainer(method, prepared, model, training, args, data, callbacks)
    for callback in callbacks:
        callback.bind_trainer(trainer)
    trainer.train()
    trainer.save_model(str(output_dir))
    settings = settings_of(method, training, seed) | {"parameters": model.num_parameters()}
    settings |= {"learning_rate": sft_args.learning_rate, "preference_learning_rate": args.learning_rate}
    settings |= {"preference_steps": args.max_steps, "updates_an_epoch": updates}
    # Counted on from SFT, in its epochs
    for entry in trainer.state.log_history:
        step = entry["step"] + done
        history.append(entry | {"step": step, "epoch": round(step / updates, 6)})
    if (best := trainer.state.best_metric) is not None:
        settings |= {"best_epoch": train.best_epoch(history, best), "validation_ndcg@10": best}
    return train.TrainedModel(model, settings, history)


def settings_of(method: str, training: ComparedTrainingOptions, seed: int) -> dict[str, Any]:
    """What the report says about a method's training."""
    unused = unused_fields(method) | {"trainer_args"}
    settings = {name: value for name, value in dataclasses.asdict(training).items() if name not in unused}
    return settings | extra_arguments(method, training) | {"seed": seed}


def unused_fields(method: str) -> set[str]:
    """Options of training that this method has no use for."""
    unused = train.unused_fields(method)
    if method not in CONFIGS:
        unused |= {option.name for option in dataclasses.fields(PreferenceOptions)}
    return unused | {name for name, methods in OWN_FIELDS.items() if method not in methods}


def extra_arguments(method: str, training: ComparedTrainingOptions) -> dict[str, Any]:
    """What `trainer_args` says to this method; other methods' fields may stand there too."""
    if method not in CONFIGS:
        return train.extra_arguments(method, training)
    extra = mapping("trainer_args", training.trainer_args, '{"max_steps": 10}')
    config = CONFIGS[method]
    if unknown := sorted(set(extra) - _names(config) - _names(ILRecConfig)):
        raise InputError(f"{config.__name__} has no field {unknown[0]!r}; remove it from trainer_args")
    return {name: value for name, value in extra.items() if name in _names(config)}


def _names(config: type) -> set[str]:
    return {field.name for field in dataclasses.fields(config) if field.init}
