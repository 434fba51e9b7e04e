"""The catalogue as a logits processor, for the ways of decoding that `generate` has."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import LogitsProcessor

from ..items.item_trie import ItemTrie


class ItemTrieLogitsProcessor(LogitsProcessor):
    """
    Allow `generate` only tokens that continue an item of the catalogue, and after a complete item only its end.

    For ranked lists [`recommend`] is several times faster; this is for `generate`'s own ways of decoding: sampling,
    several sequences a prompt, beams. Items may differ in length, and a call's prompts too.

    `generate` keeps its number of beams even where fewer prefixes are left: it then carries on with beams whose scores
    are below -1e8, or `-inf`. They are no items, or copies of some; drop them by their score.

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

        Returns:
            `torch.Tensor` of shape `(N, V)`: `-inf` throughout in a row that starts no item.

        Raises:
            ValueError: where no row starts an item, so that `prompt_length` must be wrong.
        """
        trie = self.item_trie.to(input_ids.device)
        trie.check_vocab_size(scores.shape[1])
        arrays = trie.arrays
        nodes = input_ids.new_zeros(len(input_ids))  # (N,)
        for level, tokens in enumerate(input_ids[:, self.prompt_length :].unbind(dim=1)[: arrays.depth]):
            nodes = torch.where(arrays.is_leaf(nodes), nodes, arrays.child(nodes, tokens, level))
        if bool((nodes < 0).all()) or input_ids.shape[1] < self.prompt_length:
            raise ValueError(
                f"No row of input_ids goes on with an item after its first {self.prompt_length} tokens; the first "
                f"has {input_ids[0, self.prompt_length :].tolist()} there. Set prompt_length to the columns of "
                "input_ids that `generate` is called with."
            )
        rows, tokens, _ = trie.children(nodes)  # (E,)
        allowed = torch.full_like(scores, -torch.inf)
        allowed[rows, tokens] = scores[rows, tokens]
        end = slice(self.end_token_id, self.end_token_id + 1)
        allowed[:, end] = torch.where(arrays.is_leaf(nodes)[:, None], scores[:, end], allowed[:, end])
        return allowed
