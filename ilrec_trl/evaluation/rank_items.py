"""Exact scores of every item, for small catalogues and as a yardstick for beam search."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..items.item_trie import ItemTrie
from .prompt_batches import Prompt, evaluation_mode, tokenize_prompts


@torch.no_grad()
def rank_items(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    item_trie: ItemTrie,
    *,
    batch_size: int = 512,
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
        for prompt in tokenize_prompts(tokenizer, prompts):
            input_ids = torch.tensor([prompt], device=model.device)  # (1, S)
            outputs = model(input_ids=input_ids, use_cache=True)
            item_trie.check_vocab_size(outputs.logits.shape[-1])
            chunks = [sequences[start : start + batch_size] for start in range(0, len(sequences), batch_size)]
            scored = [_score(model, outputs.past_key_values, outputs.logits[:, -1], chunk) for chunk in chunks]
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
        rest = model(input_ids=tokens[:, :-1], past_key_values=repeated, use_cache=True).logits  # (C, D - 1, V)
        logits = torch.cat([logits, rest], dim=1)  # (C, D, V)
    token_scores = logits.float().log_softmax(dim=-1).gather(2, tokens[:, :, None])[:, :, 0]  # (C, D)
    inside = torch.arange(tokens.shape[1], device=tokens.device) < lengths[:, None]
    return torch.where(inside, token_scores, 0.0).sum(dim=1)
