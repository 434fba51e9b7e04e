"""Fine-tuning: SFT and ILRec from the same weights, with the same seed, budget and order of the rows."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, set_seed
from trl import SFTConfig, SFTTrainer

from ..data.splits import sample
from ..evaluation.recommendation_callback import RecommendationCallback
from ..trainer.ilrec_config import ILRecConfig
from ..trainer.ilrec_trainer import ILRecTrainer
from .environment import default_device
from .evaluate import evaluator_of
from .option_checks import ILREC_FIELDS
from .options import (
    EvaluationOptions,
    InputError,
    ModelOptions,
    PipelineOptions,
    TrainingOptions,
    input_errors,
    mapping,
)
from .prepared_data import PreparedData
from .teacher import Teacher, teacher_reward


if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ..rewards.rewards import RewardFunc

METHODS = {"sft": "SFT", "ilrec": "ILRec"}

NO_EVALUATION = {"eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False}


@dataclass
class TrainedModel:
    """
    Outcome of [`train_method`].

    Args:
        name (`str`): What a reader knows the method by.
        model ([`~transformers.PreTrainedModel`]): The model of the epoch that was best on validation.
        settings (`dict`): What it was trained with, for the report.
        history (`list[dict]`): What the trainer logged.
    """

    name: str
    model: PreTrainedModel
    settings: dict[str, Any]
    history: list[dict[str, Any]]

    def save_log(self, directory: str | Path) -> None:
        """Write `log.json`, what was logged, and `settings.json`, which the model card shows, beside the model."""
        directory = Path(directory)
        (directory / "log.json").write_text(json.dumps(self.history, indent=1) + "\n")
        settings = {"method": self.name} | self.settings
        (directory / "settings.json").write_text(json.dumps(settings, indent=1) + "\n")


def fit(
    method: str,
    prepared: PreparedData,
    options: PipelineOptions,
    output_dir: str | Path,
    *,
    seed: int = 0,
    teacher: Teacher | None = None,
    train: Callable[..., TrainedModel] | None = None,
) -> TrainedModel:
    """
    One whole training: initial weights, rewards where the method reads them, training, and the files in `output_dir`.

    Args:
        method, prepared, options: As in [`train_method`]; `options` are all of them.
        output_dir (`str` or `Path`): Receives model, `log.json` and `settings.json`.
        seed (`int`, *optional*, defaults to `0`): Seed of weights, data order and dropout.
        teacher ([`SASRecModel`] or [`SASRecGroup`], *optional*): Source of the rewards; without one there are
            none.
        train (`Callable`, *optional*): What trains, with the arguments of [`train_method`], the default.
    """
    model = build_model(prepared, options.model, seed)
    reward, settings = None, dict[str, Any]()
    if teacher is not None:
        reward, settings = teacher_reward(teacher, prepared, options.teacher, options.evaluation, model.device)
    given = method, prepared, model, options.training, options.evaluation, output_dir
    trained = (train or train_method)(*given, seed=seed, reward_func=reward)
    trained.settings |= settings
    trained.save_log(output_dir)
    return trained


def build_model(prepared: PreparedData, options: ModelOptions, seed: int) -> PreTrainedModel:
    """
    A small Llama with random weights drawn from `seed`, or the pretrained model with the item tokens added; in
    float32, since updates of usual size round to nothing in bfloat16.
    """
    set_seed(seed)
    tokenizer = prepared.tokenizer
    if options.model != prepared.model:
        raise InputError(
            f"the data was prepared for {prepared.model or 'a small Llama with a tokenizer of its own'}, but "
            f"--model is {options.model or 'not given'}; give the same to `ilrec prepare` and here"
        )
    if options.model is not None:
        with input_errors():
            model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32)
        # The model's own tokenizer tells which of the item tokens the model has been trained with
        prepared.catalog.add_tokens(AutoTokenizer.from_pretrained(options.model), model, seed=seed)
        return model.to(default_device())  # type: ignore[arg-type]
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=options.hidden_size,
        intermediate_size=options.intermediate_size,
        num_hidden_layers=options.num_hidden_layers,
        num_attention_heads=options.num_attention_heads,
        attention_dropout=options.attention_dropout,
        max_position_embeddings=max(64, prepared.max_length()),
        tie_word_embeddings=options.tie_word_embeddings,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return LlamaForCausalLM(config).to(default_device())  # type: ignore[arg-type]


def train_method(
    method: str,
    prepared: PreparedData,
    model: PreTrainedModel,
    training: TrainingOptions,
    evaluation: EvaluationOptions,
    output_dir: str | Path,
    *,
    seed: int = 0,
    reward_func: RewardFunc | None = None,
) -> TrainedModel:
    """
    Fine-tune and keep the epoch that ranks best on validation users; the last where those are trained on.

    Args:
        method (`str`): `"ilrec"`, or `"sft"`, which is TRL's own SFTTrainer.
        prepared (`PreparedData`): The data.
        model ([`~transformers.PreTrainedModel`]): Initial weights; trained in place.
        training (`TrainingOptions`): Budget and weights of the losses.
        evaluation (`EvaluationOptions`): How validation users are ranked.
        output_dir (`str` or `Path`): Receives checkpoints and the final model.
        seed (`int`, *optional*, defaults to `0`): Seed of data order and dropout.
        reward_func ([`RewardFunc`], *optional*): Collaborative rewards for ILRec.

    Raises:
        `InputError`: for `trainer_args` that the configuration does not know.
    """
    validation, callbacks = None, []
    if not prepared.options.train_on_validation:
        validation = sample(prepared.splits.validation, evaluation.validation_users)
        callbacks.append(RecommendationCallback(evaluator_of(prepared, validation, evaluation)))
    arguments = trainer_arguments(method, prepared, training, output_dir, seed)
    common: dict[str, Any] = {
        "model": model,
        "train_dataset": prepared.training_rows(),
        "processing_class": prepared.tokenizer,
        "callbacks": callbacks,
    }
    if validation is not None:
        common["eval_dataset"] = prepared.questions(validation)
    trainer: SFTTrainer
    with input_errors():
        args = (SFTConfig if method == "sft" else ILRecConfig)(**arguments)
    if method == "sft":
        trainer = SFTTrainer(args=args, **common)
        for callback in callbacks:  # as ILRecTrainer does itself
            callback.bind_trainer(trainer)
    else:
        trainer = ILRecTrainer(args=args, item_trie=prepared.item_trie, reward_func=reward_func, **common)
    trainer.train()
    trainer.save_model(str(output_dir))
    settings = settings_of(method, training, seed) | {"parameters": model.num_parameters()}
    settings["learning_rate"] = args.learning_rate
    if (best := trainer.state.best_metric) is not None:
        settings |= {"best_epoch": best_epoch(trainer.state.log_history, best), "validation_ndcg@10": best}
    if isinstance(trainer, ILRecTrainer):
        # What the defaults stood for.
        settings |= {"cpo_beta": trainer.cpo_beta, "crr_weight": trainer.crr_weight}
        settings["intermediate_layers"] = list(trainer.intermediate_layers)
    return TrainedModel(METHODS[method], model, settings, trainer.state.log_history)


def trainer_arguments(
    method: str, prepared: PreparedData, training: TrainingOptions, output_dir: str | Path, seed: int
) -> dict[str, Any]:
    """Arguments of SFTConfig or ILRecConfig: the same for both, but for ILRec's own."""
    on_gpu = torch.cuda.is_available()
    arguments = {
        "output_dir": str(output_dir),
        "seed": seed,
        "learning_rate": learning_rate(prepared, training),
        "num_train_epochs": training.num_train_epochs,
        "per_device_train_batch_size": training.per_device_train_batch_size,
        "per_device_eval_batch_size": training.per_device_train_batch_size,
        "gradient_accumulation_steps": training.gradient_accumulation_steps,
        "warmup_steps": training.warmup_ratio,
        "lr_scheduler_type": training.lr_scheduler_type,
        "weight_decay": training.weight_decay,
        "max_length": prepared.max_length(),
        "train_sampling_strategy": "group_by_length",
        "eval_strategy": "epoch",
        "save_strategy": "epoch",
        "save_total_limit": 1,
        "save_only_model": True,
        "load_best_model_at_end": True,
        "metric_for_best_model": "eval_ndcg@10",
        "greater_is_better": True,
        "logging_steps": 50,
        "report_to": "none",
        "activation_checkpointing": False,
        "bf16": on_gpu and torch.cuda.is_bf16_supported(),
        "dataloader_pin_memory": on_gpu,
    }
    if prepared.options.train_on_validation:
        # Validation items that are trained on can choose no epoch.
        arguments |= NO_EVALUATION
    if method == "ilrec":
        arguments |= {name: getattr(training, name) for name in ILREC_FIELDS}
    return arguments | extra_arguments(method, training)


def learning_rate(prepared: PreparedData, training: TrainingOptions) -> float:
    """The peak learning rate: as given, or what suits a small model from random weights or a pretrained one."""
    if training.learning_rate is not None:
        return training.learning_rate
    return 2e-3 if prepared.model is None else 5e-5


def settings_of(method: str, training: TrainingOptions, seed: int) -> dict[str, Any]:
    """What the report says about a method's training."""
    unused = unused_fields(method) | {"trainer_args"}
    settings = {name: value for name, value in dataclasses.asdict(training).items() if name not in unused}
    return settings | extra_arguments(method, training) | {"seed": seed}


def unused_fields(method: str) -> set[str]:
    """Fields of TrainingOptions that this method has no use for."""
    return set() if method == "ilrec" else set(ILREC_FIELDS)


def extra_arguments(method: str, training: TrainingOptions) -> dict[str, Any]:
    """What `trainer_args` says to this method; fields of ILRecConfig alone say nothing to SFT."""
    extra = mapping("trainer_args", training.trainer_args, '{"max_steps": 10}')
    if twice := sorted(extra.keys() & {"seed", "output_dir", *_names(TrainingOptions)}):
        raise InputError(f"{twice[0]} is an option of its own; give --{twice[0]} in place of that in trainer_args")
    if unknown := sorted(set(extra) - _names(ILRecConfig)):
        raise InputError(f"ILRecConfig has no field {unknown[0]!r}; remove it from trainer_args")
    known = _names(SFTConfig if method == "sft" else ILRecConfig)
    return {name: value for name, value in extra.items() if name in known}


def _names(config: type) -> set[str]:
    return {field.name for field in dataclasses.fields(config) if field.init}


def best_epoch(history: list[dict[str, Any]], best: float) -> float | None:
    return next((entry["epoch"] for entry in history if entry.get("eval_ndcg@10") == best), None)
