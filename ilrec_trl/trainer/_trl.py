"""TRL's names that are not public, all in one place: when TRL moves one, only this module changes."""

from __future__ import annotations

import torch
from trl.data_utils import get_dataset_column_names, is_conversational, is_conversational_from_value
from trl.trainer.dpo_trainer import DataCollatorForPreference
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling
from trl.trainer.utils import FusedCausalLMOutput, get_config_model_id, pad


__all__ = [
    "DataCollatorForLanguageModeling",
    "DataCollatorForPreference",
    "FusedCausalLMOutput",
    "get_config_model_id",
    "get_dataset_column_names",
    "is_conversational",
    "is_conversational_from_value",
    "load_balancing_loss",
    "pad",
]


def load_balancing_loss(text_config, router_logits, attention_mask) -> torch.Tensor:
    """The router loss that TRL's fused head computes for mixture-of-experts models."""
    from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

    return load_balancing_loss_func(
        router_logits, text_config.num_experts, text_config.num_experts_per_tok, attention_mask
    )
