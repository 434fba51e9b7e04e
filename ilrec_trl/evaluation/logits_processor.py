"""The catalogue as a logits processor for `generate`."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import LogitsProcessor

from ..items.item_trie import ItemTrie


class ItemTrieLogitsProcessor(LogitsProcessor):
    """
    Allow `generate` only tokens that continue an item of the catalogue, and after a complete item only its end.

    Use [`recommend`] for ranked lists, which is several times faster, and this class for sampling and other ways of
    decoding of `generate`. Items may differ in length, and so may the prompts of a call.

    `generate` keeps its number of beams even if fewer prefixes are left. The surplus beams have scores below -1e8 or
    `-inf`, and hold no items or copies of some: drop them by their score.

    Args:
        item_trie ([`ItemTrie`]): The catalogue.
        prompt_length (`int`): Length of the `input_ids` that `generate` is called with. Pad prompts on the left.
        end_token_id (`int`): The only token allowed after a complete item, usually the tokenizer's end-of-sequence
            token.

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
        Scores `(N, V)` of the next tokens after `input_ids` `(N, L)`, prompts and generated tokens, with `-inf` for
        all tokens that are not allowed. `ValueError` if no row starts an item, since `prompt_length` must then be
        wrong.
        """
        trie = self.item_trie.to(input_ids.device)
        trie.check_vocab_size(scores.shape[1])
        arrays = trie.arrays
        nodes = input_ids.new_zeros(len(input_ids))  # (N,)
        for level, tokens in enumerate(input_ids[:, self.prompt_length :].unbind(dim=1)[: arrays.depth]):
            nodes = torch.where(arrays.is_leaf(nodes), nodes, arrays.child(nodes, tokens, level))
        if bool((nodes < 0).all()) or input_ids.shape[1] < self.prompt_length:
            raise ValueError(
                f"No row of input_ids starts an item after its first {self.prompt_length} tokens; the first row has "
                f"{input_ids[0, self.prompt_length :].tolist()} there. Set prompt_length to the length of the prompts "
                "that `generate` is called with."
            )
        rows, tokens, _ = trie.children(nodes)  # (E,)
        allowed = torch.full_like(scores, -torch.inf)
        allowed[rows, tokens] = scores[rows, tokens]
        end = slice(self.end_token_id, self.end_token_id + 1)
        allowed[:, end] = torch.where(arrays.is_leaf(nodes)[:, None], scores[:, end], allowed[:, end])
        return allowed
