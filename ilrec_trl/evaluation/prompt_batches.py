"""Prompts in left-padded batches that fit a memory budget."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache, DynamicLayer

from ..items.item_trie import ItemTrie


def prompt_batches(
    encoded: Sequence[Sequence[int]],
    pad_token_id: int | None,
    batch_size: int,
    fitting: Callable[[int], int] | None = None,
) -> Iterator[tuple[list[int], Tensor, Tensor]]:
    """
    Batches of prompts of similar length, longest first, so that little is padding and memory runs out early or never.

    Args:
        encoded (`list[list[int]]`):
            Token ids of each prompt.
        pad_token_id (`int` or `None`):
            Token to pad with.
        batch_size (`int`):
            Most prompts of a batch.
        fitting (`Callable[[int], int]`, *optional*):
            Most prompts of so many tokens.

    Yields:
        `tuple[list[int], torch.Tensor, torch.Tensor]`: rows of `encoded`, input ids and attention mask, both
        `(B, S)` and padded on the left.
    """
    if batch_size < 1:
        raise ValueError(f"Got batch_size={batch_size}, expected at least 1.")
    order = sorted(range(len(encoded)), key=lambda row: -len(encoded[row]))
    start = 0
    while start < len(order):
        width = len(encoded[order[start]])
        rows = order[start : start + (batch_size if fitting is None else min(batch_size, fitting(width)))]
        start += len(rows)
        # What padding holds is never seen: without a padding token any will do.
        input_ids = torch.full((len(rows), width), pad_token_id or 0)  # (B, S)
        attention_mask = torch.zeros_like(input_ids)  # (B, S)
        for place, row in enumerate(rows):
            input_ids[place, width - len(encoded[row]) :] = torch.tensor(encoded[row])
            attention_mask[place, width - len(encoded[row]) :] = 1
        yield rows, input_ids, attention_mask


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Switch dropout off, and give every module its own mode back afterwards."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


MIB = 2**20


def search_bytes(model: PreTrainedModel, item_trie: ItemTrie, prompt_length: int, num_beams: int) -> int:
    """
    Upper estimate of the memory that beam search takes for one prompt, beside the model and the trie.

    With `e` bytes a value, `S` prompt tokens, `W` beams, items of `D` tokens, and a model of `L` layers, `G` key-value
    heads of size `d`, `A` attention heads, hidden size `H`, intermediate size `F` and `V` tokens:

        cache       2 L G d e (S + W D), or 4 L G d e W (S + D) where the beams cannot share the prompt's
        layer       e n (8 H + 4 F) + 8 A n c, for n new tokens that see c: S that see S, then W that see S + W D
        logits      W V (2 e + 4): of this step and of the one before, and log-probabilities
        candidates  56 W C, for the most continuations C that an item's prefix has
        bytes       cache + the larger of: layer of the prompt; layer of the beams + logits + candidates

    Args:
        model (`PreTrainedModel`):
            Causal language model.
        item_trie ([`ItemTrie`]):
            The catalogue.
        prompt_length (`int`):
            Tokens of the prompt, its padding included.
        num_beams (`int`):
            Beams.
    """
    base: Any = getattr(model, "get_base_model", lambda: model)()
    config = base.config.get_text_config()
    value = torch.empty(0, dtype=base.dtype).element_size()
    heads = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    key_value = 2 * config.num_hidden_layers * (getattr(config, "num_key_value_heads", None) or heads) * head_dim
    inner = getattr(config, "intermediate_size", None) or getattr(config, "ffn_dim", None) or 4 * config.hidden_size
    width = value * (8 * config.hidden_size + 4 * inner)
    most = max(item_trie.arrays.max_children)
    behind = num_beams * item_trie.depth
    cache = key_value * value * (prompt_length + behind)
    if not shares_prompt(base):
        cache = 2 * key_value * value * num_beams * (prompt_length + item_trie.depth)
    prompt = prompt_length * width + 8 * heads * prompt_length**2
    beams = num_beams * width + 8 * heads * num_beams * (prompt_length + behind)
    logits = num_beams * config.vocab_size * (2 * value + 4)
    return cache + max(prompt, beams + logits + 56 * num_beams * most)


def shares_prompt(base: Any) -> bool:
    """
    Whether beams can be further positions of the prompt's row: attention that takes a mask of any shape (`sdpa`,
    `eager`) in all layers, positions that are given, and no bias by distance.
    """
    text_config = base.config.get_text_config()
    layers = DynamicCache(config=text_config).layers
    return (
        text_config._attn_implementation in ("sdpa", "eager")
        and not getattr(base.config, "alibi", False)
        and all(type(layer) is DynamicLayer for layer in layers)
    )


def prompts_within(budget_mib: float, bytes_each: int, prompt_length: int) -> int:
    """Prompts of `bytes_each` that fit; `ValueError` where not even one does."""
    fitting = int(budget_mib * MIB // bytes_each)
    if fitting < 1:
        raise ValueError(
            f"One prompt of {prompt_length} tokens needs about {bytes_each / MIB:.3g} MiB, more than "
            f"memory_budget_mib={budget_mib}. Raise the budget, shorten the prompt or ask for fewer beams."
        )
    return fitting
