"""The catalogue as a trie of tokens, held in sorted arrays."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from .trie_arrays import TrieArrays, build_trie_arrays, check_item_scores


ItemId: TypeAlias = str | int
Prefixes: TypeAlias = Sequence[Sequence[int]] | Tensor


class ItemTrie:
    """
    Every item of a catalogue as a path of tokens, for constrained decoding and for the reward mass of a prefix.

    Arrays only: items are sorted by their token sequence, so the items below a prefix are one contiguous range, and
    nodes are numbered breadth first, so the children of a node are one contiguous range too. Node 0 is the root (the
    empty prefix) and node `e + 1` is what edge `e` leads to. Items with one and the same token sequence share a leaf.
    No item's sequence may continue another's: then leaves, and only leaves, are items.

    Wherever a method takes `prefixes`, it accepts lists of tokens, a `(N, D)` tensor whose rows are padded with -1 at
    the end, or node ids as a `(N,)` tensor. Methods work on the device of the tensors they are given.

    Build it with [`ItemTrie.from_sequences`].

    Args:
        item_ids (`list[str | int]`):
            Ids in trie order, one per item.
        arrays (`TrieArrays`):
            Nodes and item ranges.
        end_token_id (`int`, *optional*):
            Token that every sequence ends with, or `None` when sequences end by themselves.

    Example:

    ```python
    >>> from ilrec_trl.items.item_trie import ItemTrie

    >>> trie = ItemTrie.from_sequences({"lute": [1, 5], "harp": [1, 4], "drum": [2, 4]})
    >>> trie.next_tokens([1])
    [4, 5]
    >>> trie.items([1])
    ['harp', 'lute']
    >>> trie.token_rewards(torch.tensor([[0.1, 0.3, 0.6]]), [[1]], vocab_size=6)
    tensor([[0.0000, 0.0000, 0.0000, 0.0000, 0.2500, 0.7500]])

    ```
    """

    def __init__(self, item_ids: list[ItemId], arrays: TrieArrays, end_token_id: int | None = None) -> None:
        if len(item_ids) != arrays.num_items:
            raise ValueError(f"Got {len(item_ids)} item ids for a trie of {arrays.num_items} items.")
        self.item_ids = item_ids
        self.arrays = arrays
        self.end_token_id = end_token_id
        self._columns = {item_id: column for column, item_id in enumerate(item_ids)}
        if len(self._columns) != len(item_ids):
            raise ValueError("Item ids must be distinct: each names one item of the catalogue.")
        self._copies: dict[torch.device, ItemTrie] = {}

    @classmethod
    def from_sequences(cls, sequences: Mapping[Any, Sequence[int]], end_token_id: int | None = None) -> ItemTrie:
        """
        Build the trie by one lexicographic sort.

        Args:
            sequences (`dict[str | int, list[int]]`):
                Token ids of every item. Items may share a sequence.
            end_token_id (`int`, *optional*):
                Appended to every sequence. Needed when sequences differ in length, as titles do.

        Raises:
            ValueError: for an empty catalogue or sequence, a negative token, a sequence that holds `end_token_id`, or
                a sequence that another one continues.
        """
        arrays, order = build_trie_arrays(sequences, end_token_id)
        item_ids = list(sequences)
        return cls([item_ids[row] for row in order], arrays, end_token_id)

    def __len__(self) -> int:
        return len(self.item_ids)

    def __contains__(self, item_id: object) -> bool:
        return item_id in self._columns

    def __repr__(self) -> str:
        return f"ItemTrie({len(self)} items, {self.num_nodes} nodes, depth {self.depth})"

    @property
    def depth(self) -> int:
        """Tokens of the longest sequence, the end token included."""
        return self.arrays.depth

    @property
    def num_nodes(self) -> int:
        """Nodes, the root included."""
        return len(self.arrays.node_tokens)

    @property
    def device(self) -> torch.device:
        return self.arrays.node_tokens.device

    def to(self, device: torch.device | str) -> ItemTrie:
        """The trie on `device`; each device's copy is made once and kept."""
        device = torch.empty(0, device=device).device  # "cuda" becomes "cuda:0"
        if device == self.device:
            return self
        if device not in self._copies:
            copy = object.__new__(ItemTrie)
            copy.__dict__.update(self.__dict__, arrays=self.arrays.to(device))
            self._copies[self.device] = self
            self._copies[device] = copy
        return self._copies[device]

    def index_of(self, item_ids: Sequence[ItemId]) -> Tensor:
        """Trie-order columns `(N,)` of items; `ValueError` naming those that are not in the catalogue."""
        unknown = [item_id for item_id in item_ids if item_id not in self._columns]
        if unknown:
            raise ValueError(
                f"{len(unknown)} of {len(item_ids)} item ids are not in the catalogue of {len(self)} items: "
                f"{unknown[:5]}{' ...' if len(unknown) > 5 else ''}. Ids look like {self.item_ids[0]!r}; add the "
                "missing items to the catalogue or drop them from the histories."
            )
        return torch.tensor([self._columns[item_id] for item_id in item_ids], dtype=torch.long, device=self.device)

    def leaf_of(self, item_ids: Sequence[ItemId]) -> Tensor:
        """Leaf nodes `(N,)` of items."""
        return self.arrays.item_leaf[self.index_of(item_ids)]  # (N,)

    def sequence(self, item_id: ItemId) -> list[int]:
        """Token sequence of an item, with the end token if the trie has one."""
        return self.arrays.path(int(self.leaf_of([item_id])))

    def child(self, nodes: Tensor, tokens: Tensor) -> Tensor:
        """Nodes `(N,)` reached from `nodes` `(N,)` by `tokens` `(N,)`; -1 where no item continues so."""
        return self.to(nodes.device).arrays.child(nodes, tokens)

    def children(self, nodes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """
        All continuations of some nodes, ragged.

        Args:
            nodes (`torch.Tensor` of shape `(N,)`):
                Node ids; -1 and leaves have no children.

        Returns:
            `tuple[torch.Tensor, torch.Tensor, torch.Tensor]`: row `n` of each edge, its token and the node it leads
            to, each of shape `(E,)`; by row, tokens ascending.
        """
        return self.to(nodes.device).arrays.children(nodes)

    def is_leaf(self, nodes: Tensor) -> Tensor:
        """Whether each of `nodes` `(N,)` is a complete item; False for -1."""
        first_child = self.to(nodes.device).arrays.first_child
        known = nodes.clamp(min=0)
        return (nodes >= 0) & (first_child[known] == first_child[known + 1])  # (N,)

    def locate(self, prefixes: Tensor) -> Tensor:
        """
        Nodes of prefixes.

        Args:
            prefixes (`torch.Tensor` of shape `(N, D)`):
                Tokens, each row padded with -1 at its end.

        Returns:
            `torch.Tensor` of shape `(N,)`: node ids, -1 where no item starts so.
        """
        padding = prefixes < 0
        if (padding[:, :-1] & ~padding[:, 1:]).any():
            raise ValueError("A row of prefixes has a token after padding. Pad with -1 at the end of each row only.")
        nodes = prefixes.new_zeros(len(prefixes), dtype=torch.long)  # (N,)
        for level in range(prefixes.shape[1]):
            nodes = torch.where(padding[:, level], nodes, self.child(nodes, prefixes[:, level]))
        return nodes

    def nodes(self, prefixes: Prefixes) -> Tensor:
        """Nodes `(N,)` of prefixes in any of the three forms; -1 where no item starts so."""
        if isinstance(prefixes, Tensor):
            return prefixes if prefixes.dim() == 1 else self.locate(prefixes)
        width = max(map(len, prefixes), default=0)
        rows = [[*prefix, *[-1] * (width - len(prefix))] for prefix in prefixes]
        return self.locate(torch.tensor(rows, dtype=torch.long, device=self.device).view(len(rows), width))

    def allowed_mask(self, prefixes: Prefixes, vocab_size: int) -> Tensor:
        """
        Tokens that can follow each prefix in some item.

        Args:
            prefixes (`list[list[int]]` or `torch.Tensor` of shape `(N, D)` or `(N,)`):
                Prefixes, or their nodes.
            vocab_size (`int`):
                Width of the mask: the model's logits, not the tokenizer's length.

        Returns:
            `torch.Tensor` of shape `(N, V)` and type bool. A row of a complete item or of no item at all is False
            throughout; what that means is the caller's to decide.
        """
        self.check_vocab_size(vocab_size)
        nodes = self.nodes(prefixes)
        rows, tokens, _ = self.children(nodes)
        mask = torch.zeros(len(nodes), vocab_size, dtype=torch.bool, device=nodes.device)  # (N, V)
        mask[rows, tokens] = True
        return mask

    def token_rewards(
        self, item_scores: Tensor, prefixes: Prefixes, vocab_size: int, rows: Tensor | None = None
    ) -> Tensor:
        """
        Share of a prefix's reward mass that lies below each next token: `q_t` of collaborative reward regularisation.

            q_t(v) = sum_{i in items(prefix + v)} score(i) / sum_{i in items(prefix)} score(i)

        Source: ILRec (arXiv 2602.17410), collaborative reward regularisation.

        Args:
            item_scores (`torch.Tensor` of shape `(B, I)`):
                Non-negative scores, columns as in `item_ids`. Any scale: each prefix is normalised by itself.
            prefixes (`list[list[int]]` or `torch.Tensor` of shape `(N, D)` or `(N,)`):
                Prefixes, or their nodes.
            vocab_size (`int`):
                Width of the result.
            rows (`torch.Tensor` of shape `(N,)`, *optional*):
                Row of `item_scores` that each prefix reads. By default prefix `n` reads row `n`.

        Returns:
            `torch.Tensor` of shape `(N, V)` and type float32. Each row sums to 1, or is 0 where no item is below the
            prefix, or none of them has any mass, or the prefix is a complete item.
        """
        self.check_vocab_size(vocab_size)
        trie = self.to(item_scores.device)
        nodes = trie.nodes(prefixes).to(item_scores.device)
        rows = check_item_scores(item_scores, len(self), len(nodes), rows)
        edge_rows, tokens, masses = trie.arrays.child_masses(item_scores, nodes, rows)
        totals = masses.new_zeros(len(nodes)).index_add_(0, edge_rows, masses)  # (N,)
        shares = masses / torch.where(totals > 0, totals, 1.0)[edge_rows]  # (E,)
        rewards = torch.zeros(len(nodes), vocab_size, dtype=torch.float32, device=nodes.device)  # (N, V)
        rewards[edge_rows, tokens] = shares.float()
        return rewards

    def next_tokens(self, prefix: Sequence[int]) -> list[int]:
        """Tokens that can follow `prefix`, ascending; empty for a complete item and for no item."""
        return self.children(self.nodes([prefix]))[1].tolist()

    def items(self, prefix: Sequence[int]) -> list[ItemId]:
        """Ids of the items whose sequence starts with `prefix`, in trie order."""
        node = int(self.nodes([prefix]))
        return self.items_below(node) if node >= 0 else []

    def items_below(self, node: int) -> list[ItemId]:
        """Ids of the items below a node; for a leaf, the items that share its sequence."""
        return self.item_ids[int(self.arrays.item_start[node]) : int(self.arrays.item_end[node])]

    def match(self, tokens: Sequence[int]) -> tuple[list[ItemId], int] | None:
        """
        Read one item off the start of `tokens`.

        Returns:
            `tuple[list[str | int], int]` or `None`: the items whose whole sequence `tokens` starts with, and that
            sequence's length; `None` where there is no such item.
        """
        found = self.to("cpu").arrays.walk(tokens)
        return None if found is None else (self.items_below(found[0]), found[1])

    def save(self, directory: str | Path) -> None:
        """Write `trie.safetensors` and `trie.json` into `directory`."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        save_file(self.arrays.state(), directory / "trie.safetensors")
        about = {"format": 1, "end_token_id": self.end_token_id, "item_ids": self.item_ids}
        (directory / "trie.json").write_text(json.dumps(about, ensure_ascii=False), encoding="utf-8")

    @classmethod
    def load(cls, directory: str | Path) -> ItemTrie:
        """Read what [`ItemTrie.save`] wrote."""
        about = json.loads((Path(directory) / "trie.json").read_text(encoding="utf-8"))
        if about.get("format") != 1:
            raise ValueError(f"{directory} holds a trie of format {about.get('format')}, expected 1. Build it again.")
        arrays = TrieArrays(**load_file(Path(directory) / "trie.safetensors"))
        return cls(about["item_ids"], arrays, about["end_token_id"])

    def check_vocab_size(self, vocab_size: int) -> None:
        """Refuse a vocabulary that lacks tokens of the catalogue."""
        if self.arrays.max_token >= vocab_size:
            raise ValueError(
                f"The catalogue uses token {self.arrays.max_token}, but the vocabulary has {vocab_size} entries. Add "
                "the item tokens to the tokenizer and resize the model's embeddings (`ItemCatalog.add_tokens`)."
            )
