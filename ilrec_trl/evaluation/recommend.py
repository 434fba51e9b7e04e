"""From prompts to ranked lists of items."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..data.prompt_tokens import Prompt, tokenize_prompts
from ..items.item_trie import ItemId, ItemTrie
from ..items.trie_arrays import ragged_ranges
from .beam_search import Normalise, check_search_options, constrained_beam_search
from .item_filter import ItemFilter, ItemSets
from .prompt_batches import evaluation_mode, prompt_batches, prompts_within, search_bytes


@torch.no_grad()
def recommend(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    item_trie: ItemTrie,
    *,
    top_k: int = 10,
    num_beams: int = 20,
    allow: ItemSets | None = None,
    exclude: ItemSets | None = None,
    normalise: Normalise = "vocabulary",
    batch_size: int | None = None,
    memory_budget_mib: float | None = None,
    chat_template_kwargs: dict[str, Any] | None = None,
) -> list[list[tuple[ItemId, float]]]:
    """
    Rank the items that a model finds most probable after each prompt. Only items of the catalogue are found, each at
    most once. Prompts are tokenized as `SFTTrainer` tokenizes its `prompt` column.

    Args:
        model (`PreTrainedModel`): Causal language model; dropout is off during the search.
        tokenizer (`PreTrainedTokenizerBase`): Its tokenizer. The padding side does not matter.
        prompts (`list[str]` or `list[list[dict]]`): Prompts, or conversations.
        item_trie ([`ItemTrie`]): The catalogue, by `ItemCatalog.trie(tokenizer)`.
        top_k (`int`, *optional*, defaults to `10`): Items for each prompt.
        num_beams (`int`, *optional*, defaults to `20`): Beams of the search, at least `top_k`. With more beams the
            search misses fewer of the most probable items.
        allow (`list[str | int]`, `list[list[str | int]]` or `torch.Tensor`, *optional*): The only items to recommend,
            for instance those in stock: one list for all prompts, or a list for each prompt. A mask of type bool over
            `ItemTrie.item_ids`, of shape `(I,)` or `(B, I)`, saves looking ids up.
        exclude (`list[str | int]`, `list[list[str | int]]` or `torch.Tensor`, *optional*): Items not to recommend, in
            the same forms; for instance each user's history.
        normalise (`"vocabulary"` or `"continuations"`, *optional*, defaults to `"vocabulary"`): Tokens over which
            probabilities sum to 1: all tokens of the model, as in training and in `generate`, or those that continue
            the prefix in some item of the catalogue, whatever `allow` and `exclude` are. With the latter,
            probabilities of all items sum to 1, and only the item tokens' rows of the head are computed.
        batch_size (`int`, *optional*): Most prompts to search at once. Defaults to 16, or to as many as fit
            `memory_budget_mib`.
        memory_budget_mib (`float`, *optional*): Memory in MiB for the search, besides model and trie. It sets the size
            of batches by the estimate of [`search_bytes`]; the number of beams stays.
        chat_template_kwargs (`dict`, *optional*): Arguments of the chat template of conversations, like the data set's
            column of this name in training; for instance `{"enable_thinking": False}`.

    Returns:
        `list[list[tuple[str | int, float]]]`: for each prompt `top_k` pairs of item id and log-probability (nats),
        best first; fewer only if `allow` and `exclude` leave fewer. Items that share a token
        sequence follow one another with one score, in catalogue order.

    Raises:
        ValueError: if `top_k` exceeds `num_beams` or the catalogue, a prompt has no tokens, lists are not one for each
            prompt or hold an unknown item, or not even one prompt fits the memory budget.

    Example:

    ```python
    item_trie = catalog.trie(tokenizer)
    for item_id, score in recommend(model, tokenizer, ["<a_1><b_7><a_3><b_2>"], item_trie, top_k=5)[0]:
        print(item_id, catalog.text(item_id), score)
    ```
    """
    if not 1 <= top_k <= len(item_trie):
        raise ValueError(f"Got top_k={top_k}, expected 1 to {len(item_trie)}, the number of items of the catalogue.")
    if num_beams < top_k:
        raise ValueError(
            f"Got num_beams={num_beams} for top_k={top_k}. Search with at least as many beams as results."
        )
    check_search_options(num_beams, normalise)
    encoded = tokenize_prompts(tokenizer, prompts, chat_template_kwargs)
    trie = item_trie.to(model.device)
    item_filter = ItemFilter(trie, len(encoded), allow, exclude)
    fitting = None
    if memory_budget_mib is not None:
        fitting = partial(_prompts_that_fit, memory_budget_mib, model, trie, num_beams)
        batch_size = len(encoded) or 1 if batch_size is None else batch_size
    results: list[list[tuple[ItemId, float]]] = [[] for _ in encoded]
    batches = prompt_batches(encoded, tokenizer.pad_token_id, 16 if batch_size is None else batch_size, fitting)
    with evaluation_mode(model):
        for rows, input_ids, attention_mask in batches:
            users = torch.tensor(rows, device=trie.device)
            masked = input_ids.to(trie.device), attention_mask.to(trie.device)
            leaves, scores = constrained_beam_search(
                model, *masked, trie, item_filter, users, num_beams=num_beams, normalise=normalise
            )
            listed = _items_of(trie, item_filter, users, leaves, scores)
            for row, pairs in zip(rows, listed, strict=True):
                results[row] = pairs[:top_k]
    return results


def _prompts_that_fit(
    budget_mib: float, model: PreTrainedModel, trie: ItemTrie, num_beams: int, prompt_length: int
) -> int:
    return prompts_within(budget_mib, search_bytes(model, trie, prompt_length, num_beams), prompt_length)


def _items_of(
    trie: ItemTrie, item_filter: ItemFilter, users: Tensor, leaves: Tensor, scores: Tensor
) -> list[list[tuple[ItemId, float]]]:
    """Pairs of item and score of each row of `leaves` `(B, W)`, best first."""
    arrays = trie.arrays
    known = leaves.clamp(min=0)
    counts = torch.where(leaves >= 0, arrays.num_items_below(known), 0)  # (B, W)
    places, item_indices = ragged_ranges(arrays.item_start[known].flatten().long(), counts.flatten())  # (N,)
    rows = places // leaves.shape[1]
    kept = item_filter.keeps(users[rows], item_indices)
    found = (x[kept].tolist() for x in (rows, item_indices, scores.flatten()[places]))
    results: list[list[tuple[ItemId, float]]] = [[] for _ in leaves]
    for row, item_index, score in zip(*found, strict=True):
        results[row].append((trie.item_ids[item_index], score))
    return results
