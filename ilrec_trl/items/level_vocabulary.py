"""The tokens that items have at each level of a trie: all that a model's head need be asked for there."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class LevelVocabulary:
    """
    Levels of a trie, in groups that share no token: each level of a semantic ID with codes of its own is one, while
    the levels of titles are all one.

    Args:
        tokens (`list[torch.Tensor]`):
            Distinct tokens of each group, `(R,)`, ascending.
        group_of_level (`torch.Tensor` of shape `(D,)`):
            Group of each level; level 0 holds the first token of every item.
        column_of_token (`torch.Tensor` of shape `(max_token + 1,)`):
            Place of each token in its group; 0 for tokens of no item.
    """

    tokens: list[Tensor]
    group_of_level: Tensor
    column_of_token: Tensor

    @classmethod
    def from_levels(cls, levels: list[Tensor]) -> LevelVocabulary:
        """From the tokens on the edges of each level, in any order and as often as they occur."""
        groups: list[tuple[list[int], Tensor]] = []
        for level, edges in enumerate(levels):
            members, tokens = [level], edges.unique().long()
            for group in [group for group in groups if torch.isin(tokens, group[1]).any()]:
                groups.remove(group)
                members, tokens = [*group[0], *members], torch.cat([group[1], tokens]).unique()
            groups.append((members, tokens))
        device = levels[0].device
        group_of_level = torch.zeros(len(levels), dtype=torch.long, device=device)
        column_of_token = torch.zeros(
            int(max(tokens[-1] for _, tokens in groups)) + 1, dtype=torch.long, device=device
        )
        for number, (members, tokens) in enumerate(groups):
            group_of_level[torch.tensor(members, device=device)] = number
            column_of_token[tokens] = torch.arange(len(tokens), device=device)
        return cls([tokens for _, tokens in groups], group_of_level, column_of_token)

    def to(self, device: torch.device) -> LevelVocabulary:
        return LevelVocabulary(
            [tokens.to(device) for tokens in self.tokens],
            self.group_of_level.to(device),
            self.column_of_token.to(device),
        )
