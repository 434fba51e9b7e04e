"""From prompts to ranked lists of items."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..items.item_trie import ItemId, ItemTrie
from .beam_search import constrained_beam_search
from .item_trie_logits_processor import ItemTrieLogitsProcessor
from .prompt_batches import Prompt, evaluation_mode, prompt_batches, tokenize_prompts
from .rank_items import rank_items


__all__ = ["ItemTrieLogitsProcessor", "constrained_beam_search", "rank_items", "recommend"]


def recommend(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    item_trie: ItemTrie,
    *,
    top_k: int = 10,
    num_beams: int = 20,
    exclude: Sequence[Sequence[ItemId]] | None = None,
    batch_size: int = 16,
) -> list[list[tuple[ItemId, float]]]:
    """
    Rank the items that a model finds most probable after each prompt.

    Prompts are tokenized as `SFTTrainer` tokenizes its `prompt` column. The search can only yield items of the
    catalogue, each at most once.

    Args:
        model (`PreTrainedModel`):
            Causal language model; dropout is off during the search.
        tokenizer (`PreTrainedTokenizerBase`):
            Its tokenizer, on whose padding side nothing depends.
        prompts (`list[str]` or `list[list[dict]]`):
            Prompts, or conversations.
        item_trie ([`ItemTrie`]):
            The catalogue, by `ItemCatalog.trie(tokenizer)`.
        top_k (`int`, *optional*, defaults to `10`):
            Items for each prompt.
        num_beams (`int`, *optional*, defaults to `20`):
            Beams of the search, at least `top_k`. More beams find the most probable items more surely.
        exclude (`list[list[str | int]]`, *optional*):
            Items not to recommend for each prompt, for instance a user's history.
        batch_size (`int`, *optional*, defaults to `16`):
            Prompts searched at once.

    Returns:
        `list[list[tuple[str | int, float]]]`: for each prompt `top_k` pairs of item id and log-probability (nats),
        best first; fewer only where `exclude` leaves fewer. Items that share a token sequence stand next to each other
        with one score, in catalogue order.

    Raises:
        ValueError: where `top_k` exceeds `num_beams` or the catalogue, a prompt has no tokens, `exclude` has another
            length than `prompts`, or holds an unknown item.

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
    if exclude is not None and len(exclude) != len(prompts):
        raise ValueError(f"Got {len(exclude)} lists of items to exclude for {len(prompts)} prompts: one for each.")
    encoded = tokenize_prompts(tokenizer, prompts)
    results: list[list[tuple[ItemId, float]]] = [[] for _ in encoded]
    with evaluation_mode(model):
        for rows, input_ids, attention_mask in prompt_batches(encoded, tokenizer.pad_token_id, batch_size):
            leaves, scores = constrained_beam_search(
                model,
                input_ids.to(model.device),
                attention_mask.to(model.device),
                item_trie,
                num_beams=num_beams,
                exclude=None if exclude is None else [exclude[row] for row in rows],
            )
            for row, row_leaves, row_scores in zip(rows, leaves.tolist(), scores.tolist(), strict=True):
                left_out = set() if exclude is None else set(exclude[row])
                results[row] = [
                    (item_id, score)
                    for leaf, score in zip(row_leaves, row_scores, strict=True)
                    if leaf >= 0
                    for item_id in item_trie.items_below(leaf)
                    if item_id not in left_out
                ][:top_k]
    return results
