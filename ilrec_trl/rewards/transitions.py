"""Item transitions as a reward: no training, and each user is scored without that user's own sequence."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..data.splits import UserSequence
from ..items.item_trie import ItemTrie


class TransitionReward:
    """
    Probabilities of all items as the next one, by how often they came after the latest items in other users'
    sequences: sequential rules (Ludewig and Jannach, "Evaluation of Session-based Recommendation Algorithms", 2018).

    An item at distance g after another one counts 1/g for it. Row x of these counts, with `smoothing` times popularity
    added and divided by its sum, is the distribution of what follows x. The score is the mean of the distributions of
    the latest items, with weights that fall by `decay` from one item to the one before. The sequences of the scored
    user do not count, so that no target is rewarded for having been seen.

    Args:
        sequences (`list[UserSequence]`): Training sequences, for example `splits.train`.
        item_trie ([`ItemTrie`]): Gives the order of the scores; all items must be in it.
        window (`int`, *optional*, defaults to `3`): Largest distance that counts.
        history (`int`, *optional*, defaults to `5`): Number of latest items of a history that are used.
        decay (`float`, *optional*, defaults to `0.7`): Weight of an item relative to the one after it.
        smoothing (`float`, *optional*, defaults to `3.0`): Weight of popularity in counts, above 0.
        user_column (`str`, *optional*, defaults to `"user"`): Column of the data set with the user's id.

    Raises:
        ValueError: For no sequences, an item that is not in the trie, or numbers outside their range.
    """

    is_fixed = True

    def __init__(
        self,
        sequences: Sequence[UserSequence],
        item_trie: ItemTrie,
        *,
        window: int = 3,
        history: int = 5,
        decay: float = 0.7,
        smoothing: float = 3.0,
        user_column: str = "user",
    ) -> None:
        if window < 1 or history < 1 or not 0 < decay <= 1 or not smoothing > 0:
            raise ValueError(
                f"Got window={window}, history={history}, decay={decay}, smoothing={smoothing}; expected at least 1, "
                "at least 1, a number in (0, 1] and one above 0."
            )
        if not sequences:
            raise ValueError("Got no sequences; transitions are counted in training sequences.")
        self.window, self.history, self.decay, self.smoothing = window, history, decay, smoothing
        self.user_column = user_column
        self.item_index = {str(item): index for index, item in enumerate(item_trie.item_ids)}
        self.sequences: dict[str, list[NDArray[np.int64]]] = defaultdict(list)
        for user, items in sequences:
            self.sequences[str(user)].append(self._indices_of(items))
        every = [sequence for own in self.sequences.values() for sequence in own]
        number = len(self.item_index)
        # Half an interaction for each item, so that none is impossible
        self.counts = np.bincount(np.concatenate(every), minlength=number) + 0.5  # (I,)
        first, second, weights = self._pairs(every)
        keys, place = np.unique(first * number + second, return_inverse=True)
        # Rows of a sparse matrix: what came after item x is after[starts[x] : starts[x + 1]]
        self.after, self.values = keys % number, np.bincount(place, weights)
        self.starts = np.searchsorted(keys, np.arange(number + 1) * number)
        self.totals = np.bincount(first, weights, minlength=number)  # (I,)

    def __call__(self, histories: list[list[str]], **columns: Any) -> torch.Tensor:
        """Probabilities `(B, I)` in float32; `ValueError` without the column of users or for an unknown item."""
        users = columns.get(self.user_column)
        if users is None:
            raise ValueError(
                f"TransitionReward needs the column {self.user_column!r}, to leave out a user's own sequence. Keep it "
                "in the data set, or name another column as `user_column`."
            )
        return self.score(histories, users)

    def score(self, histories: Sequence[Sequence[str]], users: Sequence[str] | None = None) -> torch.Tensor:
        """As the call. Without `users` every sequence counts, as in evaluation."""
        asked: Sequence[str | None] = [None] * len(histories) if users is None else [str(user) for user in users]
        own = {user: self.sequences.get(user, []) if user is not None else [] for user in set(asked)}
        pairs = {user: self._pairs(sequences) for user, sequences in own.items()}
        items = {user: np.concatenate([*sequences, np.empty(0, np.int64)]) for user, sequences in own.items()}
        scores = np.empty((len(histories), len(self.item_index)), dtype=np.float32)  # (B, I)
        for row, (history, user) in enumerate(zip(histories, asked, strict=True)):
            scores[row] = self._scores(self._indices_of(history[-self.history :])[::-1], items[user], *pairs[user])
        return torch.from_numpy(scores)

    def _scores(
        self,
        latest: NDArray[np.int64],
        own: NDArray[np.int64],
        first: NDArray[np.int64],
        second: NDArray[np.int64],
        weights: NDArray[np.float64],
    ) -> NDArray[np.float64]:
        """Probabilities `(I,)` after the `latest` items, last one first, without the user's own items and pairs."""
        shares = self.decay ** np.arange(len(latest))
        popular = 0.0 if len(latest) else 1.0
        items, values = [np.empty(0, np.int64)], [np.empty(0)]
        for item, share in zip(latest, shares / shares.sum(), strict=True):
            seen = first == item
            scale = share / (self.totals[item] - weights[seen].sum() + self.smoothing)
            row = slice(self.starts[item], self.starts[item + 1])
            items += [self.after[row], second[seen]]
            values += [scale * self.values[row], -scale * weights[seen]]
            popular += scale * self.smoothing
        popular /= self.counts.sum() - len(own)
        items.append(own)
        values.append(np.full(len(own), -popular))
        found = np.bincount(np.concatenate(items), np.concatenate(values), minlength=len(self.item_index))
        # Subtracting the user's own counts may leave rounding errors below 0
        scores: NDArray[np.float64] = np.maximum(found + popular * self.counts, 0)
        return scores

    def _pairs(self, sequences: Sequence[NDArray[np.int64]]) -> tuple[NDArray[Any], ...]:
        """Earlier item, later item and weight of each pair within the window."""
        gaps = [(each, gap) for each in sequences for gap in range(1, min(self.window, len(each) - 1) + 1)]
        if not gaps:
            return np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0)
        first = np.concatenate([each[:-gap] for each, gap in gaps])
        second = np.concatenate([each[gap:] for each, gap in gaps])
        return first, second, np.concatenate([np.full(len(each) - gap, 1 / gap) for each, gap in gaps])

    def _indices_of(self, items: Sequence[str]) -> NDArray[np.int64]:
        try:
            return np.array([self.item_index[str(item)] for item in items], dtype=np.int64)
        except KeyError as error:
            raise ValueError(f"Item {error.args[0]!r} is not in the trie. Build the trie from all items.") from None
