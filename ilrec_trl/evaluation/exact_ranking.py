"""Exact scores of all items, and ranks of targets by scores or in lists of recommended items."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..data.prompt_tokens import Prompt, tokenize_prompts
from ..items.item_trie import ItemId, ItemTrie
from ..items.trie_arrays import TrieArrays, ragged_ranges
from .beam_search import Normalise, check_search_options, log_probabilities
from .prompt_batches import evaluation_mode, prompt_batches
from .prompt_decoder import PromptDecoder


Histories = Sequence[Sequence[ItemId]]


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
    Score every item of the catalogue after every prompt: the exact scores that beam search approximates.

    The trie is walked level by level in chunks of neighbouring items. A prompt is encoded once for all items, and a
    prefix that several items of a chunk share is one position of the model.

    Args:
        model (`PreTrainedModel`): Causal language model.
        tokenizer (`PreTrainedTokenizerBase`): Its tokenizer.
        prompts (`list[str]` or `list[list[dict]]`): Prompts, or conversations.
        item_trie ([`ItemTrie`]): The catalogue. Time grows with prompts times nodes of the trie.
        normalise (`"vocabulary"` or `"continuations"`, *optional*, defaults to `"vocabulary"`): As in [`recommend`].
        batch_size (`int`, *optional*, defaults to `8`): Prompts in a batch.
        chunk_size (`int`, *optional*, defaults to `128`): Token sequences of each prompt in a forward pass. Memory is
            needed for the logits, keys and values of `batch_size * chunk_size` prefixes.
        chat_template_kwargs (`dict`, *optional*): As in [`recommend`].

    Returns:
        `torch.Tensor` of shape `(B, I)`: sums of token log-probabilities in nats, float32, on the CPU, in the order of
        `ItemTrie.item_ids`.
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
    """Item indices that cut the catalogue into parts of `chunk_size` distinct sequences."""
    leaves = arrays.item_leaf.unique_consecutive().long()
    return [*arrays.item_start[leaves[::chunk_size]].tolist(), arrays.num_items]


def _score_range(arrays: TrieArrays, decoder: PromptDecoder, first: int, last: int, normalise: Normalise) -> Tensor:
    """Scores `(B, last - first)` of the items with these indices in the trie."""
    batch = len(decoder.logits)
    nodes = torch.zeros(1, dtype=torch.long, device=decoder.logits.device)  # (W,): the root
    scores = decoder.logits.new_zeros(batch, 1, dtype=torch.float32)  # (B, W)
    result = scores.new_empty(batch, last - first)
    for level in range(arrays.depth):
        tokens, children, real = (x.expand(batch, -1, -1) for x in arrays.padded_children(nodes, level))  # (B, W, C)
        shares = log_probabilities(decoder.logits, decoder.token_indices(tokens), real, normalise)
        # Nodes with items of this range below them; the others belong to neighbouring chunks
        inside = real[0] & (arrays.item_end[children[0]] > first) & (arrays.item_start[children[0]] < last)
        parents, places = inside.nonzero(as_tuple=True)  # (E,)
        scores = scores[:, parents] + shares[:, parents, places]  # (B, E)
        nodes, tokens = children[0, parents, places], tokens[0, parents, places]
        ends = arrays.is_leaf(nodes)
        starts = arrays.item_start[nodes[ends]].long()
        leaves, item_indices = ragged_ranges(starts, arrays.num_items_below(nodes[ends]))
        result[:, item_indices - first] = scores[:, ends][:, leaves]
        nodes, tokens, parents, scores = nodes[~ends], tokens[~ends], parents[~ends], scores[:, ~ends]
        if not len(nodes):
            break
        decoder.step(tokens.expand(batch, -1), parents.expand(batch, -1))
    return result


def ranks_in_lists(
    lists: Sequence[Sequence[tuple[ItemId, float]]],
    targets: Sequence[ItemId],
    item_trie: ItemTrie,
    excluded: Histories | None = None,
    allowed: Sequence[ItemId] | None = None,
) -> list[tuple[float, int]]:
    """
    First rank, from 1, and number of ties of each target in its ranked list, as [`recommend`] gives it; rank `inf` if
    the list does not hold the target. Items that were `excluded`, or not `allowed`, share no rank.
    """
    ranks: list[tuple[float, int]] = []
    for ranked, place in zip(lists, _places(targets, item_trie, excluded, allowed), strict=True):
        start = next((rank for rank, (item, _) in enumerate(ranked, 1) if item in place), math.inf)
        ranks.append((start, max(1, len(place))))
    return ranks


def ranks_by_scores(
    scores: Tensor,
    targets: Sequence[ItemId],
    item_trie: ItemTrie,
    excluded: Histories | None = None,
    allowed: Sequence[ItemId] | None = None,
) -> list[tuple[float, int]]:
    """
    As [`ranks_in_lists`], but from the scores `(B, I)` of all items, as [`rank_items`] gives them. Different sequences
    of equal score rank in the order of the trie, as in [`recommend`].
    """
    scores = scores.clone()
    leaves = item_trie.arrays.item_leaf.to(scores.device)  # (I,)
    item_indices = item_trie.index_of(targets).to(scores.device)  # (B,)
    own, own_leaves = scores.gather(1, item_indices[:, None]), leaves[item_indices][:, None]  # (B, 1), (B, 1)
    if allowed is not None:
        left_out = torch.ones(scores.shape[1], dtype=torch.bool, device=scores.device)  # (I,)
        left_out[item_trie.index_of(allowed).to(scores.device)] = False
        scores[:, left_out] = -torch.inf
    for row, items in enumerate(excluded or []):
        scores[row, item_trie.index_of(items).to(scores.device)] = -torch.inf
    ahead = ((scores > own) | ((scores == own) & (leaves < own_leaves))).sum(dim=1).tolist()  # (B,)
    places = _places(targets, item_trie, excluded, allowed)
    return [(1 + count, len(place)) if place else (math.inf, 1) for count, place in zip(ahead, places, strict=True)]


def ranks_of_scores(scores: Tensor, targets: Tensor) -> list[tuple[float, int]]:
    """First rank and number of ties of each target `(B,)` by the scores `(B, I)`; rank `inf` at score `-inf`."""
    own = scores.gather(1, targets.to(scores.device)[:, None])  # (B, 1)
    ahead, level = (scores > own).sum(1).tolist(), (scores == own).sum(1).tolist()
    lost = (own[:, 0] == -torch.inf).tolist()
    return [(math.inf, 1) if no else (1 + a, n) for a, n, no in zip(ahead, level, lost, strict=True)]


def _places(
    targets: Sequence[ItemId], item_trie: ItemTrie, excluded: Histories | None, allowed: Sequence[ItemId] | None
) -> list[set[ItemId]]:
    """The items that share each target's rank, itself among them; none if it was excluded or not allowed."""
    places = []
    known = None if allowed is None else set(allowed)
    for row, (target, leaf) in enumerate(zip(targets, item_trie.leaf_of(targets).tolist(), strict=True)):
        left = set(item_trie.items_below(leaf)) - set(excluded[row] if excluded is not None else ())
        left = left if known is None else left & known
        places.append(left if target in left else set())
    return places
