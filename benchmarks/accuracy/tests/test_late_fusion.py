"""Late fusion against sums of exact scores, item by item."""

import math

import numpy as np
import pytest
import torch

from benchmarks.accuracy.late_fusion import choose_weight, late_fusion_ranks
from ilrec_trl.evaluation.evaluator import RecommendationEvaluator, UserRanks
from ilrec_trl.evaluation.exact_ranking import rank_items
from ilrec_trl.evaluation.recommend import recommend
from tests.evaluation.small_store import SEMANTIC_IDS, make_catalog, make_dataset, make_model


@pytest.fixture(scope="module")
def store():
    catalog = make_catalog()
    tokenizer = catalog.build_tokenizer()
    return make_model(tokenizer), tokenizer, catalog.trie(tokenizer), make_dataset(catalog, 18)


def collaborative(trie, scale=1.0):
    """Scores that depend on history and item, in the order of the trie, not normalised."""

    def reward_func(histories, user):
        assert len(user) == len(histories)
        rows = []
        for history in histories:
            number = sum(map(ord, "".join(history)))
            rows.append([scale * (1 + number * (ord(item) - 90) % 13 + ord(item) / 1000) for item in trie.item_ids])
        return torch.tensor(rows)

    return reward_func


def naive_ranks(store, reward_func, weight, num_candidates, exclude):
    """From the scores of all items: candidates of the search and of the other model, then a count by the sum."""
    model, tokenizer, trie, dataset = store
    exact = rank_items(model, tokenizer, dataset["prompt"], trie)
    found = []
    for row, example in enumerate(dataset):
        scores = reward_func([example["history"]], user=["x"])[0].double()
        logs = {item: math.log(score / scores.sum()) for item, score in zip(trie.item_ids, scores, strict=True)}
        own = dict(zip(trie.item_ids, exact[row].tolist(), strict=True))
        left = [item for item in trie.item_ids if not (exclude and item in example["history"])]
        beams = min(num_candidates, len(trie))
        excluded = [example["history"]] if exclude else None
        searched = recommend(
            model, tokenizer, [example["prompt"]], trie, top_k=beams, num_beams=beams, exclude=excluded
        )
        candidates = {item for item, _ in searched[0]}
        candidates |= set(sorted(left, key=lambda item: -logs[item])[:num_candidates])
        candidates = {item for item in left if SEMANTIC_IDS[item] in [SEMANTIC_IDS[each] for each in candidates]}
        sums = {item: own[item] + weight * logs[item] for item in candidates}
        if example["item"] not in sums:
            found.append((math.inf, 1))
            continue
        target = sums[example["item"]]
        ahead = sum(value > target + 1e-5 for value in sums.values())
        found.append((1 + ahead, sum(abs(value - target) <= 1e-5 for value in sums.values())))
    return found


@pytest.mark.parametrize("exclude", [False, True])
@pytest.mark.parametrize("num_candidates", [1, 2, 50])
def test_ranks_equal_sums_of_exact_scores(store, num_candidates, exclude):
    model, tokenizer, trie, dataset = store
    reward_func = collaborative(trie)
    found = late_fusion_ranks(
        *store[:2],
        dataset,
        trie,
        reward_func,
        weights=[0.0, 0.4, 3.0],
        num_candidates=num_candidates,
        exclude_history=exclude,
        batch_size=5,
    )
    for weight, ranks in found.items():
        expected = naive_ranks(store, reward_func, weight, num_candidates, exclude)
        assert list(zip(ranks.starts.tolist(), ranks.ties.tolist(), strict=True)) == expected, weight
        assert (ranks.users, ranks.items) == (dataset["user"][:], dataset["item"][:])
    if num_candidates == 1:
        assert any(math.isinf(start) for start in found[0.0].starts)


def test_weight_zero_is_the_evaluator_and_scale_does_not_matter(store):
    model, tokenizer, trie, dataset = store
    evaluator = RecommendationEvaluator(dataset, trie, ranking="exact")
    evaluator(model, tokenizer)
    ranks = [
        late_fusion_ranks(model, tokenizer, dataset, trie, collaborative(trie, scale), weights=[0, 1.0])
        for scale in (1.0, 1e4)
    ]
    assert ranks[0][0].starts.tolist() == evaluator.last_ranks.starts.tolist()
    assert ranks[0][0].ties.tolist() == evaluator.last_ranks.ties.tolist()
    assert ranks[0][1.0].starts.tolist() == ranks[1][1.0].starts.tolist()
    # Items of one semantic ID are told apart by the other model
    assert ranks[0][0].ties.max() == 2
    assert ranks[0][1.0].ties.sum() < ranks[0][0].ties.sum()


def test_the_weight_of_the_highest_ndcg(store):
    def ranks(*starts):
        return UserRanks(["u"] * len(starts), ["a"] * len(starts), np.array(starts), np.ones(len(starts), dtype=int))

    assert (
        choose_weight({0.0: ranks(5.0, 9.0), 0.5: ranks(1.0, 11.0), 1.0: ranks(2.0, 2.0), 2.0: ranks(2.0, 2.0)}) == 1
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": []}, "one or more"),
        ({"weights": [-1.0]}, "each at least 0"),
        ({"weights": [1.0], "num_candidates": 0}, "num_candidates=0; expected at least 1"),
    ],
)
def test_refusals(store, options, message):
    model, tokenizer, trie, dataset = store
    with pytest.raises(ValueError, match=message):
        late_fusion_ranks(model, tokenizer, dataset, trie, collaborative(trie), **options)
    with pytest.raises(ValueError, match="needs"):
        late_fusion_ranks(
            model, tokenizer, dataset.remove_columns("history"), trie, collaborative(trie), weights=[1.0]
        )


def test_scores_that_are_no_shares_are_refused(store):
    model, tokenizer, trie, dataset = store
    for scale in (-1.0, 0.0, math.nan):
        with pytest.raises(ValueError, match="expected finite scores of at least 0|score 0 to every item"):
            late_fusion_ranks(model, tokenizer, dataset, trie, collaborative(trie, scale), weights=[1.0])
