"""The one place that touches a model's inside: decoder layers, final norm, LM head, logit scale and soft-capping."""

from __future__ import annotations

import functools
import types
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ._trl import FusedCausalLMOutput, load_balancing_loss


_NORM_NAMES = ("norm", "final_layernorm", "final_layer_norm", "ln_f", "final_norm", "norm_f", "embedding_norm")


@dataclass
class CrossLayerOutput(FusedCausalLMOutput):
    """
    What a model given [`add_cross_layer_forward`] returns when it is called with `target_mask`: the fields that TRL's
    fused head returns, and the logits at the target positions.

    Args:
        logits (`torch.Tensor` of shape `(N, V)`, float32):
            Logits of the last layer at the target positions, in row-major order.
        layer_logits (`torch.Tensor` of shape `(K, N, V)`, float32):
            Logits of the intermediate layers at the same positions.
    """

    logits: Tensor | None = None
    layer_logits: Tensor | None = None


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


def project_to_logits(model: PreTrainedModel, hidden_states: Tensor, head: nn.Module | None = None) -> Tensor:
    """
    Logits of normed hidden states, with the model's own head, logit scale and soft-capping.

    Args:
        hidden_states (`torch.Tensor` of shape `(..., H)`).
        head (`torch.nn.Module`, *optional*): One that takes the place of the model's own, such as some of its rows.

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


class _LayerRecorder:
    """
    Keeps the raw outputs of decoder layers, as the layers return them, during one forward pass. The hooks stay for
    good, since `torch.compile` does not see hooks that come and go; outside a pass (generation, recomputation in the
    backward pass) they keep nothing.

    Args:
        layers (`torch.nn.ModuleList`):
            Decoder layers.
        intermediate_layers (`list[int]`):
            0-based indices of the layers to record, besides the last.
    """

    def __init__(self, layers: nn.ModuleList, intermediate_layers: list[int]) -> None:
        self.indices = [*intermediate_layers, len(layers) - 1]
        self.checked = False  # whether the last layer was seen to lead to the last hidden state
        self._outputs: dict[int, Tensor] | None = None
        for index in self.indices:
            layers[index].register_forward_hook(functools.partial(self._record, index))

    def _record(self, index: int, module: nn.Module, args: Any, output: Any) -> None:
        if self._outputs is not None:
            self._outputs[index] = output[0] if isinstance(output, tuple) else output

    def run(self, backbone: nn.Module, *args: Any, **kwargs: Any) -> tuple[Any, list[Tensor]]:
        """The backbone's output, and the raw outputs `(B, S, H)` of the intermediate layers and of the last."""
        outputs: dict[int, Tensor] = {}
        self._outputs = outputs
        try:
            return backbone(*args, **kwargs), [outputs[index] for index in self.indices]
        finally:
            self._outputs = None


def add_cross_layer_forward(model: PreTrainedModel, intermediate_layers: list[int]) -> None:
    """
    Patch `model.forward`, on top of TRL's fused head, so that `model(..., labels=labels, fused_lm_head=True,
    target_mask=mask)` returns a [`CrossLayerOutput`]: backbone, final norm and head all run inside this forward, so
    that wrappers which shard or gather parameters (DDP, FSDP, DeepSpeed) see one pass. Other calls go on unchanged.

    `target_mask`, a `bool` tensor of shape `(B, S - 1)`, is `True` where the next token belongs to a target item. Only
    the positions with a label are projected to the vocabulary, and the intermediate layers only at the targets.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            Causal language model, below any PEFT wrapper.
        intermediate_layers (`list[int]`):
            0-based indices of the layers to read, see [`resolve_intermediate_layers`].

    Raises:
        `ValueError`: where the model's parts are not found, or on the first call, where the last layer's output put
            through the final norm is not the model's own last hidden state.
    """
    recorder = _LayerRecorder(find_model_parts(model).layers, intermediate_layers)
    trl_forward = model.forward

    # Keep the signature of the model's own forward: Trainer and `generate` read it
    @functools.wraps(type(model).forward)
    def cross_layer_forward(self, *args, target_mask=None, labels=None, **kwargs):
        if target_mask is None or not kwargs.pop("fused_lm_head", False):
            if labels is not None:
                kwargs["labels"] = labels
            return trl_forward(*args, **kwargs)
        kwargs.pop("num_items_in_batch", None)
        kwargs["use_cache"] = False
        text_config = self.config.get_text_config()
        if getattr(text_config, "output_router_logits", False):
            kwargs.setdefault("output_router_logits", True)
        backbone, raw = recorder.run(self.base_model, *args, **kwargs)
        output = _project(self, recorder, backbone.last_hidden_state, raw, target_mask, labels)
        if kwargs.get("output_router_logits"):
            output.aux_loss = load_balancing_loss(text_config, backbone.router_logits, kwargs.get("attention_mask"))
        return output

    model.forward = types.MethodType(cross_layer_forward, model)


# The number of targets differs from batch to batch, so compiled code would be compiled again and again
@torch.compiler.disable
def _project(model, recorder, last_hidden_state, raw, target_mask, labels) -> CrossLayerOutput:
    """Project what the loss needs of the last hidden state and of the raw outputs of the layers."""
    parts = find_model_parts(model)  # looked up on each call, since PEFT and FSDP replace modules
    device = parts.head.weight.device
    hidden_states = last_hidden_state[:, :-1].to(device)  # (B, S - 1, H)
    labels = labels[:, 1:].to(device)  # (B, S - 1)
    label_mask = labels != -100
    # Prompt-learning adapters put virtual tokens before the sequence
    missing = label_mask.size(1) - target_mask.size(1)
    target_mask = nn.functional.pad(target_mask.to(device), (missing, 0))  # (B, S - 1)
    # Cut after the backbone, never in a hook: under reentrant checkpointing rows cut in a hook are detached
    *rows, last = [output[:, :-1].to(device) for output in raw]  # K + 1 of (B, S - 1, H)
    if not recorder.checked and label_mask.any():
        _check_final_norm(model, parts, last[label_mask], hidden_states[label_mask])
        recorder.checked = True
    normed = _normalise(parts, torch.stack([row[target_mask] for row in rows]))  # (K, N, H)
    logits = project_to_logits(model, hidden_states[label_mask])  # (labels, V)
    is_target = target_mask[label_mask]  # (labels,)
    return CrossLayerOutput(
        **_score_labels(logits, labels, label_mask),
        label_mask=label_mask,
        logits=logits if bool(is_target.all()) else logits[is_target],
        layer_logits=project_to_logits(model, normed),
    )


def _normalise(parts: ModelParts, hidden_states: Tensor) -> Tensor:
    if parts.norm is not None:
        hidden_states = parts.norm(hidden_states)
    return hidden_states if parts.project_out is None else parts.project_out(hidden_states)


def _score_labels(logits: Tensor, labels: Tensor, label_mask: Tensor) -> dict[str, Tensor]:
    """The per-token fields of TRL's fused output, zero on ignored positions, `(B, S - 1)` each."""
    target_ids = labels[label_mask]
    log_probs = logits.log_softmax(-1)  # (labels, V)
    with torch.no_grad():
        entropy = -(log_probs.exp() * log_probs).sum(-1)
        is_top1 = (logits.argmax(-1) == target_ids).to(logits.dtype)
    per_token = {
        "log_probs": log_probs.gather(1, target_ids[:, None]).squeeze(1),
        "entropy": entropy,
        "is_top1": is_top1,
    }
    # `masked_scatter` keeps a batch without any label connected to the model, as every rank's backward needs
    return {
        name: value.new_zeros(label_mask.shape).masked_scatter(label_mask, value) for name, value in per_token.items()
    }


def _check_final_norm(model: PreTrainedModel, parts: ModelParts, raw: Tensor, normed: Tensor) -> None:
    with torch.no_grad():
        expected, got = normed.float(), _normalise(parts, raw).float()
        tolerance = 1e-3 if normed.dtype in (torch.float32, torch.float64) else 3e-2
        absolute = tolerance * expected.abs().max().item() + 1e-6
        agrees = torch.isclose(got, expected, rtol=tolerance, atol=absolute).all(-1)  # (labels,)
        # Vision-language models may add visual features behind a layer (Qwen3-VL), at the places of an image alone
        is_multimodal = model.config.get_text_config() is not model.config
        if not (agrees.any() if is_multimodal else agrees.all()):
            raise ValueError(
                f"ILRec cannot read the intermediate layers of `{type(model).__name__}`: its last decoder layer's "
                "output put through the final norm is not its last hidden state, so logits of middle layers would be "
                "wrong. Train this model with TRL's SFTTrainer, and please report the architecture."
            )
