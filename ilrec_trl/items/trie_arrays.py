"""The arrays behind an `ItemTrie`, and the walks over them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor


# Nodes with a smaller share of the reward mass are summed again, item by item. The difference of two float64 prefix
# sums has an error of about 1e-16 of the whole mass, which is 1e-10 of the mass of a node with this share.
_SMALL_MASS = 1e-6


class TrieArrays:
    """
    Nodes of a trie in breadth-first order; node 0 is the root. The arrays hold 32-bit integers, 16 bytes a node. The
    methods return 64-bit integers.

    Args:
        node_tokens (`torch.Tensor` of shape `(nodes,)`): Token on the edge into each node; -1 for the root.
        first_child (`torch.Tensor` of shape `(nodes + 1,)`): Children of node `n` are the nodes `first_child[n]` to
            `first_child[n + 1] - 1`, tokens ascending.
        item_start, item_end (`torch.Tensor` of shape `(nodes,)`): The items below node `n` have the item indices
            `item_start[n]` to `item_end[n] - 1`.
    """

    def __init__(self, node_tokens: Tensor, first_child: Tensor, item_start: Tensor, item_end: Tensor) -> None:
        self.node_tokens = node_tokens.int()
        self.first_child = first_child.int()
        self.item_start = item_start.int()
        self.item_end = item_end.int()
        self.max_token = int(self.node_tokens.max())
        self.num_items = int(self.item_end[0])
        # For each level, on the host: first node, largest number of children, and whether items end here
        self.level_starts, self.max_children, self.has_leaves = [0, 1], list[int](), list[bool]()
        first, last = 0, 1
        while first < last:
            counts = self.first_child[first : last + 1].diff()
            self.max_children.append(int(counts.max()))
            self.has_leaves.append(bool((counts == 0).any()))
            first, last = last, int(self.first_child[last])
            self.level_starts.append(last)
        self.max_children, self.level_starts = self.max_children[:-1], self.level_starts[:-1]
        self.depth = len(self.max_children)

    @cached_property
    def item_leaf(self) -> Tensor:
        """Leaf `(I,)` of each item, in trie order."""
        leaves = (self.first_child.diff() == 0).nonzero().flatten()
        starts = self.item_start[leaves]
        leaves = leaves[starts.argsort()]
        return leaves.int().repeat_interleave((self.item_end[leaves] - self.item_start[leaves]).long())

    @cached_property
    def tokens(self) -> Tensor:
        """Distinct tokens of all items `(T,)`, ascending."""
        return self.node_tokens[1:].unique().long()

    @cached_property
    def level_vocabulary(self) -> LevelVocabulary:
        """Distinct tokens of each level, see [`LevelVocabulary`]."""
        starts = self.level_starts
        return LevelVocabulary.from_levels(
            [self.node_tokens[starts[level] : starts[level + 1]] for level in range(1, self.depth + 1)]
        )

    def level_size(self, level: int) -> int:
        """Number of nodes of a level."""
        return self.level_starts[level + 1] - self.level_starts[level]

    @property
    def num_bytes(self) -> int:
        """Memory of the arrays in bytes."""
        return sum(array.numel() * array.element_size() for array in self.state().values())

    def state(self) -> dict[str, Tensor]:
        """What the constructor takes, on the CPU."""
        names = ("node_tokens", "first_child", "item_start", "item_end")
        return {name: getattr(self, name).to("cpu").contiguous() for name in names}

    def to(self, device: torch.device) -> TrieArrays:
        copy = object.__new__(TrieArrays)
        for name, value in self.__dict__.items():
            setattr(copy, name, value.to(device) if isinstance(value, Tensor | LevelVocabulary) else value)
        return copy

    def child(self, nodes: Tensor, tokens: Tensor, level: int | None = None) -> Tensor:
        """
        Nodes reached from `nodes` by `tokens`, both of any one shape; -1 where there is none. Give `level` if all
        `nodes` other than -1 are of that level, which makes the search shorter.
        """
        known = nodes.clamp(min=0)
        low, end = self.first_child[known].long(), self.first_child[known + 1].long()
        high = end
        most = max(self.max_children) if level is None else self.max_children[level]
        last = len(self.node_tokens) - 1
        for _ in range(most.bit_length()):
            middle = (low + high) // 2
            after = (low < high) & (self.node_tokens[middle.clamp(max=last)] < tokens)
            low, high = torch.where(after, middle + 1, low), torch.where(after, high, middle)
        found = (low < end) & (self.node_tokens[low.clamp(max=last)] == tokens) & (nodes >= 0)
        return torch.where(found, low, -1)

    def children(self, nodes: Tensor, num_edges: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """
        Row, token and child node of every edge below `nodes` `(N,)`, each `(E,)`. With `num_edges` (E) the host does
        not wait for the accelerator.
        """
        starts, counts = self._child_ranges(nodes)  # (N,)
        rows, child_nodes = ragged_ranges(starts, counts, num_edges)  # (E,)
        return rows, self.node_tokens[child_nodes].long(), child_nodes

    def padded_children(self, nodes: Tensor, level: int) -> tuple[Tensor, Tensor, Tensor]:
        """
        All continuations of some nodes of one level, in a rectangle. The host does not wait for the accelerator.

        Args:
            nodes (`torch.Tensor` of shape `(..., W)`): Nodes of that level; -1 has no children.
            level (`int`): Tokens before the nodes.

        Returns:
            `tuple[torch.Tensor, torch.Tensor, torch.Tensor]`: tokens (ascending), child nodes, and a mask of those
            that exist, each `(..., W, C)` where `C` is the largest number of children. Values outside the mask have
            no meaning.
        """
        starts, counts = self._child_ranges(nodes)  # (..., W)
        # On the CPU the width for these very nodes costs no synchronisation
        width = int(counts.max()) if nodes.device.type == "cpu" else self.max_children[level]
        places = torch.arange(width, device=nodes.device)  # (C,)
        children = (starts[..., None] + places).clamp_(max=len(self.node_tokens) - 1)  # (..., W, C)
        return self.node_tokens[children].long(), children, places < counts[..., None]

    def child_counts(self, nodes: Tensor) -> Tensor:
        """Number of children of each of `nodes`, in their shape; 0 for -1."""
        return self._child_ranges(nodes)[1]

    def _child_ranges(self, nodes: Tensor) -> tuple[Tensor, Tensor]:
        """First child and number of children of each node, in the shape of `nodes`."""
        known = nodes.clamp(min=0)
        starts = self.first_child[known].long()
        return starts, torch.where(nodes >= 0, self.first_child[known + 1] - starts, 0)

    def is_leaf(self, nodes: Tensor) -> Tensor:
        """Whether each of `nodes`, of any shape, is a complete item; False for -1."""
        known = nodes.clamp(min=0)
        return (nodes >= 0) & (self.first_child[known] == self.first_child[known + 1])

    def only_leaf(self, nodes: Tensor) -> Tensor:
        """The one leaf at or below each of `nodes`, of any shape; -1 if there are several, and for -1."""
        known = nodes.clamp(min=0)
        first, last = self.item_leaf[self.item_start[known]], self.item_leaf[self.item_end[known] - 1]
        return torch.where((nodes >= 0) & (first == last), first, -1).long()

    def locate(self, prefixes: Tensor) -> Tensor:
        """Nodes `(N,)` of prefixes `(N, D)`, padded with -1 at the end; -1 for a prefix of no item."""
        padding = prefixes < 0
        if (padding[:, :-1] & ~padding[:, 1:]).any():
            raise ValueError("A row of prefixes has a token after padding. Pad with -1 at the end of each row only.")
        return self.descend(prefixes)

    def descend(self, prefixes: Tensor) -> Tensor:
        """As `locate`, for prefixes that are known to have padding at the end only."""
        nodes = prefixes.new_zeros(len(prefixes), dtype=torch.long)  # (N,)
        for level in range(prefixes.shape[1]):
            deeper = self.child(nodes, prefixes[:, level], level) if level < self.depth else nodes.new_tensor(-1)
            nodes = torch.where(prefixes[:, level] < 0, nodes, deeper)
        return nodes

    def child_shares(self, item_scores: Tensor, nodes: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As `child_masses`, with each mass divided by the mass of its node; 0 if the node has no mass."""
        edge_rows, tokens, masses = self.child_masses(item_scores, nodes, rows)
        totals = masses.new_zeros(len(nodes)).index_add_(0, edge_rows, masses)  # (N,)
        return edge_rows, tokens, masses / torch.where(totals > 0, totals, 1.0)[edge_rows]

    def child_masses(self, item_scores: Tensor, nodes: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """
        Sum of `item_scores[rows[n]]` over the items below each child of `nodes[n]`.

        Args:
            item_scores (`torch.Tensor` of shape `(B, I)`): Non-negative scores in trie order.
            nodes (`torch.Tensor` of shape `(N,)`): Node ids.
            rows (`torch.Tensor` of shape `(N,)`): Row of scores that each node reads.

        Returns:
            `tuple[torch.Tensor, torch.Tensor, torch.Tensor]`: row `n`, token and mass (float64) of each edge, `(E,)`.
        """
        sums = item_scores.new_empty(len(item_scores), self.num_items + 1, dtype=torch.float64)
        sums[:, 0] = 0
        torch.cumsum(item_scores, dim=1, dtype=torch.float64, out=sums[:, 1:])  # (B, I + 1)
        edge_rows, tokens, child_nodes = self.children(nodes)  # (E,)
        score_rows = rows[edge_rows]
        flat, offsets = sums.flatten(), score_rows * sums.size(1)
        masses = flat[offsets + self.item_end[child_nodes]] - flat[offsets + self.item_start[child_nodes]]
        known = nodes.clamp(min=0)
        totals = sums[rows, self.item_end[known]] - sums[rows, self.item_start[known]]  # (N,)
        doubtful = (totals < _SMALL_MASS * sums[rows, -1])[edge_rows].nonzero().flatten()
        if len(doubtful):
            starts = self.item_start[child_nodes[doubtful]].long()
            edges, items = ragged_ranges(starts, self.item_end[child_nodes[doubtful]] - starts)
            exact = masses.new_zeros(len(doubtful))
            masses[doubtful] = exact.index_add_(0, edges, item_scores[score_rows[doubtful][edges], items].double())
        return edge_rows, tokens, masses.clamp(min=0)

    def num_items_below(self, nodes: Tensor) -> Tensor:
        """Number of items below each of `nodes`, in their shape."""
        return (self.item_end[nodes] - self.item_start[nodes]).long()

    def parent(self, nodes: Tensor) -> Tensor:
        """Node `(N,)` above each of `nodes` `(N,)`, none of them the root."""
        return torch.searchsorted(self.first_child, nodes.int(), right=True) - 1

    def path(self, node: int) -> list[int]:
        """Tokens from the root to `node`."""
        tokens: list[int] = []
        while node > 0:
            tokens.append(int(self.node_tokens[node]))
            node = int(self.parent(torch.tensor([node], device=self.node_tokens.device)))
        return tokens[::-1]

    def walk(self, tokens: Sequence[int]) -> tuple[int, int] | None:
        """The leaf that a path along `tokens` ends in, and the number of tokens read; `None` if there is none."""
        node_tokens, first_child = self.node_tokens.numpy(), self.first_child.numpy()
        node = 0
        for read, token in enumerate(tokens, start=1):
            start, end = first_child[node : node + 2].tolist()
            place = start + int(node_tokens[start:end].searchsorted(token))
            if place == end or node_tokens[place] != token:
                return None
            node = place
            if first_child[node] == first_child[node + 1]:
                return node, read
        return None


@dataclass
class LevelVocabulary:
    """
    The restricted vocabulary of each level of a trie. Levels that share a token form one group: each level of semantic
    IDs is usually a group of its own, and all levels of titles are one group.

    Args:
        tokens (`list[torch.Tensor]`): Distinct tokens of each group, `(R,)`, ascending.
        group_of_level (`torch.Tensor` of shape `(D,)`): Group of each level; level 0 has the first token of every
            item.
        index_of_token (`torch.Tensor` of shape `(max_token + 1,)`): Token index: place of each token in its group; 0
            for tokens of no item.
    """

    tokens: list[Tensor]
    group_of_level: Tensor
    index_of_token: Tensor

    @classmethod
    def from_levels(cls, levels: list[Tensor]) -> LevelVocabulary:
        """Group the levels, given the tokens on the edges of each one, in any order and with repetitions."""
        groups: list[tuple[list[int], Tensor]] = []
        for level, edges in enumerate(levels):
            members, tokens = [level], edges.unique().long()
            for group in [group for group in groups if torch.isin(tokens, group[1]).any()]:
                groups.remove(group)
                members, tokens = [*group[0], *members], torch.cat([group[1], tokens]).unique()
            groups.append((members, tokens))
        device = levels[0].device
        group_of_level = torch.zeros(len(levels), dtype=torch.long, device=device)
        size = int(max(tokens[-1] for _, tokens in groups)) + 1
        index_of_token = torch.zeros(size, dtype=torch.long, device=device)
        for number, (members, tokens) in enumerate(groups):
            group_of_level[torch.tensor(members, device=device)] = number
            index_of_token[tokens] = torch.arange(len(tokens), device=device)
        return cls([tokens for _, tokens in groups], group_of_level, index_of_token)

    def to(self, device: torch.device) -> LevelVocabulary:
        return LevelVocabulary(
            [tokens.to(device) for tokens in self.tokens],
            self.group_of_level.to(device),
            self.index_of_token.to(device),
        )


def ragged_ranges(starts: Tensor, counts: Tensor, total: int | None = None) -> tuple[Tensor, Tensor]:
    """All numbers from `starts[n]` to `starts[n] + counts[n] - 1`, row by row: row `n` `(E,)` and number `(E,)`."""
    rows = torch.repeat_interleave(counts, output_size=total)  # (E,)
    offsets = starts - (counts.cumsum(0) - counts)  # (N,)
    return rows, torch.arange(len(rows), device=rows.device) + offsets[rows]


def check_item_scores(
    scores: Tensor,
    num_items: int,
    num_rows: int | None = None,
    *,
    source: str = "item_scores",
    histories: Sequence[Any] | None = None,
) -> None:
    """
    Refuse item scores that a loss or a ranking cannot use.

    Args:
        scores (`torch.Tensor` of shape `(B, I)`): The scores.
        num_items (`int`), num_rows (`int`, *optional*): I, and B where it is known.
        source (`str`, *optional*, defaults to `"item_scores"`): What gave the scores, for the message.
        histories (`list`, *optional*): History of each row. A row whose scores are all 0 is then refused, too.

    Raises:
        ValueError: For another shape, scores that are negative or not finite, or a history without a score above 0.
    """
    rows = "B" if num_rows is None else num_rows
    if scores.dim() != 2 or scores.shape[1] != num_items or num_rows not in (None, len(scores)):
        raise ValueError(
            f"{source} has shape {tuple(scores.shape)}, expected ({rows}, {num_items}): one score for each item in "
            "the order of `ItemTrie.item_ids`."
        )
    # The extremes first, in one pass without a mask of that size; a comparison with NaN is False
    low, high = scores.aminmax() if scores.numel() else scores.new_zeros(2)
    if not (low >= 0) & (high < torch.inf):
        wrong = ~(scores.isfinite() & (scores >= 0))
        row, item_index = wrong.nonzero()[0].tolist()
        raise ValueError(
            f"{source} has score {scores[row, item_index].item()} at row {row}, column {item_index} "
            f"({int(wrong.sum())} such scores), expected finite scores of at least 0. Return probabilities, not "
            "logits, for example with a softmax."
        )
    if histories is not None and len(empty := (scores.sum(-1) == 0).nonzero()):
        raise ValueError(
            f"{source} gives score 0 to every item for history {histories[int(empty[0])]}, expected a score above 0 "
            "for some item. Where nothing is known, return item popularity."
        )


def score_rows(rows: Tensor | None, num_prefixes: int, item_scores: Tensor) -> Tensor:
    """The row of `item_scores` `(B, I)` that each prefix reads, `(N,)`: `rows`, or by default one after the other."""
    if rows is None:
        rows = torch.arange(num_prefixes, device=item_scores.device)
    if len(rows) != num_prefixes or (len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < len(item_scores)):
        raise ValueError(
            f"Got {num_prefixes} prefixes for {len(item_scores)} rows of item scores. Pass `rows`, one valid row "
            "index for each prefix."
        )
    return rows.to(item_scores.device)
