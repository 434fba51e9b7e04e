"""From prompts to ranked lists of items."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, PreTrainedModel, PreTrainedTokenizerBase

from ..items.item_trie import ItemId, ItemTrie
from .beam_search import constrained_beam_search
from .prompt_batches import Prompt, evaluation_mode, prompt_batches, tokenize_prompts
from .prompt_decoder import cache_name


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
    chat_template_kwargs: dict[str, Any] | None = None,
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
        chat_template_kwargs (`dict`, *optional*):
            Given to the chat template of conversations, as the data set's column of this name is in training; for
            instance `{"enable_thinking": False}`.

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
    encoded = tokenize_prompts(tokenizer, prompts, chat_template_kwargs)
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


@torch.no_grad()
def rank_items(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    item_trie: ItemTrie,
    *,
    batch_size: int = 512,
    chat_template_kwargs: dict[str, Any] | None = None,
) -> Tensor:
    """
    Score every item of the catalogue after every prompt, without any search.

    Args:
        model (`PreTrainedModel`):
            Causal language model.
        tokenizer (`PreTrainedTokenizerBase`):
            Its tokenizer.
        prompts (`list[str]` or `list[list[dict]]`):
            Prompts, or conversations.
        item_trie ([`ItemTrie`]):
            The catalogue. Time grows with prompts times distinct token sequences.
        batch_size (`int`, *optional*, defaults to `512`):
            Token sequences scored in one pass.
        chat_template_kwargs (`dict`, *optional*):
            As in [`recommend`].

    Returns:
        `torch.Tensor` of shape `(B, I)`: sums of token log-probabilities in nats, float32, on the CPU; columns in the
        order of `ItemTrie.item_ids`.
    """
    leaves = item_trie.arrays.item_leaf.unique_consecutive().tolist()
    sequences = [item_trie.arrays.path(leaf) for leaf in leaves]
    column_of_leaf = {leaf: column for column, leaf in enumerate(leaves)}
    columns = torch.tensor([column_of_leaf[leaf] for leaf in item_trie.arrays.item_leaf.tolist()])  # (I,)
    scores = []
    with evaluation_mode(model):
        for prompt in tokenize_prompts(tokenizer, prompts, chat_template_kwargs):
            input_ids = torch.tensor([prompt], device=model.device)  # (1, S)
            outputs = model(input_ids=input_ids, use_cache=True)
            item_trie.check_vocab_size(outputs.logits.shape[-1])
            chunks = [sequences[start : start + batch_size] for start in range(0, len(sequences), batch_size)]
            scored = [_score(model, outputs[cache_name(model)], outputs.logits[:, -1], chunk) for chunk in chunks]
            scores.append(torch.cat(scored).cpu()[columns])  # (I,)
    return torch.stack(scores) if scores else torch.zeros(0, len(item_trie))


def _score(model: PreTrainedModel, cache: object, first: Tensor, sequences: list[list[int]]) -> Tensor:
    """Log-probability `(C,)` of each sequence after the cached prompt, whose next-token logits are `first` `(1, "
    "V)`."""
    lengths = torch.tensor([len(sequence) for sequence in sequences], device=first.device)  # (C,)
    padded = [sequence + [0] * (int(lengths.max()) - len(sequence)) for sequence in sequences]
    tokens = torch.tensor(padded, device=first.device)  # (C, D)
    logits = first.expand(len(tokens), -1)[:, None]  # (C, 1, V)
    if tokens.shape[1] > 1:
        repeated = copy.deepcopy(cache)  # a forward pass adds to the cache it is given
        repeated.reorder_cache(tokens.new_zeros(len(tokens)))  # type: ignore[attr-defined]
        # Padding stands at the end, where no token of the sequence can see it.
        options = {cache_name(model): repeated, "use_cache": True}
        rest = model(input_ids=tokens[:, :-1], **options).logits  # (C, D - 1, V)
        logits = torch.cat([logits, rest], dim=1)  # (C, D, V)
    token_scores = logits.float().log_softmax(dim=-1).gather(2, tokens[:, :, None])[:, :, 0]  # (C, D)
    inside = torch.arange(tokens.shape[1], device=tokens.device) < lengths[:, None]
    return torch.where(inside, token_scores, 0.0).sum(dim=1)


class ItemTrieLogitsProcessor(LogitsProcessor):
    """
    Allow `generate` only tokens that continue an item of the catalogue, and after a complete item only its end.

    For ranked lists [`recommend`] is several times faster; this is for `generate`'s own ways of decoding.

    Args:
        item_trie ([`ItemTrie`]):
            The catalogue.
        prompt_length (`int`):
            Columns of `input_ids` that `generate` is called with. Pad prompts on the left.
        end_token_id (`int`):
            The only token allowed after a complete item, as a rule the tokenizer's end-of-sequence token.

    Example:

    ```python
    processor = ItemTrieLogitsProcessor(item_trie, inputs["input_ids"].shape[1], tokenizer.eos_token_id)
    model.generate(**inputs, logits_processor=[processor], num_beams=5, max_new_tokens=item_trie.depth)
    ```
    """

    def __init__(self, item_trie: ItemTrie, prompt_length: int, end_token_id: int) -> None:
        self.item_trie = item_trie
        self.prompt_length = prompt_length
        self.end_token_id = end_token_id

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """
        Set all scores to `-inf` but those of allowed tokens.

        Args:
            input_ids (`torch.Tensor` of shape `(N, L)`):
                Prompts and what has been generated.
            scores (`torch.Tensor` of shape `(N, V)`):
                Scores of the next token.

        Raises:
            ValueError: where what has been generated starts no item, so that nothing may follow. `generate` does this
                when it has more beams than there are items left.
        """
        trie = self.item_trie.to(input_ids.device)
        trie.check_vocab_size(max(scores.shape[1], 0))
        nodes = input_ids.new_zeros(len(input_ids))  # (N,)
        for tokens in input_ids[:, self.prompt_length :].unbind(dim=1):
            nodes = torch.where(trie.is_leaf(nodes), nodes, trie.child(nodes, tokens))
        if (nodes < 0).any():
            row = int((nodes < 0).nonzero()[0])
            raise ValueError(
                f"Row {row} has generated {input_ids[row, self.prompt_length :].tolist()}, which starts no item, so "
                "that no token may follow. Check prompt_length, or ask for fewer beams than the catalogue has items "
                "(`recommend` needs no such care)."
            )
        rows, tokens, _ = trie.children(nodes)  # (E,)
        allowed = torch.full_like(scores, -torch.inf)
        allowed[rows, tokens] = scores[rows, tokens]
        complete = trie.is_leaf(nodes)
        allowed[complete, self.end_token_id] = scores[complete, self.end_token_id]
        return allowed
