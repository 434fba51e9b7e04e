"""One forward pass that gives a loss the logits of the last and of the intermediate layers at the target positions."""

from __future__ import annotations

import functools
import math
import types
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from ..model.head_rows import HeadRows, project_to_logits, take_head_rows
from ..model.model_parts import ModelParts, find_model_parts, normalise
from ._trl import FUSED_HEAD, FusedCausalLMOutput, load_balancing_loss


@dataclass
class CrossLayerOutput(FusedCausalLMOutput):
    """
    What a model given [`add_cross_layer_forward`] returns when it is called with `position_loss`: the fields that
    TRL's fused head returns, and what `position_loss` returned for the N target positions.

    Args:
        terms (`torch.Tensor` of shape `(N,)`): Terms of the loss, in the order of the groups.
        logged (`dict[str, torch.Tensor]`): Values to log, `(N,)` each.
    """

    terms: Tensor | None = None
    logged: dict[str, Tensor] | None = None


@dataclass
class PositionGroup:
    """
    Positions that are projected to the vocabulary in the same way.

    Args:
        rows, positions (`torch.Tensor` of shape `(m,)`): Their rows of the batch, and their places among the `S - 1`
            positions whose next token is predicted. These count from the end, `-1` is the last: prompt-learning
            adapters put virtual tokens before the sequence.
        is_target (`bool`): Whether the loss needs the logits of the intermediate layers, too.
        tokens (`torch.Tensor` of shape `(R,)`, *optional*): Tokens whose logits it needs of these layers. By default
            all.
    """

    rows: Tensor
    positions: Tensor
    is_target: bool
    tokens: Tensor | None = None


class _LayerRecorder:
    """
    Keeps the raw outputs of the intermediate layers and of the last one during one forward pass. The hooks are never
    removed, since `torch.compile` does not see hooks that come and go. Outside a pass (generation, recomputation in
    the backward pass) they keep nothing.
    """

    def __init__(self, layers: nn.ModuleList, intermediate_layers: list[int]) -> None:
        self.indices = [*intermediate_layers, len(layers) - 1]
        self.checked = False  # whether the last layer's normed output was found to be the last hidden state
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
    groups=groups, position_loss=position_loss)` returns a [`CrossLayerOutput`]. Backbone, final norm, head and loss
    all run inside this forward, so that wrappers which shard or gather parameters (DDP, FSDP, DeepSpeed) see one pass.
    Other calls are unchanged.

    `groups`, a list of [`PositionGroup`], holds every position with a label once, the targets first. Only these are
    projected to the vocabulary, and the intermediate layers only at the targets.

    `position_loss(logits, log_normaliser, layer_logits, tokens, start)` gets float32 logits `(n, V)` of the last
    layer, their logsumexp `(n,)`, and logits `(K, n, R)` of the intermediate layers for the `tokens` of the group, or
    `(K, n, V)`, at the target positions `start` to `start + n - 1` in the order of the groups. It returns a term and
    values to log for each of them.

    Args:
        model ([`~transformers.PreTrainedModel`]): Causal language model, below any PEFT wrapper.
        intermediate_layers (`list[int]`): 0-based indices of the layers to read, see [`resolve_intermediate_layers`].
        max_logits_mib (`float`, *optional*, defaults to no limit): Budget in MiB for the logits of all layers, see
            [`ILRecConfig.max_logits_mib`].

    Raises:
        `ValueError`: if the model's parts are not found, or on the first call, if the normed output of the last layer
            is not the model's own last hidden state.
    """
    recorder = _LayerRecorder(find_model_parts(model).layers, intermediate_layers)
    trl_forward = model.forward

    # Keep the signature of the model's own forward: Trainer and `generate` read it
    @functools.wraps(type(model).forward)
    def cross_layer_forward(self, *args, groups=None, position_loss=None, labels=None, **kwargs):
        if position_loss is None or not kwargs.pop(FUSED_HEAD, False):
            if labels is not None:
                kwargs["labels"] = labels
            return trl_forward(*args, **kwargs)
        kwargs.pop("num_items_in_batch", None)
        kwargs["use_cache"] = False
        text_config = self.config.get_text_config()
        if getattr(text_config, "output_router_logits", False):
            kwargs.setdefault("output_router_logits", True)
        backbone, raw = recorder.run(self.base_model, *args, **kwargs)
        output = score_positions(
            self, recorder, backbone.last_hidden_state, raw, labels, groups, position_loss, max_logits_mib
        )
        if kwargs.get("output_router_logits"):
            output.aux_loss = load_balancing_loss(text_config, backbone.router_logits, kwargs.get("attention_mask"))
        return output

    model.forward = types.MethodType(cross_layer_forward, model)


# The number of targets changes with each batch, which would compile the code again and again
@torch.compiler.disable
def score_positions(
    model, recorder, last_hidden_state, raw, labels, groups, position_loss, max_logits_mib
) -> CrossLayerOutput:
    parts = find_model_parts(model)  # looked up on each call, since PEFT and FSDP replace modules
    device = parts.head.weight.device
    labels = labels[:, 1:].to(device)  # (B, S - 1)
    rows, positions = (
        torch.cat([getattr(group, name) for group in groups]).to(device) for name in ("rows", "positions")
    )
    places = (rows + 1) * labels.size(1) + positions  # (M,), in the flattened (B, S - 1)

    # Cut after the backbone, never in a hook: reentrant checkpointing detaches what a hook cuts
    def cut(output, count=None):
        flat = (places + rows)[:count].to(output.device)  # in the flattened (B, S)
        return output.flatten(0, 1).index_select(0, flat).to(device)

    hidden_states = cut(last_hidden_state)  # (M, H)
    if not recorder.checked and len(places):
        _check_final_norm(model, parts, cut(raw[-1]), hidden_states)
        recorder.checked = True
    num_targets = sum(len(group.rows) for group in groups if group.is_target)
    layers = torch.stack([cut(output, num_targets) for output in raw[:-1]])  # (K, N, H)
    scored, terms, logged = project_groups(
        model, parts, groups, hidden_states, labels.flatten()[places], layers, position_loss, max_logits_mib
    )
    nothing = labels.new_zeros(labels.numel(), dtype=terms.dtype)
    # This connects a batch without any label to the model, too, as the backward pass of every rank needs
    return CrossLayerOutput(
        **{name: nothing.index_copy(0, places, value).view_as(labels) for name, value in scored.items()},
        label_mask=labels != -100,
        terms=terms,
        logged=logged,
    )


def project_groups(
    model, parts, groups, hidden_states, labels, layers, position_loss, max_logits_mib
) -> tuple[dict[str, Tensor], Tensor, dict[str, Tensor]]:
    """
    Fields `(M,)` of [`CrossLayerOutput`], its terms, and its values to log; one block of positions at a time if all do
    not fit the budget. Normed `hidden_states` `(M, H)` of the last layer and `labels` `(M,)` are in the order of the
    groups; `layers` `(K, N, H)` are raw outputs of the intermediate layers at the targets.
    """
    bounds = [0, *accumulate(len(group.rows) for group in groups)]
    heads, no_targets = _layer_heads(parts.head, groups), layers.size(1) == 0

    def project(hidden_states, labels, layers, first):
        logits = project_to_logits(model, hidden_states)  # (m, V)
        log_normaliser = logits.logsumexp(-1)  # (m,)
        log_probs = logits.gather(1, labels[:, None]).squeeze(1) - log_normaliser
        cuts = [min(max(bound - first, 0), len(labels)) for bound in bounds]
        sizes = [end - start for start, end in pairwise(cuts)]
        pieces = zip(groups, heads, cuts, sizes, logits.split(sizes), log_normaliser.split(sizes), strict=False)
        losses = []
        for group, head, start, size, *given in pieces:
            # Without any target an empty piece still names the values to log, which every rank must have
            if group.is_target and (size or (no_targets and first == 0 and group is groups[0])):
                states = normalise(parts, layers[:, start : start + size])  # (K, n, H)
                layer_logits = project_to_logits(model, states, head)  # (K, n, V or R)
                tokens = None if group.tokens is None else group.tokens.to(logits.device)
                if tokens is not None and head is None:
                    layer_logits = layer_logits[..., tokens]
                losses.append(position_loss(*given, layer_logits, tokens, first + start))
        # Last, so that it is not computed again in the backward pass
        return {"log_probs": log_probs, **_describe(logits, log_normaliser, labels)}, losses

    vocab_size, budget = model.config.get_text_config().vocab_size, max_logits_mib * 2**20 / 4
    widths = [vocab_size if head is None else len(head.weight) for head in heads]
    # Floats of a position
    widths = [vocab_size + group.is_target * len(layers) * width for group, width in zip(groups, widths, strict=True)]
    if sum(len(group.rows) * width for group, width in zip(groups, widths, strict=True)) <= budget:
        blocks = [project(hidden_states, labels, layers, 0)]
    else:
        # Logits of a block are not kept for the backward pass, which computes them again
        run = functools.partial(checkpoint, project, use_reentrant=False, preserve_rng_state=False)
        step = max(1, int(budget / max(widths)))
        blocks = [
            run(states, wanted, layers[:, first : first + step], first)
            for first, states, wanted in zip(
                range(0, len(labels), step), hidden_states.split(step), labels.split(step), strict=True
            )
        ]
    fields, losses = zip(*blocks, strict=True)
    terms, logged = zip(*(loss for block in losses for loss in block), strict=True)
    return _join(fields), torch.cat(terms), _join(logged)


def _join(parts: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _layer_heads(head, groups) -> list[HeadRows | None]:
    """The head's rows of each group, taken in one step: the gradient of each step is as large as the head."""
    tokens = [group.tokens for group in groups if group.tokens is not None]
    rows = take_head_rows(head, torch.cat(tokens)) if tokens else None
    if rows is None:
        return [None] * len(groups)
    parts = iter(rows.split([len(part) for part in tokens]))
    return [None if group.tokens is None else next(parts) for group in groups]


@torch.no_grad()
def _describe(logits: Tensor, log_normaliser: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """The fields of TRL's fused output that it logs, `(m,)` each."""
    probabilities = (logits - log_normaliser[:, None]).exp_()  # (m, V)
    return {
        "entropy": log_normaliser - probabilities.mul_(logits).sum(-1),
        "is_top1": (logits.argmax(-1) == labels).to(logits.dtype),
    }


def _check_final_norm(model: PreTrainedModel, parts: ModelParts, raw: Tensor, normed: Tensor) -> None:
    with torch.no_grad():
        expected, got = normed.float(), normalise(parts, raw).float()
        tolerance = 1e-3 if normed.dtype in (torch.float32, torch.float64) else 3e-2
        absolute = tolerance * expected.abs().max().item() + 1e-6
        agrees = torch.isclose(got, expected, rtol=tolerance, atol=absolute).all(-1)  # (labels,)
        # Vision-language models may add visual features after a layer (Qwen3-VL), at the tokens of an image alone
        is_multimodal = model.config.get_text_config() is not model.config
        if not (agrees.any() if is_multimodal else agrees.all()):
            raise ValueError(
                f"ILRec cannot read the intermediate layers of `{type(model).__name__}`: its last decoder layer's "
                "output put through the final norm is not its last hidden state, so logits of intermediate layers "
                "would be wrong. Train this model with TRL's SFTTrainer, and please report the architecture."
            )
