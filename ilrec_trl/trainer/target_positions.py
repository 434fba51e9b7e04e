"""Which positions of a batch the loss is about, and what the catalogue says of each."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from ..items.item_trie import ItemTrie
from ..items.level_vocabulary import LevelVocabulary
from .cross_layer_forward import PositionGroup
from .target_items import target_prefixes, token_offsets


@dataclass
class TargetPositions:
    """
    What is known of the N target positions of a batch: position `t` is where token `t + 1` is predicted. They are
    sorted by the group of their level, and within a group in row-major order.

    Args:
        groups (`list[PositionGroup]`):
            Where they are; the last holds the positions whose next token has a label, but belongs to no target.
        target_ids, columns (`torch.Tensor` of shape `(N,)`):
            The next tokens, and where they stand among the tokens of their group.
        items (`torch.Tensor` of shape `(N,)`):
            0-based number of the target item in the batch.
        nodes (`torch.Tensor` of shape `(N,)`, *optional*):
            Trie node of each position's prefix, with an item trie.
        edge_bounds (`list[int]`, *optional*):
            Of the continuations of all positions one after the other, those of position `n` are the ones from
            `edge_bounds[n]` to `edge_bounds[n + 1] - 1`. With an item trie.
        vocabulary ([`LevelVocabulary`], *optional*):
            Tokens of each group; without it there is one group of all tokens.
    """

    groups: list[PositionGroup]
    target_ids: Tensor
    columns: Tensor
    items: Tensor
    nodes: Tensor | None = None
    edge_bounds: list[int] | None = None
    vocabulary: LevelVocabulary | None = None

    @classmethod
    def from_batch(
        cls,
        input_ids: Tensor,
        labels: Tensor,
        target_items: Tensor | None,
        item_trie: ItemTrie | None,
        by_level: bool = False,
    ) -> TargetPositions:
        """
        On an accelerator this waits for the device, since sizes must be known on the host; the forward pass and the
        loss then need not.

        Args:
            input_ids, labels (`torch.Tensor` of shape `(B, S)`):
                Tokens and labels of the batch.
            target_items (`torch.Tensor` of shape `(B, S)`, *optional*):
                Numbers as [`DataCollatorForItemCompletion`] gives them; by default every token with a label is one.
            item_trie ([`ItemTrie`], *optional*):
                The catalogue.
            by_level (`bool`, *optional*, defaults to `False`):
                Whether to group positions by the [`LevelVocabulary`] of the catalogue.

        Raises:
            `ValueError`: where a target token does not continue its item in the catalogue.
        """
        labelled = labels != -100  # (B, S)
        target_items = labelled.long() if target_items is None else target_items
        if item_trie is not None and item_trie.end_token_id is None:
            target_items = target_items.clamp(min=0)  # an end that is no part of the items is plain text
        offsets = token_offsets(target_items)  # (B, S)
        vocabulary = item_trie.to(labels.device).arrays.level_vocabulary if by_level else None
        vocabularies: list[Tensor | None] = [None] if vocabulary is None else vocabulary.tokens
        numbers = torch.zeros_like(labels)  # (B, S), of the group
        if vocabulary is not None:
            numbers = vocabulary.group_of_level[offsets.clamp(max=item_trie.depth - 1)]
        last = len(vocabularies)
        numbers = torch.where(labelled, torch.where(target_items != 0, numbers, last), last + 1)
        # The first token of a row is never predicted, and TRL masks that of each sequence of a padding-free row; both
        # stand before the tokens that follow them in their item all the same
        numbers = numbers[:, 1:]  # (B, S - 1)
        sizes = (numbers.flatten() == torch.arange(last + 1, device=labels.device)[:, None]).sum(1).tolist()
        order = numbers.flatten().argsort(stable=True)[: sum(sizes)]  # (M,)
        rows, columns = order // max(numbers.size(1), 1), order % max(numbers.size(1), 1)
        places = (order + rows + 1)[: sum(sizes[:-1])]  # (N,), of the next tokens in the flattened (B, S)
        target_ids = labels.flatten()[places]
        groups = [
            PositionGroup(*where, is_target=number < last, tokens=vocabularies[number] if number < last else None)
            for number, where in enumerate(
                zip(rows.split(sizes), (columns - numbers.size(1)).split(sizes), strict=True)
            )
        ]
        targets = cls(groups, target_ids, target_ids, target_items.flatten()[places].abs() - 1, vocabulary=vocabulary)
        if item_trie is not None:
            targets._locate(item_trie, target_prefixes(input_ids, offsets, places, item_trie.depth))
        if vocabulary is not None:
            targets.columns = vocabulary.column_of_token[target_ids]
        return targets

    def _locate(self, item_trie: ItemTrie, prefixes: Tensor) -> None:
        arrays = item_trie.to(prefixes.device).arrays
        self.nodes = arrays.descend(prefixes)  # (N,)
        strays = (arrays.child(self.nodes, self.target_ids) < 0).sum()
        *counts, num_strays = torch.cat([arrays.child_counts(self.nodes), strays[None]]).tolist()
        if num_strays:
            raise ValueError(
                f"{num_strays} of {len(self.nodes)} target tokens of the batch are in no item of `item_trie`. Let the "
                "trainer prepare the data set (no `skip_prepare_dataset`), or give its rows a `target_items` "
                "column that numbers their items, see `DataCollatorForItemCompletion`."
            )
        self.edge_bounds = [0, *accumulate(counts)]

    def continuations(self, item_trie: ItemTrie, block: slice) -> tuple[Tensor, Tensor]:
        """Row in the block and column of every continuation of a block of positions, each `(E,)`."""
        arrays = item_trie.to(self.nodes.device).arrays
        num_edges = self.edge_bounds[block.stop] - self.edge_bounds[block.start]
        rows, tokens, _ = arrays.children(self.nodes[block], num_edges)
        return rows, tokens if self.vocabulary is None else self.vocabulary.column_of_token[tokens]
