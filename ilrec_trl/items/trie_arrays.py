"""The arrays below an ItemTrie: how they are built, and the walks over them."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


# A node whose share of a user's reward mass is below this is summed again item by item: the difference of two float64
# prefix sums is exact to about 1e-16 of the whole, so that here 1e-10 of the node's own mass is kept.
_SMALL_MASS = 1e-6


class TrieArrays:
    """
    Nodes of a trie in breadth-first order; node 0 is the root.

    Args:
        node_tokens (`torch.Tensor` of shape `(nodes,)`):
            Token on the edge into each node; -1 for the root.
        first_child (`torch.Tensor` of shape `(nodes + 1,)`):
            Children of node `n` are the nodes `first_child[n]` to `first_child[n + 1] - 1`, tokens ascending.
        item_start, item_end (`torch.Tensor` of shape `(nodes,)`):
            Items below node `n` are those from `item_start[n]` to `item_end[n] - 1` in trie order.
    """

    def __init__(self, node_tokens: Tensor, first_child: Tensor, item_start: Tensor, item_end: Tensor) -> None:
        self.node_tokens = node_tokens.long()
        self.first_child = first_child.long()
        self.item_start = item_start.long()
        self.item_end = item_end.long()
        self.max_token = int(self.node_tokens.max())
        self.num_items = int(self.item_end[0])
        counts = self.first_child.diff()  # (nodes,)
        parents = torch.repeat_interleave(counts)  # (edges,)
        # Ascending, because nodes are numbered breadth first and tokens ascend below a node: one search finds a child.
        self.edge_keys = parents * (self.max_token + 1) + self.node_tokens[1:]  # (edges,)
        leaves = (counts == 0).nonzero().flatten()
        leaves = leaves[self.item_start[leaves].argsort()]
        self.item_leaf = leaves.repeat_interleave((self.item_end - self.item_start)[leaves])  # (I,)
        self.depth, first, last = 0, 0, 1
        while (first_below := int(self.first_child[first])) < (last_below := int(self.first_child[last])):
            self.depth, first, last = self.depth + 1, first_below, last_below

    def state(self) -> dict[str, Tensor]:
        """What the constructor takes, in 32-bit integers on the CPU."""
        names = ("node_tokens", "first_child", "item_start", "item_end")
        return {name: getattr(self, name).to("cpu", torch.int32).contiguous() for name in names}

    def to(self, device: torch.device) -> TrieArrays:
        copy = object.__new__(TrieArrays)
        for name, value in self.__dict__.items():
            setattr(copy, name, value.to(device) if isinstance(value, Tensor) else value)
        return copy

    def child(self, nodes: Tensor, tokens: Tensor) -> Tensor:
        """Nodes `(N,)` reached from `nodes` `(N,)` by `tokens` `(N,)`; -1 where there is none."""
        keys = nodes * (self.max_token + 1) + tokens  # (N,)
        edges = torch.searchsorted(self.edge_keys, keys).clamp(max=len(self.edge_keys) - 1)  # (N,)
        found = (self.edge_keys[edges] == keys) & (nodes >= 0) & (tokens >= 0) & (tokens <= self.max_token)
        return torch.where(found, edges + 1, -1)

    def children(self, nodes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Row, token and child node of every edge below `nodes` `(N,)`, each `(E,)`."""
        known = nodes.clamp(min=0)
        starts = self.first_child[known]
        counts = torch.where(nodes >= 0, self.first_child[known + 1] - starts, 0)  # (N,)
        rows, child_nodes = ragged_ranges(starts, counts)  # (E,)
        return rows, self.node_tokens[child_nodes], child_nodes

    def child_masses(self, item_scores: Tensor, nodes: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """
        Sum of `item_scores[rows[n]]` over the items below each child of `nodes[n]`.

        Args:
            item_scores (`torch.Tensor` of shape `(B, I)`):
                Non-negative scores in trie order.
            nodes (`torch.Tensor` of shape `(N,)`):
                Node ids.
            rows (`torch.Tensor` of shape `(N,)`):
                Row of scores that each node reads.

        Returns:
            `tuple[torch.Tensor, torch.Tensor, torch.Tensor]`: row `n`, token and mass (float64) of each edge, `(E,)`.
        """
        sums = item_scores.new_zeros(len(item_scores), self.num_items + 1, dtype=torch.float64)
        torch.cumsum(item_scores, dim=1, dtype=torch.float64, out=sums[:, 1:])  # (B, I + 1)
        edge_rows, tokens, child_nodes = self.children(nodes)  # (E,)
        score_rows = rows[edge_rows]
        masses = sums[score_rows, self.item_end[child_nodes]] - sums[score_rows, self.item_start[child_nodes]]
        known = nodes.clamp(min=0)
        totals = sums[rows, self.item_end[known]] - sums[rows, self.item_start[known]]  # (N,)
        doubtful = (totals < _SMALL_MASS * sums[rows, -1])[edge_rows].nonzero().flatten()
        if len(doubtful):
            starts = self.item_start[child_nodes[doubtful]]
            edges, items = ragged_ranges(starts, self.item_end[child_nodes[doubtful]] - starts)
            exact = masses.new_zeros(len(doubtful))
            masses[doubtful] = exact.index_add_(0, edges, item_scores[score_rows[doubtful][edges], items].double())
        return edge_rows, tokens, masses.clamp(min=0)

    def num_items_below(self, nodes: Tensor) -> Tensor:
        """Number of items `(N,)` below each of `nodes` `(N,)`."""
        return self.item_end[nodes] - self.item_start[nodes]

    def parent(self, nodes: Tensor) -> Tensor:
        """Node `(N,)` above each of `nodes` `(N,)`, none of them the root."""
        return self.edge_keys[nodes - 1] // (self.max_token + 1)

    def path(self, node: int) -> list[int]:
        """Tokens from the root to `node`."""
        tokens: list[int] = []
        while node > 0:
            parent, token = divmod(int(self.edge_keys[node - 1]), self.max_token + 1)
            tokens.append(token)
            node = parent
        return tokens[::-1]

    def walk(self, tokens: Sequence[int]) -> tuple[int, int] | None:
        """The leaf that a path along `tokens` runs into, and the tokens read; `None` where there is none."""
        keys, first_child = self.edge_keys.numpy(), self.first_child.numpy()
        node = 0
        for read, token in enumerate(tokens, start=1):
            if not 0 <= token <= self.max_token:
                return None
            key = node * (self.max_token + 1) + token
            edge = int(keys.searchsorted(key))
            if edge == len(keys) or keys[edge] != key:
                return None
            node = edge + 1
            if first_child[node] == first_child[node + 1]:
                return node, read
        return None


def ragged_ranges(starts: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Row `(E,)` and value `(E,)` of all numbers from `starts[n]` to `starts[n] + counts[n] - 1`, row after row."""
    rows = torch.repeat_interleave(counts)  # (E,)
    offsets = starts - (counts.cumsum(0) - counts)  # (N,)
    return rows, torch.arange(len(rows), device=rows.device) + offsets[rows]


def build_trie_arrays(
    sequences: Mapping[Any, Sequence[int]], end_token_id: int | None = None
) -> tuple[TrieArrays, NDArray[np.int64]]:
    """
    Sort the sequences once and number the nodes level by level.

    Returns:
        `tuple[TrieArrays, numpy.ndarray]`: the arrays, and the rows of `sequences` in trie order `(I,)`; items with
        the same sequence keep their order.
    """
    tokens, lengths = _pad(sequences, end_token_id)  # (I, D), (I,)
    order = np.lexsort(tokens.T[::-1])  # (I,)
    tokens, lengths = tokens[order], lengths[order]
    _refuse_prefixes(list(sequences), tokens, lengths, order)

    num_items, depth = tokens.shape
    node_tokens, starts, ends, parents = [np.array([-1])], [np.array([0])], [np.array([num_items])], []
    differs = np.zeros(num_items, dtype=bool)  # whether a row's prefix is new at this level
    differs[0] = True
    node_of_row = np.zeros(num_items, dtype=np.int64)
    num_nodes = 1
    for level in range(depth):
        differs[1:] |= tokens[1:, level] != tokens[:-1, level]
        heads = np.flatnonzero(differs & (lengths > level))  # first row of each node
        # A node's rows end where the next prefix starts, be it of a node or of an item that has already ended.
        bounds = np.append(np.flatnonzero(differs), num_items)
        node_tokens.append(tokens[heads, level])
        starts.append(heads)
        ends.append(bounds[np.searchsorted(bounds, heads, side="right")])
        parents.append(node_of_row[heads])
        node_of_row = np.where(lengths > level, num_nodes - 1 + np.cumsum(differs & (lengths > level)), 0)
        num_nodes += len(heads)
    counts = np.bincount(np.concatenate(parents), minlength=num_nodes)
    first_child = 1 + np.concatenate([[0], np.cumsum(counts)])
    columns = (np.concatenate(node_tokens), first_child, np.concatenate(starts), np.concatenate(ends))
    return TrieArrays(*(torch.from_numpy(column) for column in columns)), order


def check_item_scores(item_scores: Tensor, num_items: int, num_prefixes: int, rows: Tensor | None) -> Tensor:
    """Refuse scores of another shape, negative or not finite ones; return the row `(N,)` that each prefix reads."""
    if item_scores.dim() != 2 or item_scores.shape[1] != num_items:
        raise ValueError(
            f"Got item scores of shape {tuple(item_scores.shape)}, expected (B, {num_items}): one column for each "
            "item in the order of `ItemTrie.item_ids`."
        )
    # The extremes first, in one pass without a mask of that size; a comparison with NaN is False
    low, high = item_scores.aminmax() if item_scores.numel() else item_scores.new_zeros(2)
    if not (low >= 0) & (high < torch.inf):
        wrong = ~(item_scores.isfinite() & (item_scores >= 0))
        row, column = wrong.nonzero()[0].tolist()
        raise ValueError(
            f"Got item score {item_scores[row, column].item()} at row {row}, column {column} ({int(wrong.sum())} such "
            "scores), expected finite, non-negative ones. Return probabilities, not logits."
        )
    if rows is None:
        rows = torch.arange(num_prefixes, device=item_scores.device)
    if len(rows) != num_prefixes or (len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < len(item_scores)):
        raise ValueError(
            f"Got {num_prefixes} prefixes for {len(item_scores)} rows of item scores. Pass `rows`, one valid row "
            "index for each prefix."
        )
    return rows.to(item_scores.device)  # (N,)


def _pad(
    sequences: Mapping[Any, Sequence[int]], end_token_id: int | None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Sequences as one array (I, D) padded with -1, and their lengths (I,)."""
    if not sequences:
        raise ValueError("Got an empty catalogue, expected at least one item.")
    lengths = np.fromiter(map(len, sequences.values()), np.int64, len(sequences))
    try:
        flat = np.fromiter(map(operator.index, chain.from_iterable(sequences.values())), np.int64, lengths.sum())
    except TypeError as error:
        raise TypeError("Token sequences must hold integer token ids. Tokenize texts first.") from error
    ids = list(sequences)
    if not lengths.all():
        raise ValueError(f"Item {ids[lengths.argmin()]!r} has no tokens. Give it a text or leave it out.")
    owners = np.repeat(np.arange(len(ids)), lengths)
    if flat.min() < 0:
        item_id, token = ids[owners[flat.argmin()]], flat.min()
        raise ValueError(f"Item {item_id!r} has token {token}, expected token ids of 0 or more.")
    tokens = np.full((len(ids), lengths.max() + (end_token_id is not None)), -1, dtype=np.int64)
    tokens[np.arange(tokens.shape[1]) < lengths[:, None]] = flat
    if end_token_id is not None:
        if (held := flat == end_token_id).any():
            raise ValueError(
                f"Item {ids[owners[held.argmax()]]!r} already holds end_token_id {end_token_id}, which is appended to "
                "every sequence. Pass sequences without it."
            )
        tokens[np.arange(len(ids)), lengths] = end_token_id
        lengths = lengths + 1
    return tokens, lengths


def _refuse_prefixes(
    ids: list[Any], tokens: NDArray[np.int64], lengths: NDArray[np.int64], order: NDArray[np.int64]
) -> None:
    """In sorted order a sequence stands right before those that continue it, so neighbours tell."""
    same = tokens[:-1] == tokens[1:]
    same |= np.arange(tokens.shape[1]) >= lengths[:-1, None]
    clashes = np.flatnonzero(same.all(axis=1) & (lengths[:-1] < lengths[1:]))
    if len(clashes):
        short, long = order[clashes[0]], order[clashes[0] + 1]
        raise ValueError(
            f"The token sequence of item {ids[short]!r} is the start of that of item {ids[long]!r}, so that decoding "
            f"could not tell them apart ({len(clashes)} such pairs). Pass `end_token_id` to end every sequence."
        )
