"""Hit@K, NDCG@K and MRR as metrics of the library evaluate; apart from their functions, which import faster."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import datasets
import evaluate
from numpy.typing import ArrayLike

from .metrics import Floats, expected_ranks, hit_rate, ndcg, reciprocal_rank


_ARGUMENTS = """
Args:
    predictions (`list[list[str]]`): One ranked list of distinct item ids for each user, best first.
    references (`list[str]`): The target item of each user.
    scores (`list[list[float]]`, *optional*): Scores of the predictions; items with equal scores share a rank, and the
        metric is its expectation over their order.
"""


class _RankingMetric(evaluate.Metric):  # type: ignore[misc]
    name_and_values: tuple[str, Callable[[ArrayLike, ArrayLike, int], Floats]]

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=(self.__doc__ or "").strip(),
            citation="",
            inputs_description=_ARGUMENTS,
            features=datasets.Features(
                {"predictions": datasets.List(datasets.Value("string")), "references": datasets.Value("string")}
            ),
        )

    def _compute(
        self,
        predictions: Sequence[Sequence[str]],
        references: Sequence[str],
        k: int = 10,
        scores: Sequence[Sequence[float]] | None = None,
    ) -> dict[str, float]:
        name, values = self.name_and_values
        return {f"{name}@{k}": float(values(*expected_ranks(predictions, references, scores), k).mean())}


class HitRate(_RankingMetric):
    """Hit@k: the share of users whose target is among the first `k` items. Works offline."""

    name_and_values = "hit", hit_rate


class NDCG(_RankingMetric):
    """NDCG@k with one relevant item a user: `1 / log2(rank + 1)` within the first `k`. Works offline."""

    name_and_values = "ndcg", ndcg


class MRR(_RankingMetric):
    """Mean reciprocal rank over the given lists; a target that is in no list counts 0. Works offline."""

    def _compute(  # type: ignore[override]
        self,
        predictions: Sequence[Sequence[str]],
        references: Sequence[str],
        scores: Sequence[Sequence[float]] | None = None,
    ) -> dict[str, float]:
        return {"mrr": float(reciprocal_rank(*expected_ranks(predictions, references, scores)).mean())}
