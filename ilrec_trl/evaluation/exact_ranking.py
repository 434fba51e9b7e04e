"""The score of every item of the catalogue after a prompt, by walking the trie level by level."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..items.item_trie import ItemTrie
from ..items.trie_arrays import TrieArrays, ragged_ranges
from .beam_search import Normalise, check_search_options, log_probabilities
from .prompt_batches import Prompt, evaluation_mode, prompt_batches, tokenize_prompts
from .prompt_decoder import PromptDecoder


@torch.no_grad()
def rank_items(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    item_trie: ItemTrie,
    *,
    normalise: Normalise = "vocabulary",
    batch_size: int = 8,
    chunk_size: int = 128,
    chat_template_kwargs: dict[str, Any] | None = None,
) -> Tensor:
    """
    Score every item of the catalogue after every prompt, without any search: what beam search approximates.

    The trie is walked level by level in chunks of neighbouring items. A prompt is encoded once for all of them, and a
    prefix that several items of a chunk share is one position of the model.

    Args:
        model (`PreTrainedModel`):
            Causal language model.
        tokenizer (`PreTrainedTokenizerBase`):
            Its tokenizer.
        prompts (`list[str]` or `list[list[dict]]`):
            Prompts, or conversations.
        item_trie ([`ItemTrie`]):
            The catalogue. Time grows with prompts times nodes of the trie.
        normalise (`"vocabulary"` or `"continuations"`, *optional*, defaults to `"vocabulary"`):
            As in [`recommend`].
        batch_size (`int`, *optional*, defaults to `8`):
            Prompts at once.
        chunk_size (`int`, *optional*, defaults to `128`):
            Token sequences at once for each prompt. Logits of `batch_size * chunk_size` prefixes, and their keys and
            values, are the memory it takes.
        chat_template_kwargs (`dict`, *optional*):
            As in [`recommend`].

    Returns:
        `torch.Tensor` of shape `(B, I)`: sums of token log-probabilities in nats, float32, on the CPU; columns in the
        order of `ItemTrie.item_ids`.
    """
    check_search_options(chunk_size, normalise, name="chunk_size")
    encoded = tokenize_prompts(tokenizer, prompts, chat_template_kwargs)
    trie = item_trie.to(model.device)
    bounds = _chunk_bounds(trie.arrays, chunk_size)
    scores = torch.empty(len(encoded), len(trie))  # (B, I)
    with evaluation_mode(model):
        for rows, *inputs in prompt_batches(encoded, tokenizer.pad_token_id, batch_size):
            input_ids, attention_mask = (tensor.to(model.device) for tensor in inputs)
            tokens = trie.arrays.tokens if normalise == "continuations" else None
            decoder = PromptDecoder(model, input_ids, attention_mask, tokens)
            trie.check_vocab_size(decoder.vocab_size)
            for first, last in zip(bounds[:-1], bounds[1:], strict=True):
                chunk = _score_range(trie.arrays, decoder.fork(), first, last, normalise)
                scores[rows, first:last] = chunk.cpu()
    if scores.isnan().any():
        raise ValueError("The model's logits are not numbers (NaN), so items cannot be ranked. Has training diverged?")
    return scores


def _chunk_bounds(arrays: TrieArrays, chunk_size: int) -> list[int]:
    """Columns at which to cut the catalogue so that each part has `chunk_size` distinct sequences."""
    leaves = arrays.item_leaf.unique_consecutive().long()
    return [*arrays.item_start[leaves[::chunk_size]].tolist(), arrays.num_items]


def _score_range(arrays: TrieArrays, decoder: PromptDecoder, first: int, last: int, normalise: Normalise) -> Tensor:
    """Scores `(B, last - first)` of the items in those columns of the trie."""
    batch = len(decoder.logits)
    nodes = torch.zeros(1, dtype=torch.long, device=decoder.logits.device)  # (W,): the root
    scores = decoder.logits.new_zeros(batch, 1, dtype=torch.float32)  # (B, W)
    result = scores.new_empty(batch, last - first)
    for level in range(arrays.depth):
        tokens, children, real = (x.expand(batch, -1, -1) for x in arrays.padded_children(nodes, level))  # (B, W, C)
        shares = log_probabilities(decoder.logits, decoder.columns(tokens), real, normalise)
        # Those that reach into this range of items; the others belong to neighbouring chunks.
        inside = real[0] & (arrays.item_end[children[0]] > first) & (arrays.item_start[children[0]] < last)
        parents, places = inside.nonzero(as_tuple=True)  # (E,)
        scores = scores[:, parents] + shares[:, parents, places]  # (B, E)
        nodes, tokens = children[0, parents, places], tokens[0, parents, places]
        ends = arrays.is_leaf(nodes)
        starts = arrays.item_start[nodes[ends]].long()
        leaves, columns = ragged_ranges(starts, arrays.num_items_below(nodes[ends]))
        result[:, columns - first] = scores[:, ends][:, leaves]
        nodes, tokens, parents, scores = nodes[~ends], tokens[~ends], parents[~ends], scores[:, ~ends]
        if not len(nodes):
            break
        decoder.step(tokens.expand(batch, -1), parents.expand(batch, -1))
    return result
