"""The catalogue as a trie of tokens, held in sorted arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .item_ids import ItemId, ItemIds
from .trie_arrays import TrieArrays, check_item_scores, score_rows
from .trie_building import build_trie_arrays, load_trie, pad_sequences, save_trie


Prefixes: TypeAlias = Sequence[Sequence[int]] | Tensor


class ItemTrie:
    """
    Every item of a catalogue as a path of tokens, for constrained decoding and for the reward mass of a prefix.

    Items are sorted by their token sequence (trie order), so the items below a prefix are one contiguous range. Nodes
    are numbered breadth first, so the children of a node are one contiguous range too. Node 0 is the root (the empty
    prefix). Items with equal token sequences share a leaf. No item's sequence may be the start of another's, so that
    exactly the leaves are items.

    A method with `prefixes` accepts lists of tokens, a `(N, D)` tensor whose rows are padded with -1 at the end, or
    node ids as a `(N,)` tensor. Methods work on the device of the tensors they are given.

    Build it with [`ItemTrie.from_sequences`] or, for millions of items, [`ItemTrie.from_arrays`].

    Args:
        item_ids (`list[str | int]` or `ItemIds`): Distinct ids in trie order, one per item.
        arrays (`TrieArrays`): Nodes and item ranges.
        end_token_id (`int`, *optional*): Token that every sequence ends with, or `None` when sequences end by
            themselves.

    Example:

    ```python
    >>> from ilrec_trl import ItemTrie

    >>> trie = ItemTrie.from_sequences({"lute": [1, 5], "harp": [1, 4], "drum": [2, 4]})
    >>> trie.next_tokens([1])
    [4, 5]
    >>> trie.items([1])
    ['harp', 'lute']
    >>> trie.token_rewards(torch.tensor([[0.1, 0.3, 0.6]]), [[1]], vocab_size=6)
    tensor([[0.0000, 0.0000, 0.0000, 0.0000, 0.2500, 0.7500]])

    ```
    """

    def __init__(self, item_ids: list[ItemId] | ItemIds, arrays: TrieArrays, end_token_id: int | None = None) -> None:
        if len(item_ids) != arrays.num_items:
            raise ValueError(f"Got {len(item_ids)} item ids for a trie of {arrays.num_items} items.")
        self._ids = item_ids if isinstance(item_ids, ItemIds) else ItemIds(item_ids)
        self.arrays = arrays
        self.end_token_id = end_token_id
        self._copies: dict[torch.device, ItemTrie] = {}

    @classmethod
    def from_sequences(cls, sequences: Mapping[Any, Sequence[int]], end_token_id: int | None = None) -> ItemTrie:
        """
        Build the trie from token sequences.

        Args:
            sequences (`dict[str | int, list[int]]`): Token ids of every item. Items may share a sequence.
            end_token_id (`int`, *optional*): Appended to every sequence. Needed if sequences differ in length, as
                those of titles do.

        Raises:
            ValueError: for an empty catalogue or sequence, a negative token, a sequence that holds `end_token_id`, or
                a sequence that another one continues.
        """
        item_ids = list(sequences)
        arrays, order = build_trie_arrays(pad_sequences(sequences), item_ids, end_token_id)
        return cls([item_ids[row] for row in order], arrays, end_token_id)

    @classmethod
    def from_arrays(
        cls, item_ids: range | Sequence[ItemId] | NDArray[Any], tokens: NDArray[Any], end_token_id: int | None = None
    ) -> ItemTrie:
        """
        Build the trie of a large catalogue from arrays, without a Python object for each item.

        Args:
            item_ids (`range` or `np.ndarray` of shape `(I,)`): Distinct integers or strings. They are kept as an
                array, and `trie.item_ids` reads from it.
            tokens (`np.ndarray` of shape `(I, D)`): Token ids of every item, rows padded with -1 at their end.
            end_token_id (`int`, *optional*): As in [`ItemTrie.from_sequences`].

        Raises:
            TypeError: for tokens that are no integers, or ids that are neither integers nor strings.
            ValueError: as [`ItemTrie.from_sequences`], or for ids that are not distinct or not one for each row.

        Example:

        ```python
        >>> trie = ItemTrie.from_arrays(range(100, 103), np.array([[1, 5], [1, 4], [2, 4]]))
        >>> trie.items([1])
        [101, 100]

        ```
        """
        arrays, order = build_trie_arrays(tokens, item_ids, end_token_id)
        return cls(ItemIds.from_source(item_ids, order), arrays, end_token_id)

    @property
    def item_ids(self) -> Sequence[ItemId]:
        """Ids in trie order. Item scores `(B, I)` are in this order."""
        return self._ids.values if isinstance(self._ids.values, list) else self._ids

    def __len__(self) -> int:
        return len(self._ids)

    def __contains__(self, item_id: object) -> bool:
        return bool(self._ids.indices([item_id])[0] >= 0)  # type: ignore[list-item]

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
    def token_ids(self) -> list[int]:
        """Distinct tokens of the items, ascending."""
        return self.arrays.node_tokens.unique().tolist()

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
        """Item indices `(N,)`: places in `item_ids`. A `ValueError` names items that are not in the catalogue."""
        indices = self._ids.indices(item_ids)
        if (missing := indices < 0).any():
            unknown = [item_ids[place] for place in np.flatnonzero(missing)[:5]]
            raise ValueError(
                f"{missing.sum()} of {len(item_ids)} item ids are not in the catalogue of {len(self)} items: "
                f"{unknown}{' ...' if missing.sum() > 5 else ''}. Ids look like {self.item_ids[0]!r}; add the "
                "missing items to the catalogue or drop them from the histories."
            )
        return torch.from_numpy(indices).to(self.device)

    def leaf_of(self, item_ids: Sequence[ItemId]) -> Tensor:
        """Leaf nodes `(N,)` of items."""
        return self.arrays.item_leaf[self.index_of(item_ids)].long()  # (N,)

    def sequence(self, item_id: ItemId) -> list[int]:
        """Token sequence of an item, with the end token if the trie has one."""
        return self.arrays.path(int(self.leaf_of([item_id])))

    def sequences(self, item_ids: Sequence[ItemId] | None = None) -> list[list[int]]:
        """Token sequences of items, of all by default, without the end token."""
        arrays = self.to("cpu").arrays
        nodes = arrays.item_leaf.long() if item_ids is None else self.leaf_of(item_ids).cpu()  # (I,)
        backwards: list[list[int]] = [[] for _ in range(len(nodes))]
        while nodes.any():
            for tokens, token in zip(backwards, arrays.node_tokens[nodes].tolist(), strict=True):
                if token not in (-1, self.end_token_id):  # the root has none
                    tokens.append(token)
            nodes = arrays.parent(nodes).clamp(min=0)
        return [tokens[::-1] for tokens in backwards]

    def children(self, nodes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """
        All continuations of nodes `(N,)`: row `n`, token and child node of each edge, each `(E,)`, by row and token.
        Leaves and -1 have none.
        """
        return self.to(nodes.device).arrays.children(nodes)

    def locate(self, prefixes: Tensor) -> Tensor:
        """Nodes `(N,)` of prefixes `(N, D)`, each row padded with -1 at its end; -1 for a prefix of no item."""
        return self.to(prefixes.device).arrays.locate(prefixes)

    def nodes(self, prefixes: Prefixes) -> Tensor:
        """Nodes `(N,)` of prefixes in any of the three forms; -1 for a prefix of no item."""
        if isinstance(prefixes, Tensor):
            return prefixes if prefixes.dim() == 1 else self.locate(prefixes)
        width = max(map(len, prefixes), default=0)
        rows = [[*prefix, *[-1] * (width - len(prefix))] for prefix in prefixes]
        return self.locate(torch.tensor(rows, dtype=torch.long, device=self.device).view(len(rows), width))

    def allowed_mask(self, prefixes: Prefixes, vocab_size: int) -> Tensor:
        """
        Tokens that can follow each prefix in some item.

        Args:
            prefixes (`list[list[int]]` or `torch.Tensor` of shape `(N, D)` or `(N,)`): Prefixes, or their nodes.
            vocab_size (`int`): Width of the mask: the model's logits, not the tokenizer's length.

        Returns:
            `torch.Tensor` of shape `(N, V)` and type bool. The row of a complete item, or of a prefix of no item, is
            all False.
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
        Share of a prefix's reward mass below each next token: `q_t` of collaborative reward regularisation.

            q_t(v) = sum_{i in items(prefix + v)} score(i) / sum_{i in items(prefix)} score(i)

        Source: ILRec (arXiv 2602.17410), collaborative reward regularisation.

        Args:
            item_scores (`torch.Tensor` of shape `(B, I)`): Non-negative scores in the order of `item_ids`. Any scale
                will do, since each prefix is normalised.
            prefixes (`list[list[int]]` or `torch.Tensor` of shape `(N, D)` or `(N,)`): Prefixes, or their nodes.
            vocab_size (`int`): Size V of the result.
            rows (`torch.Tensor` of shape `(N,)`, *optional*): Row of `item_scores` that each prefix reads. By default
                prefix `n` reads row `n`.

        Returns:
            `torch.Tensor` of shape `(N, V)` and type float32. Each row sums to 1. It is 0 if no item is below the
            prefix, if the items below it have no mass, or if the prefix is a complete item.
        """
        self.check_vocab_size(vocab_size)
        trie = self.to(item_scores.device)
        nodes = trie.nodes(prefixes).to(item_scores.device)
        check_item_scores(item_scores, len(self))
        rows = score_rows(rows, len(nodes), item_scores)
        edge_rows, tokens, shares = trie.arrays.child_shares(item_scores, nodes, rows)  # (E,)
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
        return list(self.item_ids[int(self.arrays.item_start[node]) : int(self.arrays.item_end[node])])

    def match(self, tokens: Sequence[int]) -> tuple[list[ItemId], int] | None:
        """
        Find the item with whose whole sequence `tokens` starts.

        Returns:
            `tuple[list[str | int], int]` or `None`: ids of the items with that sequence, and its length; `None` if
            there is no such item.
        """
        found = self.to("cpu").arrays.walk(tokens)
        return None if found is None else (self.items_below(found[0]), found[1])

    def save(self, directory: str | Path) -> None:
        """Write `trie.safetensors` and `trie.json` into `directory`."""
        save_trie(directory, self._ids, self.arrays, self.end_token_id)

    @classmethod
    def load(cls, directory: str | Path) -> ItemTrie:
        """Read what [`ItemTrie.save`] wrote. Arrays are mapped into memory and read when they are used."""
        return cls(**load_trie(directory))

    def check_vocab_size(self, vocab_size: int) -> None:
        """Refuse a vocabulary without some tokens of the catalogue."""
        if self.arrays.max_token >= vocab_size:
            raise ValueError(
                f"The catalogue uses token {self.arrays.max_token}, but the vocabulary has {vocab_size} entries. Add "
                "the item tokens to the tokenizer and resize the model's embeddings (`ItemCatalog.add_tokens`)."
            )
