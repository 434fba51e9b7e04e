"""Hidden states to logits: with the whole language-model head, or with some of its rows."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel


# Whether backbone and head by themselves give the logits of the model's own forward, asked once of each model
_AGREES: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


class HeadRows:
    """
    Some rows of a language-model head, called in place of it.

    Args:
        weight (`torch.Tensor` of shape `(R, H)`), bias (`torch.Tensor` of shape `(R,)`, *optional*).
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight, self.bias = weight, bias

    def __call__(self, hidden_states: Tensor) -> Tensor:
        return nn.functional.linear(hidden_states, self.weight, self.bias)

    def split(self, sizes: list[int]) -> list[HeadRows]:
        """One head of each of `sizes` rows."""
        biases = [None] * len(sizes) if self.bias is None else self.bias.split(sizes)
        return [HeadRows(*parts) for parts in zip(self.weight.split(sizes), biases, strict=True)]


def take_head_rows(head: Any, tokens: Tensor) -> HeadRows | None:
    """
    The rows of `head` for `tokens` `(R,)`; `None` where they do not replace the head: an adapter wraps it, its weights
    are quantised or sharded, or it has hooks.
    """
    if type(head) is not nn.Linear:
        return None
    weight: Any = head.weight
    is_plain = (
        type(weight) in (Tensor, nn.Parameter)
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
    Logits of normed hidden states, with the model's own logit scale and soft-capping.

    Args:
        hidden_states (`torch.Tensor` of shape `(..., H)`).
        head (`torch.nn.Module` or `HeadRows`, *optional*): Takes the place of the model's own head.

    Returns:
        `torch.Tensor` of shape `(..., V)`, float32 (float64 for a float64 model).
    """
    config = model.config.get_text_config()
    applied: Any = model.get_output_embeddings() if head is None else head
    if not torch.is_autocast_enabled(hidden_states.device.type):
        # Trainable parameters of a quantised model are cast to bfloat16, which its hidden states need not be
        hidden_states = hidden_states.to(applied.weight.dtype)
    logits = applied(hidden_states)  # (..., V)
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


class ItemTokenHead:
    """
    The rows of a model's head for the tokens of items, for decoding.

    Args:
        base (`PreTrainedModel`): Causal language model, below any PEFT wrapper.
        tokens (`torch.Tensor` of shape `(R,)`): The tokens, ascending.
        rows ([`HeadRows`]): Their rows of the head.

    Attributes:
        backbone (`PreTrainedModel`): The model without its head.
        vocab_size (`int`): Rows of the whole head.
        index_of_token (`torch.Tensor` of shape `(V,)`): Place of each token among `tokens`; 0 for all others.
    """

    def __init__(self, base: Any, tokens: Tensor, rows: HeadRows) -> None:
        self.backbone = base.base_model
        self.vocab_size = len(base.get_output_embeddings().weight)
        self.index_of_token = torch.zeros(self.vocab_size, dtype=torch.long, device=tokens.device)
        self.index_of_token[tokens] = torch.arange(len(tokens), device=tokens.device)
        self._base, self._rows = base, rows

    @classmethod
    def of(cls, model: Any, base: Any, tokens: Tensor) -> ItemTokenHead | None:
        """The head for some tokens; `None` where it would save little, or where the model's own forward does more."""
        head: Any = getattr(base, "get_output_embeddings", lambda: None)()
        if type(head) is not nn.Linear or not 2 * len(tokens) <= len(head.weight) > int(tokens[-1]):
            return None
        rows = take_head_rows(head, tokens)
        if rows is None:
            return None
        found = cls(base, tokens, rows)
        if model not in _AGREES:
            _AGREES[model] = found._agrees_with(model, tokens)
        return found if _AGREES[model] else None

    def __call__(self, hidden_states: Tensor) -> Tensor:
        """Logits `(..., R)` of hidden states `(..., H)`."""
        return project_to_logits(self._base, hidden_states, self._rows)

    def _agrees_with(self, model: Any, tokens: Tensor) -> bool:
        input_ids = tokens[None, :4].to(model.device)  # any tokens will do
        try:
            hidden_states = self.backbone(input_ids=input_ids, use_cache=False).last_hidden_state
        except (AttributeError, TypeError, ValueError):
            return False
        expected = model(input_ids=input_ids, use_cache=False).logits[..., tokens].float()
        tolerance = 1e-3 if hidden_states.dtype in (torch.float32, torch.float64) else 3e-2
        got = self(hidden_states)
        return got.shape == expected.shape and torch.allclose(
            got, expected, rtol=tolerance, atol=tolerance * expected.abs().max().item(), equal_nan=True
        )
