"""The parts of a model that turn a layer's output into logits: decoder layers, final norm and LM head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

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
    base: Any = model.base_model
    # In a vision-language model the vision encoder may hold as many layers
    decoder = base.get_decoder()
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
    if isinstance(layers, str):  # "auto"
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


def normalise(parts: ModelParts, hidden_states: Tensor) -> Tensor:
    """Final norm of the raw outputs of a layer, `(..., H)`."""
    if parts.norm is not None:
        hidden_states = parts.norm(hidden_states)
    return hidden_states if parts.project_out is None else parts.project_out(hidden_states)
