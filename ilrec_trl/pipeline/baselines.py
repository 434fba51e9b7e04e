"""Methods that need no training: popularity, and which item followed which."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from ..data.splits import NextItemExample, UserSequence
from ..evaluation.exact_ranking import ranks_of_scores
from ..items.item_trie import ItemTrie
from ..report.results import MethodRanks
from ..rewards.transitions import TransitionReward


def popularity_ranks(
    train: Sequence[UserSequence],
    examples: Sequence[NextItemExample],
    item_ids: Sequence[str],
    exclude_history: bool = False,
) -> MethodRanks:
    """Ranks by the number of training interactions; items of one count share a place."""
    counts = Counter(item for _, items in train for item in items)
    values = np.array([counts[item] for item in item_ids])  # (I,)
    ordered = np.sort(values)
    targets = np.array([counts[example.item] for example in examples])  # (U,)
    not_below = len(ordered) - np.searchsorted(ordered, targets, side="left")  # (U,)
    above: NDArray[np.int64] = len(ordered) - np.searchsorted(ordered, targets, side="right")  # (U,)
    if exclude_history:
        for row, example in enumerate(examples):
            seen = np.array([counts[item] for item in set(example.history) - {example.item}])
            above[row] -= (seen > targets[row]).sum()
            not_below[row] -= (seen >= targets[row]).sum()
    starts = (above + 1).astype(np.float64)
    if exclude_history:
        starts[[example.item in example.history for example in examples]] = np.inf
    return MethodRanks("popularity", [example.user for example in examples], starts, not_below - above)


def transition_ranks(
    train: Sequence[UserSequence],
    examples: Sequence[NextItemExample],
    item_trie: ItemTrie,
    exclude_history: bool = False,
    batch_size: int = 64,
) -> MethodRanks:
    """Ranks by what followed the latest items in the training sequences, the user's own among them."""
    reward_func = TransitionReward(train, item_trie)
    ranks: list[tuple[float, int]] = []
    for first in range(0, len(examples), batch_size):
        batch = examples[first : first + batch_size]
        scores = reward_func.score([example.history for example in batch])  # (B, I)
        if exclude_history:
            for row, example in enumerate(batch):
                scores[row, item_trie.index_of(list(example.history))] = -torch.inf
        ranks += ranks_of_scores(scores, item_trie.index_of([example.item for example in batch]))
    starts, ties = np.array([start for start, _ in ranks]), np.array([number for _, number in ranks])
    settings = {name: getattr(reward_func, name) for name in ("window", "history", "decay", "smoothing")}
    return MethodRanks("transitions", [example.user for example in examples], starts, ties, settings=settings)
