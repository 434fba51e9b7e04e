"""Items to prefer the target over, drawn from the catalogue."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np

from ilrec_trl.data.prompts import ItemTexts
from ilrec_trl.data.splits import NextItemExample, UserSequence


_AT_ONCE = 1 << 16  # draws in advance


class NegativeSampler:
    """
    Draws distinct items of which none is the target, stands in the history, or has the target's very text.

    Args:
        item_ids (`list[str]`):
            The catalogue.
        texts (`ItemTexts`):
            Gives the items' texts, as an [`ItemCatalog`] does.
        train (`list[UserSequence]`):
            What popularity is counted in.
        sampling (`"uniform"` or `"popularity"`, *optional*, defaults to `"uniform"`):
            Every item alike, or by its number of training interactions.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the draws.
    """

    def __init__(
        self,
        item_ids: Sequence[str],
        texts: ItemTexts,
        train: Iterable[UserSequence],
        sampling: Literal["uniform", "popularity"] = "uniform",
        seed: int = 0,
    ) -> None:
        counts = Counter(item for _, items in train for item in items)
        weights = np.array([counts[item] if sampling == "popularity" else 1 for item in item_ids], dtype=np.float64)
        self.item_ids, self.texts = list(item_ids), texts
        self.shares = weights / weights.sum()  # (I,)
        self.generator = np.random.default_rng(seed)
        self.pool: list[int] = []

    def __call__(self, example: NextItemExample, number: int) -> list[str]:
        """
        Draw `number` negatives for one question.

        Raises:
            ValueError: where the catalogue has fewer to draw from.
        """
        text = self.texts.text(example.item)
        refused = {example.item, *example.history}
        chosen: dict[str, None] = {}
        draws = 0
        while len(chosen) < number:
            if draws == len(self.item_ids):
                self._check(example, number, refused, text)
            item, draws = self._draw(), draws + 1
            if item not in refused and self.texts.text(item) != text:
                chosen[item] = None
        return list(chosen)

    def _draw(self) -> str:
        if not self.pool:
            self.pool = self.generator.choice(len(self.item_ids), size=_AT_ONCE, p=self.shares).tolist()
        return self.item_ids[self.pool.pop()]

    def _check(self, example: NextItemExample, number: int, refused: set[str], text: str) -> None:
        """After many draws in vain: whether there are enough items at all."""
        pairs = zip(self.item_ids, self.shares, strict=True)
        left = sum(share > 0 and item not in refused and self.texts.text(item) != text for item, share in pairs)
        if left < number:
            raise ValueError(
                f"User {example.user!r} with a history of {len(example.history)} items leaves {left} items to draw "
                f"{number} negatives from; ask for fewer, or draw uniformly."
            )
