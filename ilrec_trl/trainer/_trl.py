"""What this package uses of TRL and Trainer that is not public. When TRL moves a name, only this module changes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from datasets import Dataset, IterableDataset
from transformers import PreTrainedTokenizerBase
from trl import SFTConfig, SFTTrainer
from trl.data_utils import get_dataset_column_names, is_conversational, is_conversational_from_value
from trl.trainer.dpo_trainer import DataCollatorForPreference
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling
from trl.trainer.utils import FusedCausalLMOutput, get_config_model_id, pad


__all__ = [
    "FUSED_HEAD",
    "DataCollatorForLanguageModeling",
    "DataCollatorForPreference",
    "FusedCausalLMOutput",
    "FusedOutputRecorder",
    "HookedSFTTrainer",
    "get_config_model_id",
    "get_dataset_column_names",
    "load_balancing_loss",
    "pad",
    "uses_chat_template",
]

#: Keyword with which `SFTTrainer.compute_loss` asks a model for [`FusedCausalLMOutput`].
FUSED_HEAD = "fused_lm_head"


class HookedSFTTrainer(SFTTrainer):
    """
    [`~trl.SFTTrainer`] whose private methods call hooks with names of ours. [`ILRecTrainer`] overrides these hooks and
    names nothing private of its parents.
    """

    # What TRL writes on model cards and into the tags of a model
    _tag_names = ["trl", "sft", "ilrec", "recommendation"]
    _name = "ILRec"
    _paper = {
        "title": "Improving LLM-based Recommendation with Self-Hard Negatives from Intermediate Layers",
        "id": "2602.17410",
        "citation": (
            "@article{li2026ilrec,\n"
            "  title   = {{Improving LLM-based Recommendation with Self-Hard Negatives from Intermediate Layers}},\n"
            "  author  = {Li and Zheng and Wang and Zhang and Wang and Chen and Zhao and Wen},\n"
            "  journal = {arXiv preprint arXiv:2602.17410},\n"
            "  year    = {2026}\n"
            "}"
        ),
    }

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer, also where `processing_class` is a processor of text and images."""
        return self._tokenizer

    @property
    def has_images(self) -> bool:
        """Whether rows hold images, which TRL tokenizes batch by batch."""
        return self._is_vision_dataset

    def prepare_rows(
        self,
        dataset: Dataset | IterableDataset,
        args: SFTConfig,
        packing: bool,
        dataset_name: str,
        prepare: Callable[..., Dataset | IterableDataset],
    ) -> Dataset | IterableDataset:
        """Prepare a data set; `prepare(dataset, args, packing, formatted=False)` is the parent's way to do it."""
        return prepare(dataset, args, packing)

    def extra_columns(self) -> Iterable[str]:
        """Columns that reach the collator besides those TRL keeps."""
        return ()

    def extra_metrics(self, mode: str) -> dict[str, float]:
        """Metrics to log besides TRL's, in `mode` `"train"` or `"eval"`, without the prefix of an evaluation."""
        return {}

    def loss_factor(self, num_items_in_batch: Any) -> int:
        """The parent's factor of a loss over this process's tokens, by which DDP's mean of gradients becomes a sum."""
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            return self.accelerator.num_processes // self.get_tp_size()
        return 1

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        mode = "train" if self.model.training else "eval"
        for name, value in self.extra_metrics(mode).items():
            self._metrics[mode][name] = [value]
        super().log(logs, start_time)

    def _prepare_dataset(self, dataset, processing_class, args, packing, formatting_func, dataset_name):
        parent = super()._prepare_dataset

        def prepare(dataset, args, packing, formatted=False):
            func = None if formatted else formatting_func
            return parent(dataset, processing_class, args, packing, func, dataset_name)

        return self.prepare_rows(dataset, args, packing, dataset_name, prepare)

    def _set_signature_columns_if_needed(self):
        super()._set_signature_columns_if_needed()
        if not self.has_images:
            known = self._signature_columns
            self._signature_columns = known + [name for name in self.extra_columns() if name not in known]


class FusedOutputRecorder:
    """
    The model as `SFTTrainer.compute_loss` calls it, which keeps the fused output. It stands outside every wrapper
    (DDP, FSDP), so that their hooks are on the kept tensors.

    Args:
        model (`torch.nn.Module`): The model.
        training (`bool`): Whether the fused output gets a gradient.
        **added:
            Arguments of the fused call besides those that TRL passes.
    """

    def __init__(self, model: torch.nn.Module, training: bool, **added: Any) -> None:
        self.model, self.training, self.added = model, training, added
        self.output: Any = None

    def __call__(self, **inputs: Any) -> Any:
        if not inputs.get(FUSED_HEAD):
            return self.model(**inputs)
        # With a custom loss or label smoothing TRL computes the fused output for its metrics alone, without gradient
        with torch.set_grad_enabled(self.training):
            self.output = self.model(**inputs, **self.added)
        return self.output


def uses_chat_template(dataset: Dataset | IterableDataset) -> bool:
    """Whether TRL puts the rows of a data set through the tokenizer's chat template."""
    example = next(iter(dataset))
    return is_conversational(example) or is_conversational_from_value(example)


def load_balancing_loss(text_config: Any, router_logits: Any, attention_mask: torch.Tensor | None) -> torch.Tensor:
    """The router loss that TRL's fused head computes for mixture-of-experts models."""
    from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

    return load_balancing_loss_func(
        router_logits, text_config.num_experts, text_config.num_experts_per_tok, attention_mask
    )
