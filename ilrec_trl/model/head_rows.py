"""Some rows of a language model's head, in place of the whole head."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from .model_parts import project_to_logits


# Whether backbone and head by themselves give what the model's own forward does, asked once of each model.
_AGREES: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


class ItemTokenHead:
    """
    Backbone and head of a model, the latter cut to some rows.

    Args:
        base (`PreTrainedModel`):
            Causal language model, below any PEFT wrapper.
        tokens (`torch.Tensor` of shape `(T,)`):
            Rows of the head, ascending.

    Attributes:
        columns (`torch.Tensor` of shape `(V,)`):
            Which of the rows each token has; 0 for tokens that have none.
    """

    def __init__(self, base: Any, tokens: Tensor) -> None:
        head = base.get_output_embeddings()
        self.vocab_size = len(head.weight)
        self.backbone = base.base_model
        self._base = base
        self._rows = nn.Linear(1, 1, bias=head.bias is not None, device="meta").requires_grad_(False)
        self._rows.weight = nn.Parameter(head.weight[tokens], requires_grad=False)
        if head.bias is not None:
            self._rows.bias = nn.Parameter(head.bias[tokens], requires_grad=False)
        self.columns = torch.zeros(self.vocab_size, dtype=torch.long, device=tokens.device)
        self.columns[tokens] = torch.arange(len(tokens), device=tokens.device)

    @classmethod
    def of(cls, model: Any, base: Any, tokens: Tensor) -> ItemTokenHead | None:
        """The head for some tokens; `None` where it would save little or the model's own forward does more."""
        head: Any = getattr(base, "get_output_embeddings", lambda: None)()
        plain = type(head) is nn.Linear and head.weight.is_floating_point() and not hasattr(head, "_hf_hook")
        if not plain or 2 * len(tokens) > len(head.weight) or int(tokens[-1]) >= len(head.weight):
            return None
        found = cls(base, tokens)
        if model not in _AGREES:
            _AGREES[model] = found._agrees_with(model, tokens)
        return found if _AGREES[model] else None

    def __call__(self, hidden_states: Tensor) -> Tensor:
        """Logits `(..., T)` of hidden states `(..., H)`."""
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
