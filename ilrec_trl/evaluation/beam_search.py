"""Beam search that can only yield items of the catalogue."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..items.item_trie import ItemId, ItemTrie
from .prompt_decoder import PromptDecoder


@torch.no_grad()
def constrained_beam_search(
    model: PreTrainedModel,
    input_ids: Tensor,
    attention_mask: Tensor,
    item_trie: ItemTrie,
    *,
    num_beams: int,
    exclude: Sequence[Sequence[ItemId]] | None = None,
) -> tuple[Tensor, Tensor]:
    """
    Find the most probable items after each prompt.

    A beam's score is the sum of its tokens' log-probabilities under the model's full vocabulary (nats), as in
    `generate` with a logits processor and `length_penalty=0`. Items may differ in length: complete ones are kept apart
    from the `num_beams` that go on, and a beam stops once `num_beams` complete items score higher, as it can only
    lose. Where `num_beams` is at least the number of distinct token sequences, the result is exact.

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
        exclude (`list[list[str | int]]`, *optional*):
            Items not to be found for each prompt. Items that share a token sequence with an item outside the list
            still are, and prefixes with nothing else below them take no beam.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: leaf nodes of the trie, `(B, num_beams)`, and their scores, of the same
        shape, float32; best first, equal scores by node id. All leaves of a row are distinct. Where there are fewer
        than `num_beams`, the rest is -1 with score `-inf`.
    """
    if num_beams < 1:
        raise ValueError(f"Got num_beams={num_beams}, expected at least 1.")
    trie = item_trie.to(input_ids.device)
    batch = len(input_ids)
    blocked = _blocked_nodes(trie, exclude, batch)
    decoder = PromptDecoder(model, input_ids, attention_mask)
    trie.check_vocab_size(decoder.logits.shape[-1])

    nodes = input_ids.new_zeros(batch, 1)  # (B, W): the root
    scores = torch.zeros(batch, 1, device=input_ids.device)  # (B, W)
    found = nodes[:, :0], scores[:, :0]
    while True:
        rows, tokens, children, edge_scores = _continuations(trie, decoder.logits, nodes, scores)
        users = rows // nodes.shape[1]  # (E,)
        if blocked is not None:
            open_ = ~torch.isin(users * trie.num_nodes + children, blocked)
            rows, tokens, children, edge_scores, users = (
                x[open_] for x in (rows, tokens, children, edge_scores, users)
            )
        ends = trie.is_leaf(children)
        if ends.any():
            best, best_scores = _best_edges(users[ends], children[ends], edge_scores[ends], batch, num_beams)
            leaves = torch.where(best >= 0, children[ends][best], -1)
            found = _merge(found, (leaves, best_scores), num_beams)
        goes_on = ~ends
        if found[1].shape[1] == num_beams:
            goes_on &= edge_scores > found[1][users, -1]
        if not goes_on.any():
            return _pad(found, num_beams)
        kept = goes_on.nonzero().flatten()
        best, scores = _best_edges(users[kept], children[kept], edge_scores[kept], batch, num_beams)  # (B, W)
        edges = kept[best.clamp(min=0)]  # (B, W)
        alive = best >= 0
        parents = torch.where(alive, rows[edges] % nodes.shape[1], 0)
        nodes = torch.where(alive, children[edges], -1)
        decoder.step(torch.where(alive, tokens[edges], 0), parents)


def _continuations(
    trie: ItemTrie, logits: Tensor, nodes: Tensor, scores: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Row, token, node and score of every edge `(E,)` below the beams' `nodes` `(B, W)`, by row."""
    logits = logits.flatten(0, 1)  # (B * W, V)
    normalisers = logits.float().logsumexp(dim=-1)  # (B * W,)
    if normalisers.isnan().any():
        raise ValueError("The model's logits are not numbers (NaN), so items cannot be ranked. Has training diverged?")
    rows, tokens, children = trie.children(nodes.flatten())  # (E,)
    base = scores.flatten() - normalisers  # (B * W,)
    return rows, tokens, children, logits[rows, tokens].float() + base[rows]


def _best_edges(users: Tensor, nodes: Tensor, scores: Tensor, batch: int, count: int) -> tuple[Tensor, Tensor]:
    """
    The `count` best edges of each user, or as many as any user has: their indices and scores, `(B, W)`, best first; -1
    and `-inf` where a user has fewer. `users` `(E,)` must ascend.
    """
    counts = torch.bincount(users, minlength=batch)  # (B,)
    starts = counts.cumsum(0) - counts  # (B,)
    slots = torch.arange(len(users), device=users.device) - starts[users]  # (E,)
    keys = users.new_full((batch, int(counts.max())), torch.iinfo(torch.int64).min)  # (B, most)
    keys[users, slots] = _sort_keys(scores, nodes)
    best = keys.topk(min(count, keys.shape[1]), dim=1).indices  # (B, W)
    edges = best + starts[:, None]  # (B, W)
    edges = torch.where(best < counts[:, None], edges, -1)
    best_scores = torch.where(edges >= 0, scores[edges], -torch.inf)
    return torch.where(best_scores > -torch.inf, edges, -1), best_scores


def _merge(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor], count: int) -> tuple[Tensor, Tensor]:
    """The `count` best of two lists of nodes and scores, each `(B, W)`."""
    nodes, scores = (torch.cat(pair, dim=1) for pair in zip(first, second, strict=True))
    best = _sort_keys(scores, nodes).topk(min(count, nodes.shape[1]), dim=1).indices
    return nodes.gather(1, best), scores.gather(1, best)


def _sort_keys(scores: Tensor, nodes: Tensor) -> Tensor:
    """Integers in the order of the scores (float32) and, where they are equal, against that of the nodes."""
    bits = (scores + 0.0).view(torch.int32)  # -0.0 becomes 0.0; magnitudes of negative numbers still grow downwards
    ordered = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).long()
    return (ordered << 32) + (0x7FFFFFFF - nodes)


def _pad(found: tuple[Tensor, Tensor], count: int) -> tuple[Tensor, Tensor]:
    nodes, scores = found
    missing = count - nodes.shape[1]
    pad = torch.nn.functional.pad
    return pad(nodes, (0, missing), value=-1), pad(scores, (0, missing), value=-torch.inf)


def _blocked_nodes(trie: ItemTrie, exclude: Sequence[Sequence[ItemId]] | None, batch: int) -> Tensor | None:
    """Keys `user * num_nodes + node` of the nodes below which a user's excluded items are all there is."""
    if exclude is None:
        return None
    if len(exclude) != batch:
        raise ValueError(f"Got {len(exclude)} lists of items to exclude for {batch} prompts, expected one for each.")
    users = torch.tensor([user for user, items in enumerate(exclude) for _ in set(items)], device=trie.device)
    if len(users) == 0:
        return None
    nodes = trie.leaf_of([item for items in exclude for item in set(items)])  # (X,)
    keys = [users * trie.num_nodes + nodes]
    while (nodes > 0).any():
        users, nodes = users[nodes > 0], trie.arrays.parent(nodes[nodes > 0])
        keys.append(users * trie.num_nodes + nodes)
    paths, excluded = torch.cat(keys).unique(return_counts=True)
    return paths[excluded == trie.arrays.num_items_below(paths % trie.num_nodes)]
