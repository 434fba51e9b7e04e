"""
Training by every compared method: those of the library, and those that continue with preference steps after SFT. One
of the latter alone, on data that `ilrec prepare` wrote:

    python -m benchmarks.accuracy.training --method dpo --prepared runs/data --output_dir runs/dpo
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trl import DPOConfig, GRPOConfig, SFTConfig, SFTTrainer

from benchmarks.accuracy.command import run_command
from benchmarks.accuracy.negative_source import NegativeSourceConfig, NegativeSourceTrainer
from benchmarks.accuracy.preference import (
    CONFIGS,
    OWN_FIELDS,
    ComparedTrainingOptions,
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
from ilrec_trl.pipeline.options import (
    EvaluationOptions,
    InputError,
    ModelOptions,
    StageOptions,
    TrainingOptions,
    mapping,
)
from ilrec_trl.pipeline.prepare import PreparedData, input_errors
from ilrec_trl.report.console import show


if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ilrec_trl.data.splits import NextItemExample
    from ilrec_trl.rewards.rewards import RewardFunc

METHODS = {**train.METHODS, "dpo": "DPO", "softmax_dpo": "softmax-DPO", "grpo": "GRPO"}


@dataclass
class ComparedMethodOptions:
    """How to fine-tune; `ilrec train` has SFT and ILRec."""

    method: str = field(
        metadata={"help": "What follows after supervised fine-tuning.", "choices": list(CONFIGS)},
    )


PROGRAM = "benchmarks.accuracy.training"
OPTIONS = [StageOptions, ComparedMethodOptions, ModelOptions, ComparedTrainingOptions, EvaluationOptions]


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
    [`~ilrec_trl.pipeline.train.train_method`] for more methods: `"dpo"`, `"softmax_dpo"` and `"grpo"` begin with SFT
    and go on with steps of their own, together as many as SFT makes; `"ilrec"` may have a `negative_source`.
    """
    if method in CONFIGS:
        return _train_preference(method, prepared, model, training, evaluation, output_dir, seed)
    if "negative_source" in extra_arguments(method, training):
        return _train_negative_source(prepared, model, training, evaluation, output_dir, seed, reward_func)
    options = _library_options(method, training)
    return train.train_method(
        method, prepared, model, options, evaluation, output_dir, seed=seed, reward_func=reward_func
    )


def _library_options(method: str, training: ComparedTrainingOptions) -> TrainingOptions:
    """The options without those that only the laboratory knows."""
    own = {name: getattr(training, name) for name in _names(TrainingOptions)}
    extra = {name: value for name, value in extra_arguments(method, training).items() if name != "negative_source"}
    return TrainingOptions(**own | {"trainer_args": extra or None})


def _validation(
    prepared: PreparedData, evaluation: EvaluationOptions
) -> tuple[list[NextItemExample] | None, list[RecommendationCallback]]:
    """Questions that choose the epoch, and what ranks them; none where validation items are trained on."""
    if prepared.options.train_on_validation:
        return None, []
    validation = sample(prepared.splits.validation, evaluation.validation_users)
    return validation, [RecommendationCallback(evaluator_of(prepared, validation, evaluation))]


def _train_negative_source(
    prepared: PreparedData,
    model: PreTrainedModel,
    training: ComparedTrainingOptions,
    evaluation: EvaluationOptions,
    output_dir: str | Path,
    seed: int,
    reward_func: RewardFunc | None,
) -> train.TrainedModel:
    """ILRec with negatives from another source than the intermediate layers."""
    validation, callbacks = _validation(prepared, evaluation)
    source = extra_arguments("ilrec", training)["negative_source"]
    arguments = train.trainer_arguments("ilrec", prepared, _library_options("ilrec", training), output_dir, seed)
    with input_errors():
        args = NegativeSourceConfig(**arguments, negative_source=source)
    trainer = NegativeSourceTrainer(
        model,
        args=args,
        train_dataset=prepared.training_rows(),
        eval_dataset=None if validation is None else prepared.questions(validation),
        processing_class=prepared.tokenizer,
        callbacks=callbacks,
        item_trie=prepared.item_trie,
        reward_func=reward_func,
    )
    trainer.train()
    trainer.save_model(str(output_dir))
    settings = settings_of("ilrec", training, seed) | {"parameters": model.num_parameters()}
    settings |= {"learning_rate": args.learning_rate, "intermediate_layers": list(trainer.intermediate_layers)}
    settings |= {"cpo_beta": trainer.cpo_beta, "crr_weight": trainer.crr_weight}
    return _trained(model, settings, trainer.state.log_history, trainer.state.best_metric)


def _trained(
    model: PreTrainedModel, settings: dict[str, Any], history: list[dict[str, Any]], best: float | None
) -> train.TrainedModel:
    """The outcome, with the epoch that validation chose, if it did."""
    if best is not None:
        settings = settings | {"best_epoch": train.best_epoch(history, best), "validation_ndcg@10": best}
    return train.TrainedModel(model, settings, history)


def _train_preference(
    method: str,
    prepared: PreparedData,
    model: PreTrainedModel,
    training: ComparedTrainingOptions,
    evaluation: EvaluationOptions,
    output_dir: str | Path,
    seed: int,
) -> train.TrainedModel:
    """Some epochs of SFT, of which the last counts, then preference steps, of which the best on validation does."""
    validation, callbacks = _validation(prepared, evaluation)
    rows = prepared.training_rows()
    sft_args, args = _both_arguments(method, prepared, training, len(rows), output_dir, seed)
    data = preference_data(method, prepared, training, args, validation)  # refused, if at all, before SFT
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
    updates = updates_of(sft_args, len(rows))  # in an epoch
    settings = settings_of(method, training, seed) | {"parameters": model.num_parameters()}
    settings |= {"learning_rate": sft_args.learning_rate, "preference_learning_rate": args.learning_rate}
    settings |= {"preference_steps": args.max_steps, "updates_an_epoch": updates}
    # Counted on from SFT, in its epochs
    for entry in trainer.state.log_history:
        step = entry["step"] + done
        history.append(entry | {"step": step, "epoch": round(step / updates, 6)})
    return _trained(model, settings, history, trainer.state.best_metric)


def _both_arguments(
    method: str,
    prepared: PreparedData,
    training: ComparedTrainingOptions,
    num_rows: int,
    output_dir: str | Path,
    seed: int,
) -> tuple[SFTConfig, DPOConfig | GRPOConfig]:
    """Arguments of SFT, and of the steps that follow."""
    if "max_steps" in mapping("trainer_args", training.trainer_args, "{}"):
        raise InputError(f"max_steps of trainer_args is not for {method}; give --preference_steps")
    own = extra_arguments(method, training)
    shared = train.trainer_arguments(
        "sft", prepared, dataclasses.replace(training, trainer_args=None), output_dir, seed
    )
    shared |= {name: value for name, value in own.items() if name in _names(SFTConfig)}
    start = shared | train.NO_EVALUATION
    start |= {"output_dir": str(Path(output_dir) / "start"), "num_train_epochs": training.preference_start}
    with input_errors():
        sft_args = SFTConfig(**start)
    updates = updates_of(sft_args, num_rows)
    with input_errors():
        args = CONFIGS[method](**preference_arguments(method, prepared, training, shared, updates) | own)
    return sft_args, args


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
    extra = mapping("trainer_args", training.trainer_args, '{"max_steps": 10}')
    config = {"sft": SFTConfig, "ilrec": NegativeSourceConfig, **CONFIGS}[method]
    if unknown := sorted(set(extra) - _names(config) - _names(NegativeSourceConfig)):
        name = config.__name__ if method in CONFIGS else "ILRecConfig"
        raise InputError(f"{name} has no field {unknown[0]!r}; remove it from trainer_args")
    return {name: value for name, value in extra.items() if name in _names(config)}


def _names(config: type) -> set[str]:
    return {field.name for field in dataclasses.fields(config) if field.init}


def train_compared(
    stage: StageOptions,
    method: ComparedMethodOptions,
    model_options: ModelOptions,
    training: ComparedTrainingOptions,
    evaluation: EvaluationOptions,
) -> None:
    """Train one method on prepared data and save the model in the output folder."""
    prepared = PreparedData.load(stage.prepared)
    model = train.build_model(prepared, model_options, stage.seed)
    trained = train_method(method.method, prepared, model, training, evaluation, stage.output_dir, seed=stage.seed)
    trained.save_log(METHODS[method.method], stage.output_dir)
    best = trained.settings.get("validation_ndcg@10")
    show("" if best is None else f"Best validation NDCG@10 {best:.4f}")
    show(f"Model in {stage.output_dir}")


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns 0, or 2 where something the user gave cannot be used."""
    return run_command(PROGRAM, "Fine-tune by DPO, softmax-DPO or GRPO after SFT", OPTIONS, train_compared, argv)


if __name__ == "__main__":
    sys.exit(main())
