"""
What `training.py` measures: one synthetic job (model shape, catalogue, rows), and trainers that do it, each on the
same rows in the same order from the same weights.
"""

import random
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, LlamaConfig, PretrainedConfig, TrainerCallback, set_seed
from trl import DPOConfig, DPOTrainer, GRPOConfig, SFTConfig, SFTTrainer

from benchmarks.accuracy.grpo import ItemGRPOTrainer, item_match_reward
from benchmarks.accuracy.softmax_dpo_trainer import SoftmaxDPOTrainer
from ilrec_trl.items.item_catalog import ItemCatalog
from ilrec_trl.rewards.rewards import SASRecReward
from ilrec_trl.rewards.sasrec import SASRecConfig, SASRecModel
from ilrec_trl.trainer.ilrec_config import ILRecConfig
from ilrec_trl.trainer.ilrec_trainer import ILRecTrainer
from ilrec_trl.trainer.targets import TargetPositions


LEVELS, CODES = 4, 256
SMALL_LLAMA = {
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
}


@dataclass(frozen=True)
class Job:
    """
    What is trained on.

    Args:
        kind (`"semantic_ids"` or `"titles"`): What names an item.
        vocab_size (`int`): Rows of the model's embedding; the tokenizer may know fewer.
        length (`int`): Approximate number of tokens per row.
        batch_size (`int`): Rows a step.
        num_items (`int`): Size of the catalogue.
        targets (`int`): Items of a row that are targets: 1 for a prompt and its completion.
        shape (`dict`): Sizes of a Llama, as [`~transformers.LlamaConfig`] names them.
    """

    kind: str = "semantic_ids"
    vocab_size: int = 1_031
    length: int = 128
    batch_size: int = 8
    num_items: int = 10_000
    targets: int = 1
    shape: tuple = tuple(SMALL_LLAMA.items())

    def with_(self, **changes: Any) -> "Job":
        return replace(self, **changes)

    def with_shape(self, **sizes: Any) -> "Job":
        return replace(self, shape=tuple({**dict(self.shape), **sizes}.items()))

    @property
    def name(self) -> str:
        return (
            f"{self.kind} V={self.vocab_size} S={self.length} B={self.batch_size} I={self.num_items} "
            f"targets={self.targets}"
        )


class Workbench:
    """Catalogue, tokenizer, rows and SASRec of a job; weights and rows are drawn by chance."""

    def __init__(self, job: Job, num_rows: int, make_model: Callable[[], Any] | None = None) -> None:
        self.job = job
        self.make_model = make_model
        generator = random.Random(0)
        self.catalog = _catalog(job, generator)
        size = min(job.vocab_size, 8_192)
        self.tokenizer = self.catalog.build_tokenizer(size)
        self.item_trie = self.catalog.trie(self.tokenizer)
        self.separator = "" if job.kind == "semantic_ids" else self.tokenizer.eos_token
        tokens = len(self.tokenizer(self.catalog.texts[0] + self.separator)["input_ids"])
        self.history_length = max(1, (job.length - 1) // tokens - job.targets)
        self.rows = [self._row(generator) for _ in range(num_rows)]
        texts = [row["prompt"] + row["completion"] for row in self.rows]
        self.tokens_per_step = sum(map(len, self.tokenizer(texts)["input_ids"])) * job.batch_size / num_rows
        set_seed(0)
        self.sasrec = SASRecModel(SASRecConfig(item_ids=list(self.catalog.item_ids)))

    def _row(self, generator: random.Random) -> dict[str, Any]:
        items = generator.choices(self.catalog.item_ids, k=self.history_length + self.job.targets)
        history, targets = items[: self.history_length], items[self.history_length :]
        text = self.separator.join(map(self.catalog.text, targets))
        prompt = "".join(self.catalog.text(item) + self.separator for item in history)
        item = targets if self.job.targets > 1 else targets[0]
        return {"prompt": prompt, "completion": text, "history": history, "item": item, "user": "u"}

    def model(self) -> Any:
        """The job's Llama from random weights, the same at each call, or what `make_model` builds."""
        if self.make_model is not None:
            return self.make_model()
        config = LlamaConfig(
            vocab_size=self.job.vocab_size,
            pad_token_id=self.tokenizer.pad_token_id,
            eos_token_id=self.tokenizer.eos_token_id,
            bos_token_id=None,
            max_position_embeddings=4_096,
            **dict(self.job.shape),
        )
        return build_model(config)

    def negatives(self, count: int) -> list[dict[str, Any]]:
        """Rows for softmax-DPO: `count` items to reject, drawn by chance."""
        generator = random.Random(1)
        return [
            {
                "prompt": row["prompt"],
                "chosen": row["completion"],
                "rejected": list(map(self.catalog.text, generator.choices(self.catalog.item_ids, k=count))),
            }
            for row in self.rows
        ]


def build_model(config: PretrainedConfig) -> Any:
    set_seed(0)
    return AutoModelForCausalLM.from_config(config)


def _catalog(job: Job, generator: random.Random) -> ItemCatalog:
    names = [f"i{number}" for number in range(job.num_items)]
    if job.kind == "semantic_ids":
        codes = {
            name: [f"<{'abcd'[level]}_{generator.randrange(CODES)}>" for level in range(LEVELS)] for name in names
        }
        for level in range(LEVELS):  # every code is used, so that the vocabulary is the same for all catalogues
            for code in range(CODES):
                codes[names[(level * CODES + code) % len(names)]][level] = f"<{'abcd'[level]}_{code}>"
        return ItemCatalog.from_semantic_ids(codes)
    words = ["".join(generator.choices("abcdefghijklmnop", k=generator.randint(3, 9))) for _ in range(4_000)]
    return ItemCatalog.from_titles({name: " ".join([*generator.choices(words, k=6), name]) for name in names})


class _StepTimer(TrainerCallback):
    """From the end of one step to that of the next, the fetching of its batch included."""

    def on_train_begin(self, args, state, control, **kwargs):
        self.seconds: list[float] = []
        self.last = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs):
        _synchronise()
        now = time.perf_counter()
        self.seconds.append(now - self.last)
        self.last = now


def _synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


class System:
    """
    One way of training, built when it is first measured.

    Args:
        make (`Callable[[], Trainer]`): Builds the trainer.
        warm_up (`bool`, *optional*, defaults to `False`): Whether to train once before anything is measured, for a
            trainer that keeps something of the rows for later epochs.
    """

    def __init__(self, make: Callable[[], Any], warm_up: bool = False) -> None:
        self.make, self.warm_up, self.trainer = make, warm_up, None

    def step_seconds(self) -> float:
        """Median seconds of the optimiser steps of one short training, the first step left out."""
        if self.trainer is None:
            self.trainer = self.make()
            self.timer = _StepTimer()
            self.trainer.add_callback(self.timer)
            if self.warm_up:
                self.trainer.train()
        self.trainer.train()
        return sorted(self.timer.seconds[1:])[len(self.timer.seconds[1:]) // 2]


class NaiveILRecTrainer(SFTTrainer):
    """
    ILRec as the published code goes about it, with METHOD's equations: all hidden states kept, every layer's logits at
    all positions, then a Python loop over the target positions.
    """

    def __init__(self, *args: Any, item_trie: Any, reward_func: Any, settings: ILRecConfig, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.item_trie, self.reward_func, self.settings = item_trie, reward_func, settings

    def _set_signature_columns_if_needed(self):
        super()._set_signature_columns_if_needed()
        self._signature_columns += ["target_items", "history", "item", "user"]

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        tokens = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        outputs = model(**tokens, output_hidden_states=True)
        norm, head = self.model.base_model.norm, self.model.get_output_embeddings()
        layers = [head(norm(hidden)).float() for hidden in outputs.hidden_states[-4:-1]]  # K of (B, S, V)
        loss = self.loss_of(layers, outputs.logits.float(), inputs) / num_items_in_batch
        return (loss, outputs) if return_outputs else loss

    def loss_of(self, layers, last, inputs):
        """The sum over all positions with a label, given K logits `(B, S, V)` of layers and those of the last."""
        labels = inputs["labels"]
        targets = TargetPositions.from_batch(inputs["input_ids"], labels, inputs["target_items"], self.item_trie)
        where = targets.groups[0]
        places = zip(where.rows.tolist(), (where.positions + labels.size(1) - 1).tolist(), strict=True)
        numbers = {place: number for number, place in enumerate(places)}
        rewards = None
        if self.reward_func is not None:
            scores = self.reward_func(inputs["history"])
            rewards = self.item_trie.token_rewards(scores, targets.nodes, last.size(-1), rows=targets.items)
        total = last.sum() * 0.0
        for row in range(labels.size(0)):
            for position in range(labels.size(1) - 1):
                if labels[row, position + 1] == -100:
                    continue
                z, target = last[row, position], labels[row, position + 1]
                total = total - z.log_softmax(-1)[target]
                if (number := numbers.get((row, position))) is not None:
                    reward = None if rewards is None else rewards[number]
                    allowed = self.item_trie.allowed_mask(targets.nodes[number : number + 1], last.size(-1))[0]
                    total = total + self._terms(z, [layer[row, position] for layer in layers], target, allowed, reward)
        return total

    def _terms(self, z, layers, target, allowed, reward):
        settings = self.settings
        ensemble = torch.stack(layers).mean(0)
        probabilities = z.softmax(-1)
        negatives = allowed & (ensemble.softmax(-1) >= settings.negative_threshold * probabilities[target]).detach()
        negatives[target] = False
        weights = torch.zeros_like(z)
        if negatives.any():
            weights[negatives] = ensemble.detach()[negatives].softmax(-1)
        terms = (z + settings.cpo_beta * weights).logsumexp(-1) - z.logsumexp(-1)
        teacher = z.detach().log_softmax(-1)
        for layer in layers:
            divergence = (teacher.exp() * (teacher - layer.log_softmax(-1))).sum()
            terms = terms + settings.cpd_weight / len(layers) * divergence
        if reward is not None and reward.sum() > 0 and allowed.sum() > 1:
            terms = terms - (reward.to(z.dtype) * z.log_softmax(-1)).sum()
        return terms


def systems(
    bench: Workbench, steps: int, options: dict[str, Any], methods: list[str], peft_config: Any = None
) -> dict[str, System]:
    """The trainers named in `methods`, each built on first use."""
    common = {
        "max_steps": steps,
        "per_device_train_batch_size": bench.job.batch_size,
        "logging_steps": 1_000,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "seed": 0,
        **options,
    }
    makers = Makers(bench, common, peft_config)
    return {name: System(makers.maker(name), warm_up=name.startswith("ILRec")) for name in methods}


#: Settings of ILRec by the name a table gives them.
VARIANTS: dict[str, dict[str, Any]] = {
    "ILRec": {},
    "ILRec, first epoch": {"reward_cache_mib": 0},
    "ILRec without CPO": {"cpo_beta": 0.0},
    "ILRec without CPD": {"cpd_weight": 0.0},
    "ILRec without CRR": {"crr_weight": 0.0},
    "ILRec, all tokens": {"layer_vocabulary": "all"},
    "ILRec, one block": {"max_logits_mib": 1e6},
    "ILRec, blocks of 16 MiB": {"max_logits_mib": 16},
    **{f"ILRec k={k}": {"intermediate_layers": k} for k in range(1, 9)},
}


@dataclass(frozen=True)
class Makers:
    """Builds the trainers of one job, each on the same rows from the same weights."""

    bench: Workbench
    common: dict[str, Any]
    peft_config: Any = None

    def maker(self, name: str) -> Callable[[], Any]:
        """What builds the trainer that a table calls `name`."""
        others: dict[str, Callable[[], Any]] = {
            "SFT": self.sft,
            "naive ILRec": self.naive_ilrec,
            **{f"DPO {count} negatives": partial(self.dpo, count) for count in (1, 2, 3)},
            "softmax-DPO 3 negatives": self.softmax_dpo,
            "GRPO 8 rollouts": self.grpo,
        }
        return others[name] if name in others else partial(self.ilrec, **VARIANTS[name])

    @property
    def arguments(self) -> dict[str, Any]:
        """Of a configuration, with an output folder of its own."""
        return {"max_length": None, "output_dir": tempfile.mkdtemp(), **self.common}

    @property
    def rows(self) -> Dataset:
        return Dataset.from_list(self.bench.rows)

    @property
    def reward_func(self) -> SASRecReward:
        return SASRecReward(self.bench.sasrec, self.bench.item_trie)

    def sft(self) -> SFTTrainer:
        return SFTTrainer(
            self.bench.model(),
            args=SFTConfig(**self.arguments),
            train_dataset=self.rows.select_columns(["prompt", "completion"]),
            processing_class=self.bench.tokenizer,
            peft_config=self.peft_config,
        )

    def ilrec(self, **settings: Any) -> ILRecTrainer:
        return ILRecTrainer(
            self.bench.model(),
            args=ILRecConfig(**self.arguments, **settings),
            train_dataset=self.rows,
            processing_class=self.bench.tokenizer,
            item_trie=self.bench.item_trie,
            reward_func=None if settings.get("crr_weight") == 0 else self.reward_func,
            peft_config=self.peft_config,
        )

    def naive_ilrec(self) -> NaiveILRecTrainer:
        prepared = ILRecTrainer(
            self.bench.model(),
            args=ILRecConfig(**self.arguments),
            train_dataset=self.rows,
            processing_class=self.bench.tokenizer,
            item_trie=self.bench.item_trie,
            reward_func=self.reward_func,
        )
        return NaiveILRecTrainer(
            self.bench.model(),
            args=SFTConfig(**self.arguments),
            train_dataset=prepared.train_dataset,
            data_collator=prepared.data_collator,
            processing_class=self.bench.tokenizer,
            item_trie=self.bench.item_trie,
            reward_func=self.reward_func,
            settings=ILRecConfig(**self.arguments, cpo_beta=3.0, crr_weight=1.0),
        )

    def dpo(self, count: int) -> DPOTrainer:
        """As many pairs a positive as negatives, all in the positive's step."""
        pairs = [row | {"rejected": rejected} for row in self.bench.negatives(count) for rejected in row["rejected"]]
        batch = {"per_device_train_batch_size": count * self.bench.job.batch_size}
        return DPOTrainer(
            self.bench.model(),
            self.bench.model(),
            DPOConfig(**{**self.arguments, **batch}),
            train_dataset=Dataset.from_list(pairs),
            processing_class=self.bench.tokenizer,
        )

    def softmax_dpo(self) -> SoftmaxDPOTrainer:
        return SoftmaxDPOTrainer(
            self.bench.model(),
            self.bench.model(),
            DPOConfig(**self.arguments),
            train_dataset=Dataset.from_list(self.bench.negatives(3)),
            processing_class=self.bench.tokenizer,
        )

    def grpo(self, rollouts: int = 8) -> ItemGRPOTrainer:
        batch = {"per_device_train_batch_size": rollouts * self.bench.job.batch_size}
        args = GRPOConfig(
            **{**self.common, **batch, "output_dir": tempfile.mkdtemp()},
            num_generations=rollouts,
            max_completion_length=self.bench.item_trie.depth + 1,
            steps_per_generation=1,
            beta=0.0,
        )
        return ItemGRPOTrainer(
            self.bench.model(),
            reward_funcs=item_match_reward(self.bench.item_trie),
            args=args,
            train_dataset=self.rows.select_columns(["prompt", "item"]),
            processing_class=self.bench.tokenizer,
            item_trie=self.bench.item_trie,
        )
