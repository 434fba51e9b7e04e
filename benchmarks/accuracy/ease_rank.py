"""
How many dimensions EASE needs: NDCG@10 on validation items, of EASE whole and of the nearest models of fewer.

    python benchmarks/accuracy/ease_rank.py --data ../shared/data/instruments --exclude_history

EASE (Steck 2019, https://arxiv.org/abs/1905.03375) scores items by `X @ B`: a row of `X` says which items a user has,
and `B` holds a weight for each pair of them. Of all models of `r` dimensions, `B @ V @ V.T` by the first `r` principal
axes `V` of the training users' scores comes nearest to those scores (Eckart and Young). Test items are not touched.
Writes benchmarks/results/ease_rank_<data>.csv.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path


sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np  # noqa: E402
import torch  # noqa: E402

from benchmarks.speed.measurements import compare, write_results  # noqa: E402
from ilrec_trl.evaluation.exact_ranking import ranks_of_scores  # noqa: E402
from ilrec_trl.evaluation.metrics import metric_values  # noqa: E402
from ilrec_trl.pipeline.options import DataOptions  # noqa: E402
from ilrec_trl.pipeline.prepare import prepare  # noqa: E402


DIMENSIONS = (16, 32, 64, 128, 256, 512, 1024, 2048)


def bags(sequences: Sequence[Sequence[str]], number: dict[str, int]) -> torch.Tensor:
    """Which items each user has, `(U, I)`, by the number of each item."""
    found = torch.zeros(len(sequences), len(number))
    for row, items in zip(found, sequences, strict=True):
        row[[number[item] for item in items]] = 1.0
    return found


def ease(users: torch.Tensor, regularization: float) -> torch.Tensor:
    """Weights `(I, I)` with a zero diagonal that best tell users' items from their others, by the closed form."""
    gram = (users.T @ users).double()  # (I, I)
    gram.diagonal().add_(regularization)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(gram))  # (I, I)
    return (inverse / -inverse.diagonal()).fill_diagonal_(0.0).float()


def ndcg(scores: torch.Tensor, users: torch.Tensor, targets: torch.Tensor, exclude: bool) -> float:
    """NDCG@10 by the scores `(U, I)`."""
    ranks = []
    for some, own, wanted in zip(scores.split(1024), users.split(1024), targets.split(1024), strict=True):
        ranks += ranks_of_scores(some.masked_fill(own > 0, -torch.inf) if exclude else some, wanted)
    starts, ties = (np.array(column) for column in zip(*ranks, strict=True))
    return float(metric_values(starts, ties)["ndcg@10"].mean())


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="folder in LC-Rec's format, or of `ilrec items build`; else a generated store")
    parser.add_argument("--regularization", type=float, default=100.0)
    parser.add_argument("--exclude_history", action="store_true", help="never recommend an item of the history")
    parser.add_argument("--quick", action="store_true", help="a small store, to try the script; writes nothing")
    options = parser.parse_args(arguments)
    prepared = prepare(DataOptions(store_users=100) if options.quick else DataOptions(data=options.data))
    asked = prepared.splits.validation
    number = {item: place for place, item in enumerate(prepared.catalog.item_ids)}
    train = bags([items for _, items in prepared.splits.train], number)  # (U, I)
    histories = bags([example.history for example in asked], number)  # (U, I)
    targets = torch.tensor([number[example.item] for example in asked])  # (U,)
    weights = ease(train, options.regularization)  # (I, I)
    found = {"all": [ndcg(histories @ weights, histories, targets, options.exclude_history)]}
    fitted = train @ weights  # (U, I)
    variances, axes = torch.linalg.eigh(fitted.T @ fitted)  # (I,), (I, I), the least first
    total = variances.clamp(min=0).sum()
    for size in (size for size in DIMENSIONS if size < len(number)):
        kept = axes[:, -size:]  # (I, r)
        scores = histories @ (weights @ kept) @ kept.T  # (U, I)
        found[str(size)] = [ndcg(scores, histories, targets, options.exclude_history)]
        share = float(variances[-size:].sum() / total)
        print(f"{size:5} dimensions hold {share:.3f} of the training scores")  # noqa: T201
    case = f"{prepared.name}, {len(asked)} validation users, regularization {options.regularization:g}"
    case += ", without the history" if options.exclude_history else ""
    rows = compare("ease_rank", case, "NDCG@10", "1", found, "all")
    for row in rows:
        print(f"{row['system']:>5} dimensions {row['p50']:>10} {row['ratio']}")  # noqa: T201
    if not options.quick:
        print(write_results(f"ease_rank_{prepared.name}", rows))  # noqa: T201


if __name__ == "__main__":
    main()
