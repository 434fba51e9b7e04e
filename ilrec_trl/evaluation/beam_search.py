"""Beam search that can only yield items of the catalogue."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..items.item_trie import ItemTrie
from .item_filter import ItemFilter, ItemSets
from .prompt_decoder import PromptDecoder


Normalise: TypeAlias = Literal["vocabulary", "continuations"]


@torch.no_grad()
def constrained_beam_search(
    model: PreTrainedModel,
    input_ids: Tensor,
    attention_mask: Tensor,
    item_trie: ItemTrie,
    *,
    num_beams: int,
    allow: ItemSets | None = None,
    exclude: ItemSets | None = None,
    normalise: Normalise = "vocabulary",
    max_per_first_token: int | None = None,
) -> tuple[Tensor, Tensor]:
    """
    Find the most probable items after each prompt.

    A beam's score is the sum of its tokens' log-probabilities (nats), as in `generate` with a logits processor and
    `length_penalty=0`. Items may differ in length: complete ones are kept apart from the `num_beams` that go on, and a
    beam stops once `num_beams` complete items score higher, as it can only lose. Where `num_beams` is at least the
    number of distinct token sequences, the result is exact.

    Where all items have one length, every step has the same shapes whatever the beams hold, and nothing waits for the
    device before the end.

    Args:
        model (`PreTrainedModel`):
            Causal language model in evaluation mode.
        input_ids (`torch.Tensor` of shape `(B, S)`):
            Prompts, padded on the left.
        attention_mask (`torch.Tensor` of shape `(B, S)`):
            1 on the prompts' tokens, 0 on padding.
        item_trie ([`ItemTrie`]):
            The catalogue.
        num_beams (`int`):
            Beams for each prompt, and results.
        allow, exclude (*optional*):
            As in [`recommend`]. Token sequences that an allowed item shares are found, and prefixes without any
            allowed item below them take no beam.
        normalise (`"vocabulary"` or `"continuations"`, *optional*, defaults to `"vocabulary"`):
            As in [`recommend`].
        max_per_first_token (`int`, *optional*):
            Most results of one first token. Beams are shared out so that enough first tokens for `num_beams` results,
            or all there are, can have some: of one first token at most `num_beams` divided by their number go on.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: leaf nodes of the trie, `(B, num_beams)`, and their scores, of the same
        shape, float32; best first, equal scores by node id. All leaves of a row are distinct. Where there are fewer
        than `num_beams`, the rest is -1 with score `-inf`.
    """
    check_search_options(num_beams, normalise, max_per_first_token)
    trie = item_trie.to(input_ids.device)
    item_filter = ItemFilter(trie, len(input_ids), allow, exclude)
    users = torch.arange(len(input_ids), device=input_ids.device)
    limit = FirstTokenLimit.of(trie, max_per_first_token, num_beams, num_beams)
    return search(model, input_ids, attention_mask, trie, item_filter, users, num_beams, normalise, limit)


def check_search_options(
    size: int, normalise: str, max_per_first_token: int | None = None, name: str = "num_beams"
) -> None:
    if size < 1:
        raise ValueError(f"Got {name}={size}, expected at least 1.")
    if normalise not in ("vocabulary", "continuations"):
        raise ValueError(f"Got normalise={normalise!r}, expected 'vocabulary' or 'continuations'.")
    if max_per_first_token is not None and max_per_first_token < 1:
        raise ValueError(f"Got max_per_first_token={max_per_first_token}, expected at least 1, or None for no limit.")


@dataclass
class FirstTokenLimit:
    """How many of one first token, among complete items and among the beams that go on; `None` for no limit."""

    results: int | None
    beams: int | None

    @classmethod
    def of(cls, trie: ItemTrie, max_per_first_token: int | None, num_results: int, num_beams: int) -> FirstTokenLimit:
        """Share `num_beams` beams out among as many first tokens as `num_results` results need."""
        if max_per_first_token is None:
            return cls(None, None)
        needed = min(-(-num_results // max_per_first_token), trie.arrays.level_size(1))
        return cls(max_per_first_token, max(max_per_first_token, num_beams // needed))


@dataclass
class _Beams:
    """Nodes, scores and first-level nodes of some prefixes of each prompt, each `(B, W)`; no prefix: -1, `-inf`."""

    nodes: Tensor
    scores: Tensor
    firsts: Tensor

    def best(self, count: int, most: int | None) -> tuple[_Beams, Tensor]:
        """The `count` best, at most `most` of one first token, and where they stood; equal scores by node."""
        keys = _sort_keys(self.scores, self.nodes)
        if most is not None:
            keys = keys.masked_fill(_rank_in_group(keys, self.firsts) >= most, torch.iinfo(torch.int64).min)
        values, places = keys.topk(min(count, keys.shape[1]), dim=1)  # (B, W)
        kept = values > torch.iinfo(torch.int64).min
        scores = torch.where(kept, self.scores.gather(1, places), -torch.inf)
        nodes = torch.where(scores == -torch.inf, -1, self.nodes.gather(1, places))
        return _Beams(nodes, scores, self.firsts.gather(1, places)), places

    def keep(self, mask: Tensor) -> _Beams:
        return _Beams(self.nodes, torch.where(mask, self.scores, -torch.inf), self.firsts)

    def join(self, other: _Beams) -> _Beams:
        pairs = [(getattr(self, name), getattr(other, name)) for name in ("nodes", "scores", "firsts")]
        return _Beams(*(torch.cat(pair, dim=1) for pair in pairs))


def search(
    model: PreTrainedModel,
    input_ids: Tensor,
    attention_mask: Tensor,
    trie: ItemTrie,
    item_filter: ItemFilter,
    users: Tensor,
    num_beams: int,
    normalise: Normalise,
    limit: FirstTokenLimit,
) -> tuple[Tensor, Tensor]:
    """[`constrained_beam_search`] of some prompts, which are the `users` `(B,)` of an item filter."""
    arrays = trie.arrays
    decoder = PromptDecoder(model, input_ids, attention_mask, arrays.tokens if normalise == "continuations" else None)
    trie.check_vocab_size(decoder.vocab_size)
    nothing = input_ids.new_zeros(len(input_ids), 1)  # (B, 1)
    beams = _Beams(nothing, torch.zeros_like(nothing, dtype=torch.float32), nothing)
    found = beams.keep(nothing > 0)
    broken = torch.zeros((), dtype=torch.bool, device=input_ids.device)
    uniform = not any(arrays.has_leaves[:-1])
    for level in range(arrays.depth):
        tokens, children, real = arrays.padded_children(beams.nodes, level)  # (B, W, C)
        scores = log_probabilities(decoder.logits, decoder.columns(tokens), real, normalise)  # (B, W, C)
        broken |= scores.isnan().any()
        if not item_filter.lets_all_pass:
            real &= item_filter.open_nodes(users[:, None, None].expand_as(children), children)
        scores = torch.where(real, beams.scores[:, :, None] + scores, -torch.inf)
        firsts = children if level == 0 else beams.firsts[:, :, None].expand_as(children)
        longer = _Beams(children.flatten(1), scores.flatten(1), firsts.flatten(1))  # (B, W * C)
        if arrays.has_leaves[level + 1]:
            ends = arrays.is_leaf(longer.nodes) if level + 1 < arrays.depth else longer.nodes > 0
            found, _ = found.join(longer.keep(ends)).best(num_beams, limit.results)
            longer = longer.keep(~ends)
            if found.scores.shape[1] == num_beams:
                longer = longer.keep(longer.scores > found.scores[:, -1:])
        if level + 1 == arrays.depth or not longer.nodes.shape[1]:
            break
        width = children.shape[2]
        beams, places = longer.best(min(num_beams, arrays.level_size(level + 1)), limit.beams)
        alive = beams.nodes >= 0  # (B, W)
        if not uniform and not bool(alive.any()):
            break
        if not uniform and normalise == "continuations" and bool((arrays.only_leaf(beams.nodes) >= 0)[alive].all()):
            # What is forced has probability 1: the scores of all that is left are known.
            ends_of = _Beams(arrays.only_leaf(beams.nodes), beams.scores, beams.firsts)
            found, _ = found.join(ends_of).best(num_beams, limit.results)
            break
        decoder.step(tokens.flatten(1).gather(1, places) * alive, places // width * alive)
    if bool(broken):
        raise ValueError("The model's logits are not numbers (NaN), so items cannot be ranked. Has training diverged?")
    return _pad(found, num_beams)


def log_probabilities(logits: Tensor, columns: Tensor, real: Tensor, normalise: Normalise) -> Tensor:
    """
    Log-probability of each continuation, in nats; 0 where there is none.

    Args:
        logits (`torch.Tensor` of shape `(B, W, V)`):
            Logits after each beam.
        columns (`torch.Tensor` of shape `(B, W, C)`):
            Where the tokens of its continuations stand.
        real (`torch.Tensor` of shape `(B, W, C)`):
            Which of them there are.
        normalise (`"vocabulary"` or `"continuations"`):
            What the probabilities of sum to 1.
    """
    if normalise == "vocabulary":
        return torch.where(real, logits.log_softmax(dim=-1, dtype=torch.float32).gather(2, columns), 0.0)
    chosen = torch.where(real, logits.gather(2, columns).float(), -torch.inf)
    return torch.where(real, chosen.log_softmax(dim=-1), 0.0)


def _rank_in_group(keys: Tensor, groups: Tensor) -> Tensor:
    """How many of its own group stand before each key, largest first; `(B, N)`, keys distinct within a row."""
    order = keys.argsort(dim=1, descending=True)
    order = order.gather(1, groups.gather(1, order).argsort(dim=1, stable=True))  # by group, then by key
    sorted_groups = groups.gather(1, order)
    places = torch.arange(keys.shape[1], device=keys.device).expand_as(keys)
    starts = torch.ones_like(keys, dtype=torch.bool)
    starts[:, 1:] = sorted_groups[:, 1:] != sorted_groups[:, :-1]
    first = torch.where(starts, places, 0).cummax(dim=1).values
    return torch.empty_like(order).scatter_(1, order, places - first)


def _sort_keys(scores: Tensor, nodes: Tensor) -> Tensor:
    """Integers in the order of the scores (float32) and, where they are equal, against that of the nodes."""
    bits = (scores + 0.0).view(torch.int32)  # -0.0 becomes 0.0; magnitudes of negative numbers still grow downwards
    ordered = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).long()
    return (ordered << 32) + (0x7FFFFFFF - nodes)


def _pad(found: _Beams, count: int) -> tuple[Tensor, Tensor]:
    missing = count - found.nodes.shape[1]
    pad = torch.nn.functional.pad
    return pad(found.nodes, (0, missing), value=-1), pad(found.scores, (0, missing), value=-torch.inf)
