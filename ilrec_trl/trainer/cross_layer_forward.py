"""One forward pass that gives a loss the logits of the last and of the intermediate layers at the target positions."""

from __future__ import annotations

import functools
import math
import types
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from ._trl import FusedCausalLMOutput, load_balancing_loss
from .model_parts import ModelParts, find_model_parts, normalise, project_to_logits


@dataclass
class CrossLayerOutput(FusedCausalLMOutput):
    """
    What a model given [`add_cross_layer_forward`] returns when it is called with `position_loss`: the fields that
    TRL's fused head returns, and what `position_loss` made of the logits at the N target positions.

    Args:
        terms (`torch.Tensor` of shape `(N,)`):
            Terms of the loss, in row-major order of the positions.
        logged (`dict[str, torch.Tensor]`):
            Values to log, `(N,)` each.
    """

    terms: Tensor | None = None
    logged: dict[str, Tensor] | None = None


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


def add_cross_layer_forward(
    model: PreTrainedModel, intermediate_layers: list[int], max_logits_mib: float = math.inf
) -> None:
    """
    Patch `model.forward`, on top of TRL's fused head, so that `model(..., labels=labels, fused_lm_head=True,
    target_mask=mask, position_loss=position_loss)` returns a [`CrossLayerOutput`]: backbone, final norm, head and loss
    all run inside this forward, so that wrappers which shard or gather parameters (DDP, FSDP, DeepSpeed) see one pass.
    Other calls go on unchanged.

    `target_mask`, a `bool` tensor of shape `(B, S - 1)`, is `True` where the next token belongs to a target item. Only
    the positions with a label are projected to the vocabulary, and the intermediate layers only at the targets.
    `position_loss(logits, layer_logits, start)` is given float32 logits `(n, V)` and `(K, n, V)` of the target
    positions `start` to `start + n - 1`, in row-major order, and returns a term and values to log for each of them.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            Causal language model, below any PEFT wrapper.
        intermediate_layers (`list[int]`):
            0-based indices of the layers to read, see [`resolve_intermediate_layers`].
        max_logits_mib (`float`, *optional*, defaults to no limit):
            Logits of all layers that may be held at once, in MiB, see [`ILRecConfig.max_logits_mib`].

    Raises:
        `ValueError`: where the model's parts are not found, or on the first call, where the last layer's output put
            through the final norm is not the model's own last hidden state.
    """
    recorder = _LayerRecorder(find_model_parts(model).layers, intermediate_layers)
    trl_forward = model.forward

    # Keep the signature of the model's own forward: Trainer and `generate` read it
    @functools.wraps(type(model).forward)
    def cross_layer_forward(self, *args, target_mask=None, position_loss=None, labels=None, **kwargs):
        if position_loss is None or not kwargs.pop("fused_lm_head", False):
            if labels is not None:
                kwargs["labels"] = labels
            return trl_forward(*args, **kwargs)
        kwargs.pop("num_items_in_batch", None)
        kwargs["use_cache"] = False
        text_config = self.config.get_text_config()
        if getattr(text_config, "output_router_logits", False):
            kwargs.setdefault("output_router_logits", True)
        backbone, raw = recorder.run(self.base_model, *args, **kwargs)
        positions = _cut_positions(self, recorder, backbone.last_hidden_state, raw, target_mask, labels)
        output = _project(self, positions, position_loss, max_logits_mib)
        if kwargs.get("output_router_logits"):
            output.aux_loss = load_balancing_loss(text_config, backbone.router_logits, kwargs.get("attention_mask"))
        return output

    model.forward = types.MethodType(cross_layer_forward, model)


@dataclass
class _Positions:
    """
    What is projected to the vocabulary: M positions with a label, N of which are targets.

    Args:
        label_mask (`torch.Tensor` of shape `(B, S - 1)`):
            Where the labels are.
        labels (`torch.Tensor` of shape `(M,)`):
            Next tokens.
        hidden_states (`torch.Tensor` of shape `(M, H)`):
            Normed output of the last layer.
        is_target (`torch.Tensor` of shape `(M,)`):
            Which of them are targets.
        layers (`torch.Tensor` of shape `(K, N, H)`):
            Raw outputs of the intermediate layers at the targets.
    """

    label_mask: Tensor
    labels: Tensor
    hidden_states: Tensor
    is_target: Tensor
    layers: Tensor


# The number of targets differs from batch to batch, so compiled code would be compiled again and again
@torch.compiler.disable
def _cut_positions(model, recorder, last_hidden_state, raw, target_mask, labels) -> _Positions:
    parts = find_model_parts(model)
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
    layers = torch.stack([row[target_mask] for row in rows])  # (K, N, H)
    return _Positions(label_mask, labels[label_mask], hidden_states[label_mask], target_mask[label_mask], layers)


@torch.compiler.disable
def _project(model, positions: _Positions, position_loss, max_logits_mib: float) -> CrossLayerOutput:
    """Logits and what the loss makes of them, a block of positions at a time where they are too many."""

    def project(hidden_states, labels, is_target, layers, start):
        parts = find_model_parts(model)  # looked up on each call, since PEFT and FSDP replace modules
        logits = project_to_logits(model, hidden_states)  # (m, V)
        fields = _score_labels(logits, labels)
        logits = logits if layers.size(1) == len(logits) else logits[is_target]  # (n, V)
        layer_logits = project_to_logits(model, normalise(parts, layers))  # (K, n, V)
        return fields, *position_loss(logits, layer_logits, start)

    count = len(positions.labels)
    size = _block_size(model, len(positions.layers), max_logits_mib)
    if count <= size:
        whole = (positions.hidden_states, positions.labels, positions.is_target, positions.layers)
        blocks = [project(*whole, 0)]
    else:
        ends = positions.is_target.cumsum(0)[size - 1 :: size].tolist()
        blocks, start = [], 0
        for first, end in zip(range(0, count, size), [*ends, positions.layers.size(1)], strict=False):
            block = slice(first, first + size)
            arguments = (positions.hidden_states[block], positions.labels[block], positions.is_target[block])
            # Logits are not kept for the backward pass, which computes them again
            run = functools.partial(checkpoint, use_reentrant=False, preserve_rng_state=False)
            blocks.append(run(project, *arguments, positions.layers[:, start:end], start))
            start = end
    fields, terms, logged = zip(*blocks, strict=True)
    mask = positions.label_mask
    # `masked_scatter` keeps a batch without any label connected to the model, as every rank's backward needs
    scored = {name: torch.cat([block[name] for block in fields]) for name in fields[0]}  # (M,) each
    return CrossLayerOutput(
        **{name: value.new_zeros(mask.shape).masked_scatter(mask, value) for name, value in scored.items()},
        label_mask=mask,
        terms=torch.cat(terms),
        logged={name: torch.cat([block[name] for block in logged]) for name in logged[0]},
    )


def _block_size(model: PreTrainedModel, num_layers: int, max_logits_mib: float) -> int | float:
    """Positions whose float32 logits, of the last and of the intermediate layers, fill the budget."""
    row = 4 * model.config.get_text_config().vocab_size * (num_layers + 1) / 2**20  # MiB
    return max_logits_mib if max_logits_mib == math.inf else max(1, int(max_logits_mib / row))


def _score_labels(logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """The per-token fields of TRL's fused output, `(m,)` each."""
    log_probs = logits.log_softmax(-1)  # (m, V)
    with torch.no_grad():
        entropy = -(log_probs.exp() * log_probs).sum(-1)
        is_top1 = (logits.argmax(-1) == labels).to(logits.dtype)
    return {
        "log_probs": log_probs.gather(1, labels[:, None]).squeeze(1),
        "entropy": entropy,
        "is_top1": is_top1,
    }


def _check_final_norm(model: PreTrainedModel, parts: ModelParts, raw: Tensor, normed: Tensor) -> None:
    with torch.no_grad():
        expected, got = normed.float(), normalise(parts, raw).float()
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
