"""The part of beam search that runs the model: one pass over the prompts, then several continuations of each."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..model.head_rows import ItemTokenHead
from .prompt_batches import shares_prompt


class PromptDecoder:
    """
    Encode left-padded prompts once and decode several continuations of each, token by token.

    If the model's attention takes a mask of any shape (`sdpa` and `eager`, all layers with full attention), the
    continuations of a prompt are further positions of the prompt's own row. A mask shows each of them only the prompt
    and its own tokens, so the prompt's keys and values are neither copied for the beams nor moved when beams are
    reordered. Otherwise the cache is repeated for the beams, as `generate` does.

    Args:
        model (`PreTrainedModel`): Causal language model, or a PEFT model of one.
        input_ids (`torch.Tensor` of shape `(B, S)`): Prompts, padded on the left.
        attention_mask (`torch.Tensor` of shape `(B, S)`): 1 on the prompts' tokens, 0 on padding.
        tokens (`torch.Tensor` of shape `(T,)`, *optional*): Tokens whose logits are needed, ascending. By default all.
            Where they are less than half of the vocabulary and the head is a plain linear layer, only their rows of it
            are multiplied, and `V` is `T` in what follows.

    Attributes:
        logits (`torch.Tensor` of shape `(B, W, V)`): Logits of the next token after each of the `W` latest
            continuations; `W` is 1 at first.
        vocab_size (`int`): Entries of the model's own vocabulary.
    """

    def __init__(
        self, model: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor, tokens: Tensor | None = None
    ) -> None:
        _check_left_padding(input_ids, attention_mask)
        self._model: Any = model
        base = getattr(model, "get_base_model", lambda: model)()
        self._head = None if tokens is None else ItemTokenHead.of(model, base, tokens)
        self._parameters = inspect.signature(base.forward).parameters
        # Since transformers 5.24 models call their cache `cache`.
        self._cache_name = "cache" if "cache" in self._parameters else "past_key_values"
        self._prompt_mask = attention_mask.bool()  # (B, S)
        self._lengths = attention_mask.sum(dim=1)  # (B,)
        self._steps = 0
        self._cache: Any = None
        positions = (attention_mask.cumsum(dim=1) - 1).clamp(min=0)  # (B, S)
        self.logits: Tensor = self._call(input_ids, attention_mask, positions, last_only=True)  # (B, 1, V)
        self.vocab_size: int = self.logits.shape[-1] if self._head is None else self._head.vocab_size
        self._attention = base.config.get_text_config()._attn_implementation
        self._shares_rows = "position_ids" in self._parameters and shares_prompt(base)
        # Which positions behind the prompt each continuation sees: those of its own tokens
        self._own = attention_mask.new_zeros(len(input_ids), 1, 0, dtype=torch.bool)  # (B, W, C)

    def fork(self) -> PromptDecoder:
        """An independent decoder in the same state; before the first step it shares the prompts' cache."""
        other = copy.copy(self)
        if self._shares_rows and not self._steps:
            # A pass replaces the tensors of a layer, and does not change them
            other._cache = copy.copy(self._cache)
            other._cache.layers = [copy.copy(layer) for layer in self._cache.layers]
        else:
            other._cache = copy.deepcopy(self._cache)
        return other

    def step(self, tokens: Tensor, parents: Tensor) -> Tensor:
        """
        Decode one token further.

        Args:
            tokens (`torch.Tensor` of shape `(B, W)`): Next token of each continuation.
            parents (`torch.Tensor` of shape `(B, W)`): The continuation before this step that each one extends.

        Returns:
            `torch.Tensor` of shape `(B, W, V)`: logits of the token after it.
        """
        self.logits = self._step_in_row(tokens, parents) if self._shares_rows else self._step_apart(tokens, parents)
        self._steps += 1
        return self.logits

    def _step_in_row(self, tokens: Tensor, parents: Tensor) -> Tensor:
        batch, width = tokens.shape
        own = self._own.gather(1, parents[:, :, None].expand(-1, -1, self._own.shape[2]))  # (B, W, C)
        own = self._drop_unseen(own, keep=width)
        itself = torch.eye(width, dtype=torch.bool, device=tokens.device).expand(batch, -1, -1)  # (B, W, W)
        self._own = torch.cat([own, itself], dim=2)  # (B, W, C + W)
        prompt = self._prompt_mask[:, None].expand(-1, width, -1)  # (B, W, S)
        mask = torch.cat([prompt, self._own], dim=2)[:, None]  # (B, 1, W, S + C + W)
        if self._attention == "eager":
            dtype = self.logits.dtype
            mask = torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, torch.finfo(dtype).min)
        positions = (self._lengths[:, None] + self._steps).expand(-1, width)  # (B, W)
        return self._call(tokens, mask, positions)

    def _step_apart(self, tokens: Tensor, parents: Tensor) -> Tensor:
        batch, width = tokens.shape
        rows = torch.arange(batch, device=tokens.device)[:, None]
        self._cache.reorder_cache((rows * self.logits.shape[1] + parents).flatten())
        mask = self._prompt_mask.repeat_interleave(width, dim=0).long()  # (B * W, S)
        mask = torch.nn.functional.pad(mask, (0, self._steps + 1), value=1)  # (B * W, S + steps)
        positions = (self._lengths + self._steps).repeat_interleave(width)[:, None]  # (B * W, 1)
        return self._call(tokens.reshape(-1, 1), mask, positions).view(batch, width, -1)

    def _drop_unseen(self, own: Tensor, keep: int) -> Tensor:
        """Forget positions that no continuation sees any longer, once they outnumber what a step adds."""
        seen = own.any(dim=1)  # (B, C)
        most = int(seen.sum(dim=1).max()) if seen.shape[1] else 0
        if seen.shape[1] - most <= keep:
            return own
        positions = seen.int().argsort(dim=1, descending=True, stable=True)[:, :most]  # (B, most)
        start = self._prompt_mask.shape[1]
        for layer in self._cache.layers:
            for name in ("keys", "values"):
                states = getattr(layer, name)  # (B, heads, S + C, head size)
                where = positions[:, None, :, None].expand(-1, states.shape[1], -1, states.shape[3])
                setattr(layer, name, torch.cat([states[:, :, :start], states[:, :, start:].gather(2, where)], dim=2))
        return own.gather(2, positions[:, None].expand(-1, own.shape[1], -1))

    def token_indices(self, tokens: Tensor) -> Tensor:
        """Place of each token in the last dimension of `logits`, in the shape of `tokens`; 0 for -1."""
        return tokens.clamp(min=0) if self._head is None else self._head.index_of_token[tokens.clamp(min=0)]

    def _call(self, input_ids: Tensor, attention_mask: Tensor, positions: Tensor, last_only: bool = False) -> Tensor:
        arguments = {"input_ids": input_ids, "attention_mask": attention_mask, "use_cache": True}
        if "position_ids" in self._parameters:
            arguments["position_ids"] = positions
        if self._cache is not None:
            arguments[self._cache_name] = self._cache
        if self._head is not None:
            outputs = self._head.backbone(**arguments)
            self._cache = outputs[self._cache_name]
            return self._head(outputs.last_hidden_state[:, -1:] if last_only else outputs.last_hidden_state)
        if last_only and "logits_to_keep" in self._parameters:
            arguments["logits_to_keep"] = 1
        outputs = self._model(**arguments)
        self._cache = outputs[self._cache_name]
        return outputs.logits[:, -1:] if last_only else outputs.logits


def _check_left_padding(input_ids: Tensor, attention_mask: Tensor) -> None:
    if attention_mask.shape != input_ids.shape:
        raise ValueError(
            f"Got input_ids of shape {tuple(input_ids.shape)} and attention_mask of shape "
            f"{tuple(attention_mask.shape)}, expected the same."
        )
    if (attention_mask[:, 1:] < attention_mask[:, :-1]).any() or not attention_mask[:, -1].all():
        raise ValueError(
            "Prompts must be padded on the left and hold at least one token each: attention_mask must end with 1 in "
            "every row. Set `tokenizer.padding_side = 'left'`."
        )
