"""The catalogue as a logits processor, for the ways of decoding that `generate` has."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import LogitsProcessor

from ..items.item_trie import ItemTrie


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
