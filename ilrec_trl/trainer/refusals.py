"""Combinations that [`ILRecTrainer`] refuses at construction, each with the reason and the remedy."""

from __future__ import annotations

from typing import Any

import torch
from datasets import Dataset, IterableDataset

from ..items.item_token_training import warn_of_frozen_item_tokens
from ..items.item_trie import ItemTrie
from ._trl import DataCollatorForLanguageModeling
from .data_collator import DataCollatorForItemCompletion
from .ilrec_config import ILRecConfig


def refuse_incomplete_arguments(args: ILRecConfig, item_trie: Any, reward_func: Any, crr_weight: float) -> None:
    """What can be refused before the model is loaded. `crr_weight` is the weight in force."""
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
    """A column `item` that is empty in every row, of which nothing but cross-entropy would be left."""
    if dataset_name == "train" and "item" in columns and isinstance(dataset, Dataset):
        if len(dataset) and all(item is None for item in dataset["item"]):
            raise ValueError(
                f"`item` is None in all {len(dataset)} rows of the train data set, which marks their completions as "
                "plain text: there is no target item to learn. Give the ids of the items, leave the column out so "
                "that items are found in the completions, or train with SFTTrainer."
            )


def refuse_unsupported(trainer: Any) -> None:
    """What can be refused once the parent has set up model, accelerator and collator."""
    parallelism = trainer.accelerator.parallelism_config
    if parallelism is not None and (parallelism.cp_enabled or parallelism.sp_enabled):
        raise ValueError(
            "ILRec reads whole sequences to find the tokens of an item, which context and sequence parallelism "
            "cut apart. Disable them (`cp_size=1`, `sp_size=1`) and use DDP, FSDP or DeepSpeed ZeRO, or train "
            "with SFTTrainer."
        )
    if trainer.item_trie is not None:
        trainer.item_trie.check_vocab_size(trainer.model.config.get_text_config().vocab_size)
        warn_of_frozen_item_tokens(trainer.model, trainer._tokenizer, trainer.item_trie)
    if trainer.item_trie is not None and trainer._is_vision_dataset:
        raise ValueError(
            "`item_trie` needs rows that are tokenized before training, to find the tokens of an item, but rows with "
            "images are tokenized batch by batch. Remove the `image` or `images` column, or leave `item_trie` out: "
            "ILRec then mines for every token with a label."
        )
    # TRL's own collator is replaced by ours
    marks = type(trainer.data_collator) is DataCollatorForLanguageModeling or isinstance(
        trainer.data_collator, DataCollatorForItemCompletion
    )
    if trainer.item_trie is not None and not marks:
        raise ValueError(
            f"With `item_trie` a batch must say which tokens are a target item, and the data collator "
            f"`{type(trainer.data_collator).__name__}` does not. Leave `data_collator` out, or pass a subclass of "
            "`DataCollatorForItemCompletion`."
        )
