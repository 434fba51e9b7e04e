"""[`ILRecTrainer`]: TRL's SFTTrainer with self-hard negatives from the model's own intermediate layers."""

from __future__ import annotations

import copy
import dataclasses
import functools
import json
import re
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import is_peft_model
from datasets import Dataset, IterableDataset
from torch import Tensor
from transformers import TrainingArguments
from transformers.utils import logging
from trl import SFTConfig

from ..items.item_trie import ItemTrie
from ..model.model_parts import find_model_parts, resolve_intermediate_layers
from ..model.new_tokens import warn_of_frozen_item_tokens
from ..rewards.rewards import RewardFunc
from ._trl import (
    DataCollatorForLanguageModeling,
    FusedOutputRecorder,
    HookedSFTTrainer,
    get_dataset_column_names,
    uses_chat_template,
)
from .cross_layer_forward import add_cross_layer_forward
from .data_collator import REWARD_COLUMNS, DataCollatorForItemCompletion
from .ilrec_config import ILRecConfig
from .ilrec_loss import ILRecLoss
from .target_rewards import ShareCache, share_rewards, try_reward_func
from .targets import TargetMarker, TargetPositions, pack_with_targets


logger = logging.get_logger(__name__)


class ILRecTrainer(HookedSFTTrainer):
    """
    Trainer for ILRec (https://huggingface.co/papers/2602.17410): supervised fine-tuning of a recommender. In the same
    forward pass hard negative tokens are mined from intermediate layers and penalised (CPO), these layers are
    distilled from the last one (CPD), and a collaborative-filtering model's scores soften false negatives (CRR).

    It takes everything that [`~trl.SFTTrainer`] takes. ILRec's terms are added to the loss of the parent, with the
    parent's normalisation by the number of target tokens. With `cpo_beta`, `cpd_weight` and `crr_weight` at 0 it is
    SFT.

    Args:
        model, args, data_collator, train_dataset, eval_dataset, processing_class, ...:
            As in [`~trl.SFTTrainer`]. `args` is an [`ILRecConfig`]; an [`~trl.SFTConfig`] gets ILRec's defaults. The
            data sets may have the columns `history` (ids of the items before the target), `item` (id of the target, or
            a list when the completion holds several items one after the other) and `user`. Callbacks with a method
            `bind_trainer` are given the trainer and run before all others.
        item_trie ([`ItemTrie`], *optional*): The catalogue. Negatives are then mined among the tokens that can follow
            in some item. Without it the target is the whole completion.
        reward_func ([`RewardFunc`], *optional*): `(histories, **columns) -> (T, I)` non-negative scores of every item
            in the order of `item_trie.item_ids`, for example a [`SASRecReward`]. Needs `item_trie` and a `history`
            column.

    Raises:
        `ValueError`: if truncation would cut a target, a completion is not an item of `item_trie`, a history holds an
            unknown item, or an option does not work with ILRec. The message says which and what to do.

    Example:

    ```python
    from ilrec_trl import ILRecConfig, ILRecTrainer

    trainer = ILRecTrainer(model="meta-llama/Llama-3.2-1B", args=ILRecConfig(), train_dataset=dataset)
    trainer.train()
    ```
    """

    args: ILRecConfig

    def __init__(
        self,
        model: Any,
        args: ILRecConfig | SFTConfig | TrainingArguments | None = None,
        *positional: Any,
        item_trie: ItemTrie | None = None,
        reward_func: RewardFunc | Callable[..., Tensor] | None = None,
        **kwargs: Any,
    ) -> None:
        args = ILRecConfig.from_args(args, model)
        self.item_trie, self.reward_func = item_trie, reward_func
        self.cpo_beta, self.crr_weight = args.cpo_beta, args.crr_weight
        if self.cpo_beta is None:
            self.cpo_beta = 3.0 if item_trie is not None and args.restrict_to_items else 1.0
        if self.crr_weight is None:
            self.crr_weight = 3.0 if reward_func is not None else 0.0
        refuse_incomplete_arguments(args, item_trie, reward_func, self.crr_weight)
        is_fixed = getattr(reward_func, "is_fixed", False)
        self._share_cache = ShareCache(args.reward_cache_mib) if is_fixed and args.reward_cache_mib else None
        self._sums: dict[str, dict[str, Any]] = {"train": defaultdict(float), "eval": defaultdict(float)}
        super().__init__(model, args, *positional, **kwargs)

        refuse_unsupported(self)
        self._patch_model()
        if type(self.data_collator) is DataCollatorForLanguageModeling:
            fields = {f.name: getattr(self.data_collator, f.name) for f in dataclasses.fields(self.data_collator)}
            self.data_collator = DataCollatorForItemCompletion(**fields, eos_token_id=self.tokenizer.eos_token_id)
        self.ilrec_loss = ILRecLoss(
            self.args,
            self.cpo_beta,
            self.crr_weight,
            item_trie,
            vocab_size=len(self.tokenizer),
            pad_token_id=self.tokenizer.pad_token_id,
            layers=self.intermediate_layers,
        )
        if self.crr_weight > 0:
            try_reward_func(self.reward_func, item_trie, self.train_dataset, self.data_collator)
        self._bind_callbacks()

    def _patch_model(self) -> None:
        """Choose the intermediate layers, and let the model's forward read them where the loss needs it."""
        inner = self.model.get_base_model() if is_peft_model(self.model) else self.model
        self.intermediate_layers = self._choose_layers(inner, self.args.intermediate_layers)
        if self.intermediate_layers:
            add_cross_layer_forward(inner, self.intermediate_layers, self.args.max_logits_mib)
        # TRL's fused head multiplies by `weight` and cannot read a head that PEFT wrapped for new tokens
        wrapped_head = type(inner.get_output_embeddings()).__name__ == "TrainableTokensWrapper"
        has_terms = self.cpo_beta or self.args.cpd_weight or self.crr_weight
        self._is_plain_sft = not self.intermediate_layers or not (has_terms or wrapped_head)

    def _choose_layers(self, model: torch.nn.Module, wanted: int | str | list[int]) -> list[int]:
        """Indices of the intermediate layers; none where the model has none and no argument asks for ILRec."""
        num_layers = len(find_model_parts(model).layers)
        if num_layers < 2 and wanted == "auto" and self.item_trie is None:
            logger.warning(
                f"`{type(model).__name__}` has {num_layers} decoder layer(s), so there is no intermediate layer to "
                "mine negatives from: ILRecTrainer trains as SFTTrainer does. Use a deeper model for ILRec's terms."
            )
            return []
        return resolve_intermediate_layers(wanted, num_layers)

    def _bind_callbacks(self) -> None:
        # These compute metrics that others read (early stopping, the best checkpoint), so they come first
        callbacks = self.callback_handler.callbacks
        bound = [callback for callback in callbacks if hasattr(callback, "bind_trainer")]
        for callback in bound:
            callback.bind_trainer(self)
        callbacks[:] = bound + [callback for callback in callbacks if callback not in bound]

    def prepare_rows(
        self,
        dataset: Dataset | IterableDataset,
        args: SFTConfig,
        packing: bool,
        dataset_name: str,
        prepare: Callable[..., Dataset | IterableDataset],
    ) -> Dataset | IterableDataset:
        """The parent's preparation, between whose steps the target items of every row are marked."""
        columns = get_dataset_column_names(dataset)
        marked = self.item_trie is not None or {"prompt", "completion"} <= set(columns)
        if not marked or "target_items" in columns:
            return prepare(dataset, args, packing)
        if self.crr_weight > 0 and "history" not in columns:
            raise ValueError(
                f"`reward_func` scores items given a user's history, but the {dataset_name} data set has no `history` "
                f"column (columns: {sorted(columns)}). Add `history`, a list of item ids, or leave `reward_func` out."
            )
        if self.item_trie is not None:
            refuse_without_items(dataset, columns, dataset_name)
        # First tokenize every row, whole and in order, so that a row can be refused by its number
        whole = copy.copy(args)
        whole.max_length, whole.shuffle_dataset = None, False
        templated = uses_chat_template(dataset)
        dataset = prepare(dataset, whole, packing=False)
        mark = TargetMarker(
            self.tokenizer,
            self.item_trie,
            dataset_name,
            templated,
            # Packing that cuts rows anywhere may cut items, as its user chose
            max_length=None if packing and args.packing_strategy != "bfd" else args.max_length,
            truncation_mode="keep_start" if packing else args.truncation_mode,
            needs_history=self.crr_weight > 0,
        )
        map_kwargs = {}
        if isinstance(dataset, Dataset):
            map_kwargs = {"num_proc": args.dataset_num_proc, "desc": f"Marking target items of {dataset_name} dataset"}
        dataset = dataset.map(mark, with_indices=True, **map_kwargs)
        return pack_with_targets(dataset, args) if packing else prepare(dataset, args, packing, formatted=True)

    def extra_columns(self) -> list[str]:
        # Without rewards nobody reads the reward columns, which may then be anything
        return ["target_items", *(REWARD_COLUMNS if self.crr_weight > 0 else ())]

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """As in the parent; `resume_from_checkpoint=True` takes the last checkpoint that was saved to its end."""
        # The parent (transformers 5.24) takes the folder of the latest step, even if the save was cut off
        if resume_from_checkpoint is True:
            resume_from_checkpoint = find_last_whole_checkpoint(self.args.output_dir)
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def position_loss(self, batch: dict[str, Any]) -> tuple[TargetPositions, Callable[..., Any]]:
        """The target positions of a batch, and ILRec's function of their logits, see [`add_cross_layer_forward`]."""
        given = (batch["input_ids"], batch["labels"], batch.get("target_items"))
        targets = TargetPositions.from_batch(*given, self.item_trie, by_level=self.ilrec_loss.by_level)
        shares = None
        if self.crr_weight > 0:
            columns = {name: batch[name] for name in REWARD_COLUMNS if name in batch}
            shares = share_rewards(self.reward_func, columns, targets, self.item_trie, self._share_cache)  # (E,)
        return targets, functools.partial(self.ilrec_loss, targets=targets, shares=shares)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The parent's loss, and ILRec's terms on the same forward pass, summed over the target positions."""
        added = {name: inputs.pop(name) for name in ("target_items", *REWARD_COLUMNS) if name in inputs}
        if self._is_plain_sft:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        targets, position_loss = self.position_loss({**inputs, **added})
        recorder = FusedOutputRecorder(model, self.model.training, groups=targets.groups, position_loss=position_loss)
        result = super().compute_loss(recorder, inputs, return_outputs, num_items_in_batch)
        output = recorder.output
        terms = output.terms  # (N,)
        self._record(output.logged, len(terms))
        count = output.label_mask.sum() if num_items_in_batch is None else num_items_in_batch
        extra = terms.sum() / torch.as_tensor(count, device=terms.device).clamp(min=1)
        extra = extra * self.loss_factor(num_items_in_batch)
        return (result[0] + extra, result[1]) if return_outputs else result + extra

    def _record(self, values: dict[str, Tensor], positions: int) -> None:
        """Add this batch, of all processes, to the sums behind the logged metrics; kept on the device."""
        totals = torch.stack([value.sum(dtype=torch.float32) for value in values.values()])
        totals = torch.cat([totals, totals.new_full((1,), positions)])
        # Reduced here, where every process passes, and not in `log`, which a callback may call on one of them
        totals = self.accelerator.reduce(totals, reduction="sum")
        sums = self._sums["train" if self.model.training else "eval"]
        for name, total in zip([*values, "positions"], totals, strict=True):
            sums[name] += total

    def extra_metrics(self, mode: str) -> dict[str, float]:
        sums = self._sums[mode]
        if not sums:
            return {}
        totals = dict(zip(sums, torch.stack(list(sums.values())).tolist(), strict=True))
        positions = max(totals.pop("positions"), 1)
        sums.clear()
        return {f"ilrec/{name}": total / positions for name, total in totals.items()}

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """TRL's model card, with ILRec's settings and the last metrics."""
        super().create_model_card(*args, **kwargs)
        if self.is_world_process_zero():
            own = dataclasses.fields(ILRecConfig)[len(dataclasses.fields(SFTConfig)) :]
            settings = {field.name: getattr(self.args, field.name) for field in own}
            in_force = ("cpo_beta", "crr_weight", "intermediate_layers")
            settings.update({name: getattr(self, name) for name in in_force})
            add_ilrec_section(Path(self.args.output_dir) / "README.md", settings, self.state.log_history)


def refuse_incomplete_arguments(args: ILRecConfig, item_trie: Any, reward_func: Any, crr_weight: float) -> None:
    """Refuse, before the model is loaded, arguments that lack another one. `crr_weight` is the weight in force."""
    if item_trie is not None and not isinstance(item_trie, ItemTrie):
        raise TypeError(
            f"`item_trie` must be an `ItemTrie`, got `{type(item_trie).__name__}`. Build one with "
            "`ItemCatalog(...).trie(tokenizer)` or `ItemTrie.from_sequences({item_id: token_ids})`."
        )
    if args.activation_offloading and not torch.accelerator.is_available():
        raise ValueError(
            "`activation_offloading=True` moves activations from an accelerator to the CPU, but torch finds no "
            "accelerator. Set `activation_offloading=False`."
        )
    if crr_weight > 0 and reward_func is None:
        raise ValueError(
            f"`crr_weight={crr_weight}` needs item scores, but there is no `reward_func`. Pass one (for "
            "example `SASRecReward`), or set `crr_weight=0`."
        )
    if crr_weight > 0 and item_trie is None:
        raise ValueError(
            "`reward_func` scores items, and `item_trie` says which tokens lead to which item, but there is no "
            "`item_trie`. Pass the trie of the catalogue, or leave `reward_func` out."
        )
    if crr_weight > 0 and (args.packing or args.eval_packing):
        raise ValueError(
            "Packing joins rows and drops the `history` column that `reward_func` reads. Set `packing=False` (and "
            "`eval_packing=False`), or set `crr_weight=0` to train with CPO and CPD alone."
        )


def refuse_without_items(dataset: Dataset | IterableDataset, columns: list[str], dataset_name: str) -> None:
    """Refuse an `item` column that is empty in every row, which would leave nothing but cross-entropy."""
    if dataset_name == "train" and "item" in columns and isinstance(dataset, Dataset):
        if len(dataset) and all(item is None for item in dataset["item"]):
            raise ValueError(
                f"`item` is None in all {len(dataset)} rows of the train data set, which marks their completions as "
                "plain text: there is no target item to learn. Give the ids of the items, leave the column out so "
                "that items are found in the completions, or train with SFTTrainer."
            )


def refuse_unsupported(trainer: ILRecTrainer) -> None:
    """Refuse what is known once the parent has set up model, accelerator and collator."""
    parallelism = trainer.accelerator.parallelism_config
    if parallelism is not None and (parallelism.cp_enabled or parallelism.sp_enabled):
        raise ValueError(
            "ILRec reads whole sequences to find the tokens of an item, which context and sequence parallelism "
            "cut apart. Disable them (`cp_size=1`, `sp_size=1`) and use DDP, FSDP or DeepSpeed ZeRO, or train "
            "with SFTTrainer."
        )
    if trainer.item_trie is None:
        return
    trainer.item_trie.check_vocab_size(trainer.model.config.get_text_config().vocab_size)
    warn_of_frozen_item_tokens(trainer.model, trainer.tokenizer, trainer.item_trie.token_ids)
    if trainer.has_images:
        raise ValueError(
            "`item_trie` needs rows that are tokenized before training, to find the tokens of an item, but rows with "
            "images are tokenized batch by batch. Remove the `image` or `images` column, or leave `item_trie` out: "
            "ILRec then mines for every token with a label."
        )
    collator = trainer.data_collator
    # TRL's own collator is replaced by ours
    if not (type(collator) is DataCollatorForLanguageModeling or isinstance(collator, DataCollatorForItemCompletion)):
        raise ValueError(
            f"With `item_trie` a batch must say which tokens are a target item, and the data collator "
            f"`{type(collator).__name__}` does not. Leave `data_collator` out, or pass a subclass of "
            "`DataCollatorForItemCompletion`."
        )


def find_last_whole_checkpoint(output_dir: str | Path) -> str:
    """
    Path of the checkpoint of the latest step that was saved to its end; `ValueError` where there is none. The state of
    the trainer is the last file that [`~transformers.Trainer`] writes: a checkpoint is whole if it can be read.
    """
    folders = [folder for folder in Path(output_dir).glob("checkpoint-*") if folder.name[11:].isdigit()]
    for folder in sorted(folders, key=lambda folder: int(folder.name[11:]), reverse=True):
        try:
            json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))
        except (FileNotFoundError, json.JSONDecodeError):
            continue
        return str(folder)
    found = f"only {', '.join(sorted(folder.name for folder in folders))}, cut off while saving" if folders else "none"
    raise ValueError(
        f"`resume_from_checkpoint=True`, but there is no whole checkpoint in `{output_dir}` (found: {found}). Start "
        "again with `resume_from_checkpoint=None`, or give the path of a checkpoint."
    )


def add_ilrec_section(card: Path, settings: dict[str, Any], log_history: list[dict[str, Any]]) -> None:
    """Write settings, and the last value of each metric, before the framework versions of TRL's model card."""
    last: dict[str, float] = {}
    for log in log_history:
        last.update(log)
    chosen = re.compile(r"(eval_)?loss$|.*ilrec/|eval_(hit@|ndcg@|mrr)")
    shown = {name: last[name] for name in sorted(last) if chosen.match(name)}
    lines = ["### ILRec settings", "", *_table("Setting", settings), ""]
    if shown:
        lines += ["### Last metrics", "", *_table("Metric", {name: f"{x:.4g}" for name, x in shown.items()}), ""]
    before, heading, after = card.read_text(encoding="utf-8").partition("### Framework versions")
    card.write_text("".join([before, "\n".join(lines), "\n", heading, after]), encoding="utf-8")


def _table(name: str, values: dict[str, Any]) -> list[str]:
    return [f"| {name} | Value |", "| --- | --- |", *(f"| `{key}` | {value} |" for key, value in values.items())]
