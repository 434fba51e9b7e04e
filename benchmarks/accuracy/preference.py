"""DPO, softmax-DPO and GRPO after supervised fine-tuning: their options, rows, arguments and trainers."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from transformers import AutoModelForCausalLM, TrainerCallback
from trl import DPOConfig, DPOTrainer, GRPOConfig, SFTConfig

from benchmarks.accuracy.grpo import ItemGRPOTrainer, item_match_reward
from benchmarks.accuracy.negatives import NegativeSampler
from benchmarks.accuracy.softmax_dpo_trainer import SoftmaxDPOTrainer
from ilrec_trl.data.prompts import next_item_dataset
from ilrec_trl.data.splits import NextItemExample
from ilrec_trl.pipeline.options import InputError, TrainingOptions, input_errors
from ilrec_trl.pipeline.prepared_data import PreparedData


if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, Trainer


@dataclass
class PreferenceOptions:
    """DPO, softmax-DPO and GRPO; SFT and ILRec have no use for these."""

    preference_start: float = field(
        default=3.0,
        metadata={"help": "For dpo, softmax_dpo and grpo: epochs of SFT before; the rest of the budget follows."},
    )
    preference_steps: int | None = field(
        default=None,
        metadata={
            "help": "Most updates after those epochs. By default those of SFT in the rest of --num_train_epochs."
        },
    )
    preference_learning_rate: float | None = field(
        default=None, metadata={"help": "Peak learning rate of these updates. By default a tenth of --learning_rate."}
    )
    preference_beta: float = field(
        default=1.0, metadata={"help": "For dpo and softmax_dpo: weight of the log-ratio to the model after SFT."}
    )
    num_negatives: int = field(
        default=3, metadata={"help": "For softmax_dpo: sampled negatives per target; dpo has 1."}
    )
    negative_sampling: str = field(
        default="uniform",
        metadata={
            "help": "Negatives are drawn from the catalogue without the user's items: uniformly, or by popularity.",
            "choices": ["uniform", "popularity"],
        },
    )
    grpo_rollouts: int = field(default=8, metadata={"help": "For grpo: items sampled per prompt."})
    grpo_prefix_weight: float = field(
        default=0.0,
        metadata={
            "help": "For grpo: reward for the share of the target's tokens that a sampled item begins with, added to "
            "1 for the target."
        },
    )


@dataclass
class ComparedTrainingOptions(PreferenceOptions, TrainingOptions):
    """Options of training, with those of the preference steps."""


CONFIGS: dict[str, type[DPOConfig] | type[GRPOConfig]] = {
    "dpo": DPOConfig,
    "softmax_dpo": DPOConfig,
    "grpo": GRPOConfig,
}
# Fields that are of use to some of the preference methods alone.
OWN_FIELDS = {
    "preference_beta": ("dpo", "softmax_dpo"),
    "negative_sampling": ("dpo", "softmax_dpo"),
    "num_negatives": ("softmax_dpo",),
    "grpo_rollouts": ("grpo",),
    "grpo_prefix_weight": ("grpo",),
}
# Arguments of supervised fine-tuning that the others do not share: length groups are of its rows, and nothing is to be
# truncated.
_OF_SFT = ("train_sampling_strategy", "max_length")


def updates_of(args: SFTConfig, rows: int) -> int:
    """Number of updates that SFT makes in an epoch of `rows` rows."""
    batches = math.ceil(rows / (args.per_device_train_batch_size * args.world_size))
    return math.ceil(batches / args.gradient_accumulation_steps)


def preference_steps(training: ComparedTrainingOptions, updates_an_epoch: int) -> int:
    """
    Updates that are left for the preferences, so that all methods make equally many.

    Args:
        training (`ComparedTrainingOptions`): The budget.
        updates_an_epoch (`int`): Updates of SFT in an epoch.

    Raises:
        `InputError`: where nothing is left, or a number is out of range.
    """
    start, epochs = training.preference_start, training.num_train_epochs
    if start < 0:
        raise InputError(f"--preference_start is {start}, expected 0 epochs or more")
    # A little less, since a number of epochs is rounded where it stands for a number of updates
    left = math.ceil(epochs * updates_an_epoch - 1e-3) - math.ceil(start * updates_an_epoch - 1e-3)
    if left < 1:
        raise InputError(
            f"--preference_start {start:g} epochs leave nothing of --num_train_epochs {epochs:g}; start earlier or "
            "train longer"
        )
    if training.preference_steps is None:
        return left
    if training.preference_steps < 1:
        raise InputError(f"--preference_steps is {training.preference_steps}, expected 1 or more")
    return min(left, training.preference_steps)


def preference_arguments(
    method: str,
    prepared: PreparedData,
    training: ComparedTrainingOptions,
    shared: dict[str, Any],
    updates_an_epoch: int,
) -> dict[str, Any]:
    """Arguments of DPOConfig or GRPOConfig: those of supervised fine-tuning, and the method's own."""
    steps = preference_steps(training, updates_an_epoch)
    rate = training.preference_learning_rate
    known = {option.name for option in dataclasses.fields(CONFIGS[method])} - set(_OF_SFT)
    arguments = {name: value for name, value in shared.items() if name in known}
    arguments |= {"learning_rate": shared["learning_rate"] / 10 if rate is None else rate, "max_steps": steps}
    if arguments["eval_strategy"] != "no":
        arguments |= {"eval_strategy": "steps", "save_strategy": "steps"}
        arguments |= dict.fromkeys(("eval_steps", "save_steps"), min(updates_an_epoch, steps))
    if method != "grpo":
        return arguments | {"beta": training.preference_beta, "max_length": None}
    rollouts = training.grpo_rollouts
    return arguments | {
        "num_generations": rollouts,
        "per_device_train_batch_size": rollouts * training.per_device_train_batch_size,
        "max_completion_length": prepared.item_trie.depth + 1,
        "chat_template_kwargs": prepared.renderer.chat_template_kwargs,
    }


def preference_data(
    method: str,
    prepared: PreparedData,
    training: ComparedTrainingOptions,
    args: DPOConfig | GRPOConfig,
    validation: Sequence[NextItemExample] | None,
) -> dict[str, Dataset]:
    """`train_dataset`, with as many rows as the steps take, and `eval_dataset` where there is validation."""
    wanted = args.max_steps * args.world_size
    wanted *= training.per_device_train_batch_size * training.gradient_accumulation_steps
    asked = {"train_dataset": list(_passes(prepared.splits.train_examples(), wanted, args.seed))}
    if validation is not None:
        asked["eval_dataset"] = list(validation)
    if method == "grpo":
        seed = prepared.options.prompt_seed
        return {name: next_item_dataset(each, prepared.renderer, seed=seed) for name, each in asked.items()}
    number = 1 if method == "dpo" else training.num_negatives
    rows = {
        name: preference_rows(prepared, each, number, training, args.seed + place)
        for place, (name, each) in enumerate(asked.items())
    }
    if method == "dpo":
        for name, each in rows.items():
            single = [rejected[0] for rejected in each["rejected"]]
            rows[name] = each.remove_columns("rejected").add_column("rejected", single)
    return rows


def preference_trainer(
    method: str,
    prepared: PreparedData,
    model: PreTrainedModel,
    training: ComparedTrainingOptions,
    args: DPOConfig | GRPOConfig,
    data: dict[str, Dataset],
    callbacks: Sequence[TrainerCallback],
) -> Trainer:
    """
    The trainer of the preference steps; `model` as it is now is the reference.

    Args:
        method (`str`): `"dpo"`, `"softmax_dpo"` or `"grpo"`.
        prepared (`PreparedData`): The data.
        model ([`~transformers.PreTrainedModel`]): The model after supervised fine-tuning; trained in place.
        training (`ComparedTrainingOptions`): Options of the method.
        args ([`~trl.DPOConfig`] or [`~trl.GRPOConfig`]): From [`preference_arguments`].
        data (`dict[str, Dataset]`): From [`preference_data`].
        callbacks (`list[TrainerCallback]`): For the trainer.
    """
    common: dict[str, Any] = {"processing_class": prepared.tokenizer, "args": args, **data}
    common["callbacks"] = [EvaluateAtTheEnd(), *callbacks]
    if method == "grpo":
        reward = item_match_reward(prepared.item_trie, training.grpo_prefix_weight)
        return ItemGRPOTrainer(model, reward, item_trie=prepared.item_trie, **common)
    trainer = DPOTrainer if method == "dpo" else SoftmaxDPOTrainer
    return trainer(model, _copy_of(model), **common)


def preference_rows(
    prepared: PreparedData,
    examples: Sequence[NextItemExample],
    number: int,
    training: ComparedTrainingOptions,
    seed: int,
) -> Dataset:
    """Columns `prompt`, `chosen` and `rejected`, of which each row has `number`; one row a question."""
    if number < 1:
        raise InputError(f"--num_negatives is {number}, expected 1 or more")
    sampling: Any = training.negative_sampling
    draw = NegativeSampler(prepared.catalog.item_ids, prepared.catalog, prepared.splits.train, sampling, seed)
    renderer = prepared.renderer
    with input_errors("benchmarks"):
        rejected = [
            [renderer.as_completion(prepared.catalog.text(item)) for item in draw(example, number)]
            for example in examples
        ]
    rows = next_item_dataset(examples, renderer, seed=prepared.options.prompt_seed)
    rows = rows.remove_columns(["history", "item", "user"]).rename_column("completion", "chosen")
    return rows.add_column("rejected", rejected)


class EvaluateAtTheEnd(TrainerCallback):
    """Evaluates after the last update too, which need not be a multiple of `eval_steps`."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step >= state.max_steps and args.eval_strategy != "no":
            control.should_evaluate = True


def _passes(examples: Sequence[NextItemExample], number: int, seed: int) -> Iterator[NextItemExample]:
    """`number` examples: every one once, in random order, then every one again, and so on."""
    generator = np.random.default_rng(seed)
    while number > 0:
        order = generator.permutation(len(examples))[:number]
        yield from (examples[int(row)] for row in order)
        number -= len(order)


def _copy_of(model: PreTrainedModel) -> PreTrainedModel:
    """A model of the same weights. Not `deepcopy`: a forward that TRL patched would run the original's weights."""
    copied = AutoModelForCausalLM.from_config(model.config, dtype=model.dtype)
    copied.load_state_dict(model.state_dict())
    return copied.to(model.device)
