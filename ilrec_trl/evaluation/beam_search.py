"""Beam search that can only yield items of the catalogue."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..items.item_trie import ItemTrie
from .item_filter import ItemFilter
from .prompt_decoder import PromptDecoder


Normalise: TypeAlias = Literal["vocabulary", "continuations"]


def check_search_options(size: int, normalise: str, name: str = "num_beams") -> None:
    if size < 1:
        raise ValueError(f"Got {name}={size}, expected at least 1.")
    if normalise not in ("vocabulary", "continuations"):
        raise ValueError(f"Got normalise={normalise!r}, expected 'vocabulary' or 'continuations'.")


@dataclass
class _Beams:
    """Nodes and scores of some prefixes of each prompt, both `(B, W)`; no prefix: -1, `-inf`."""

    nodes: Tensor
    scores: Tensor

    def best(self, count: int) -> tuple[_Beams, Tensor]:
        """The `count` best, and their places among all; equal scores by node."""
        _, places = _sort_keys(self.scores, self.nodes).topk(min(count, self.nodes.shape[1]), dim=1)  # (B, W)
        scores = self.scores.gather(1, places)
        return _Beams(torch.where(scores == -torch.inf, -1, self.nodes.gather(1, places)), scores), places

    def keep(self, mask: Tensor) -> _Beams:
        return _Beams(self.nodes, torch.where(mask, self.scores, -torch.inf))

    def join(self, other: _Beams) -> _Beams:
        return _Beams(torch.cat([self.nodes, other.nodes], dim=1), torch.cat([self.scores, other.scores], dim=1))


@torch.no_grad()
def constrained_beam_search(
    model: PreTrainedModel,
    input_ids: Tensor,
    attention_mask: Tensor,
    item_trie: ItemTrie,
    item_filter: ItemFilter | None = None,
    users: Tensor | None = None,
    *,
    num_beams: int,
    normalise: Normalise = "vocabulary",
) -> tuple[Tensor, Tensor]:
    """
    Find the most probable items after each prompt.

    A beam's score is the sum of its tokens' log-probabilities (nats), as in `generate` with a logits processor and
    `length_penalty=0`. Items may differ in length: complete ones are kept apart from the `num_beams` that go on, and a
    beam stops once `num_beams` complete items score higher. If `num_beams` is at least the number of distinct token
    sequences, the result is exact. If all items have one length, shapes do not depend on the beams, and nothing waits
    for the device before the end.

    Args:
        model (`PreTrainedModel`): Causal language model in evaluation mode.
        input_ids (`torch.Tensor` of shape `(B, S)`): Prompts, padded on the left.
        attention_mask (`torch.Tensor` of shape `(B, S)`): 1 on the prompts' tokens, 0 on padding.
        item_trie ([`ItemTrie`]): The catalogue.
        item_filter ([`ItemFilter`], *optional*): Token sequences of at least one of its items are found; other
            prefixes take no beam. By default all items.
        users (`torch.Tensor` of shape `(B,)`, *optional*): Which users of the filter the prompts are; by default in
            order.
        num_beams (`int`): Beams for each prompt, and results.
        normalise (`"vocabulary"` or `"continuations"`, *optional*, defaults to `"vocabulary"`): As in [`recommend`].

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: leaf nodes of the trie, `(B, num_beams)`, and their scores, of the same
        shape, float32; best first, equal scores by node id. All leaves of a row are distinct. If there are fewer than
        `num_beams`, the rest is -1 with score `-inf`.
    """
    check_search_options(num_beams, normalise)
    trie = item_trie.to(input_ids.device)
    item_filter = ItemFilter(trie, len(input_ids)) if item_filter is None else item_filter
    users = torch.arange(len(input_ids), device=input_ids.device) if users is None else users  # (B,)
    arrays = trie.arrays
    decoder = PromptDecoder(model, input_ids, attention_mask, arrays.tokens if normalise == "continuations" else None)
    trie.check_vocab_size(decoder.vocab_size)
    nothing = input_ids.new_zeros(len(input_ids), 1)  # (B, 1)
    beams = _Beams(nothing, torch.zeros_like(nothing, dtype=torch.float32))
    found = beams.keep(nothing > 0)
    broken = torch.zeros((), dtype=torch.bool, device=input_ids.device)
    uniform = not any(arrays.has_leaves[:-1])
    for level in range(arrays.depth):
        tokens, children, real = arrays.padded_children(beams.nodes, level)  # (B, W, C)
        scores = log_probabilities(decoder.logits, decoder.token_indices(tokens), real, normalise)  # (B, W, C)
        broken |= scores.isnan().any()
        if not item_filter.lets_all_pass:
            real &= item_filter.open_nodes(users[:, None, None].expand_as(children), children)
        scores = torch.where(real, beams.scores[:, :, None] + scores, -torch.inf)
        longer = _Beams(children.flatten(1), scores.flatten(1))  # (B, W * C)
        if arrays.has_leaves[level + 1]:
            ends = arrays.is_leaf(longer.nodes) if level + 1 < arrays.depth else longer.nodes > 0
            found, _ = found.join(longer.keep(ends)).best(num_beams)
            longer = longer.keep(~ends)
            if found.scores.shape[1] == num_beams:
                longer = longer.keep(longer.scores > found.scores[:, -1:])
        if level + 1 == arrays.depth or not longer.nodes.shape[1]:
            break
        width = children.shape[2]
        beams, places = longer.best(min(num_beams, arrays.level_size(level + 1)))
        alive = beams.nodes >= 0  # (B, W)
        if not uniform and not bool(alive.any()):
            break
        if not uniform and normalise == "continuations" and bool((arrays.only_leaf(beams.nodes) >= 0)[alive].all()):
            # Tokens without an alternative have probability 1, so the scores of all beams are known
            ends_of = _Beams(arrays.only_leaf(beams.nodes), beams.scores)
            found, _ = found.join(ends_of).best(num_beams)
            break
        decoder.step(tokens.flatten(1).gather(1, places) * alive, places // width * alive)
    if bool(broken):
        raise ValueError("The model's logits are not numbers (NaN), so items cannot be ranked. Has training diverged?")
    return _pad(found, num_beams)


def log_probabilities(logits: Tensor, token_indices: Tensor, real: Tensor, normalise: Normalise) -> Tensor:
    """
    Log-probabilities `(B, W, C)` in nats of the continuations of each beam, 0 where `real` `(B, W, C)` is `False`. The
    `token_indices` `(B, W, C)` are their places in the last dimension of `logits` `(B, W, V)`.
    """
    if normalise == "vocabulary":
        return torch.where(real, logits.log_softmax(dim=-1, dtype=torch.float32).gather(2, token_indices), 0.0)
    chosen = torch.where(real, logits.gather(2, token_indices).float(), -torch.inf)
    return torch.where(real, chosen.log_softmax(dim=-1), 0.0)


def _sort_keys(scores: Tensor, nodes: Tensor) -> Tensor:
    """Integers in the order of the scores (float32); equal scores in the reverse order of the nodes."""
    bits = (scores + 0.0).view(torch.int32)  # -0.0 becomes 0.0; magnitudes of negative numbers still grow downwards
    ordered = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).long()
    return (ordered << 32) + (0x7FFFFFFF - nodes)


def _pad(found: _Beams, count: int) -> tuple[Tensor, Tensor]:
    missing = count - found.nodes.shape[1]
    pad = torch.nn.functional.pad
    return pad(found.nodes, (0, missing), value=-1), pad(found.scores, (0, missing), value=-torch.inf)
