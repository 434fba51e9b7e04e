"""The parts of a model that turn a layer's output into logits: layers, final norm, LM head, scale and soft-capping."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel


_NORM_NAMES = ("norm", "final_layernorm", "final_layer_norm", "ln_f", "final_norm", "norm_f", "embedding_norm")


@dataclass
class ModelParts:
    """The modules of a causal language model that turn a layer's output into logits."""

    layers: nn.ModuleList
    norm: nn.Module | None
    project_out: nn.Module | None
    head: nn.Module


def find_model_parts(model: PreTrainedModel) -> ModelParts:
    """
    Find decoder layers, final norm and LM head by one rule: the owner of the layers is the shallowest module of the
    text decoder that holds a `ModuleList` of `num_hidden_layers` modules, and the norm is the owner's.

    Raises:
        `ValueError`: where the model does not fit the rule.
    """
    num_layers = model.config.get_text_config().num_hidden_layers
    head = model.get_output_embeddings()
    # In a vision-language model the vision encoder may hold as many layers
    decoder = model.base_model.get_decoder()
    by_depth = sorted(decoder.named_modules(), key=lambda named: named[0].count(".") if named[0] else -1)
    for _, owner in by_depth:
        for layers in owner.children():
            if head is None or model.config.is_encoder_decoder:
                break
            if isinstance(layers, nn.ModuleList) and len(layers) == num_layers:
                norms = [name for name in _NORM_NAMES if isinstance(getattr(owner, name, None), nn.Module)]
                norm = getattr(owner, norms[0]) if norms else None
                return ModelParts(layers, norm, getattr(owner, "project_out", None), head)
    raise ValueError(
        f"ILRec cannot read the intermediate layers of `{type(model).__name__}`: expected an LM head and, below "
        f"`{model.base_model_prefix}`, a ModuleList of {num_layers} decoder layers. Use a decoder-only causal "
        "language model of transformers, or train with TRL's SFTTrainer."
    )


def resolve_intermediate_layers(layers: int | str | list[int], num_layers: int) -> list[int]:
    """
    Indices of the intermediate layers, ascending, from [`ILRecConfig.intermediate_layers`].

    Raises:
        `ValueError`: where an index is out of range, is the last layer, or there are not so many layers.
    """
    if num_layers < 2:
        raise ValueError(
            f"ILRec mines from intermediate layers, but the model has {num_layers} decoder layer(s); at least 2 are "
            "needed. Use a deeper model, or train with TRL's SFTTrainer."
        )
    if layers == "auto":
        layers = min(3, num_layers - 1)
    if isinstance(layers, int):
        if layers > num_layers - 1:
            raise ValueError(
                f"`intermediate_layers={layers}` asks for {layers} layers before the last, but the model has only "
                f"{num_layers - 1}. Choose at most {num_layers - 1}."
            )
        return list(range(num_layers - 1 - layers, num_layers - 1))
    indices = sorted({layer + num_layers if layer < 0 else layer for layer in layers})
    if indices[0] < 0 or indices[-1] >= num_layers - 1:
        raise ValueError(
            f"`intermediate_layers={layers}` must hold indices from 0 to {num_layers - 2} (or {-num_layers} to -2): "
            f"the model has {num_layers} decoder layers, and the last is the one that negatives are mined for."
        )
    return indices


class HeadRows:
    """
    Some rows of an LM head, in its place.

    Args:
        weight (`torch.Tensor` of shape `(R, H)`), bias (`torch.Tensor` of shape `(R,)`, *optional*).
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight, self.bias = weight, bias

    def __call__(self, hidden_states: Tensor) -> Tensor:
        return nn.functional.linear(hidden_states, self.weight, self.bias)

    def split(self, sizes: list[int]) -> list[HeadRows]:
        """Heads of so many rows each."""
        biases = [None] * len(sizes) if self.bias is None else self.bias.split(sizes)
        return [HeadRows(*parts) for parts in zip(self.weight.split(sizes), biases, strict=True)]


def take_head_rows(head: Any, tokens: Tensor) -> HeadRows | None:
    """
    The rows of `head` for `tokens` `(R,)`; `None` where its logits can be had from itself alone: an adapter around it,
    quantised or sharded weights, or hooks.
    """
    weight = head.weight
    is_plain = (
        type(head) is nn.Linear
        and type(weight) in (Tensor, nn.Parameter)
        and weight.is_floating_point()
        and weight.shape == (head.out_features, head.in_features)
        and not (head._forward_hooks or head._forward_pre_hooks or hasattr(head, "_hf_hook"))
        and not hasattr(weight, "ds_id")  # DeepSpeed ZeRO-3
    )
    if not is_plain:
        return None
    tokens = tokens.to(weight.device)
    return HeadRows(weight[tokens], None if head.bias is None else head.bias[tokens])


def project_to_logits(
    model: PreTrainedModel, hidden_states: Tensor, head: nn.Module | HeadRows | None = None
) -> Tensor:
    """
    Logits of normed hidden states, with the model's own head, logit scale and soft-capping.

    Args:
        hidden_states (`torch.Tensor` of shape `(..., H)`).
        head (`torch.nn.Module` or `HeadRows`, *optional*): What takes the place of the model's own.

    Returns:
        `torch.Tensor` of shape `(..., V)`, float32 (float64 for a float64 model).
    """
    config = model.config.get_text_config()
    head = model.get_output_embeddings() if head is None else head
    if not torch.is_autocast_enabled(hidden_states.device.type):
        # trainable parameters of a quantised model are cast to bfloat16, which its hidden states need not be
        hidden_states = hidden_states.to(head.weight.dtype)
    logits = head(hidden_states)  # (..., V)
    logits = logits if logits.dtype == torch.float64 else logits.float()
    scale = _logit_scale(config)
    if scale != 1.0:
        logits = logits * scale
    softcap = getattr(config, "final_logit_softcapping", None)
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


def _logit_scale(config: Any) -> float:
    """The factor that the model's own forward multiplies its logits by; the names are those TRL's fused head reads."""
    for name in ("logit_scale", "output_multiplier", "lm_head_multiplier"):
        if getattr(config, name, None) is not None:
            return getattr(config, name)
    scaling = getattr(config, "logits_scaling", None)
    if scaling is None:
        return 1.0
    return scaling if config.model_type == "hyperclovax" else 1 / scaling


def normalise(parts: ModelParts, hidden_states: Tensor) -> Tensor:
    if parts.norm is not None:
        hidden_states = parts.norm(hidden_states)
    return hidden_states if parts.project_out is None else parts.project_out(hidden_states)
