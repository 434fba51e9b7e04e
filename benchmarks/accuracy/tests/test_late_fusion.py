"""Late fusion against sums of exact scores, item by item; its command, by one SASRec and by several."""

import json
import math

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from benchmarks.accuracy.late_fusion import (
    WEIGHTS,
    FusionOptions,
    LateFusion,
    choose_weight,
    fused_ranks,
    main,
    mean_reward_func,
)
from ilrec_trl.cli import main as ilrec
from ilrec_trl.evaluation.evaluator import RecommendationEvaluator, UserRanks
from ilrec_trl.evaluation.exact_ranking import rank_items
from ilrec_trl.evaluation.recommend import recommend
from ilrec_trl.pipeline.options import DataOptions, EvaluationOptions, InputError, ModelOptions, TeacherOptions
from ilrec_trl.pipeline.prepare import prepare
from ilrec_trl.pipeline.teacher import load_teacher, train_teacher
from ilrec_trl.pipeline.train import build_model
from tests.evaluation.small_store import SEMANTIC_IDS, make_catalog, make_dataset, make_model


SMALL = {"sasrec_hidden_size": 16, "sasrec_epochs": 6.0, "sasrec_learning_rate": 1e-2, "sasrec_folds": 1}


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
    late_fusion = LateFusion(*store[:3], reward_func, num_candidates, exclude_history=exclude, batch_size=5)
    found = late_fusion.ranks(dataset, [0.0, 0.4, 3.0])
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
        LateFusion(model, tokenizer, trie, collaborative(trie, scale)).ranks(dataset, [0, 1.0]) for scale in (1.0, 1e4)
    ]
    assert ranks[0][0].starts.tolist() == evaluator.last_ranks.starts.tolist()
    assert ranks[0][0].ties.tolist() == evaluator.last_ranks.ties.tolist()
    assert ranks[0][1.0].starts.tolist() == ranks[1][1.0].starts.tolist()
    # The other model distinguishes items of one semantic ID
    assert ranks[0][0].ties.max() == 2
    assert ranks[0][1.0].ties.sum() < ranks[0][0].ties.sum()


def test_the_weight_of_the_highest_ndcg(store):
    def ranks(*starts):
        return UserRanks(["u"] * len(starts), ["a"] * len(starts), np.array(starts), np.ones(len(starts), dtype=int))

    assert (
        choose_weight({0.0: ranks(5.0, 9.0), 0.5: ranks(1.0, 11.0), 1.0: ranks(2.0, 2.0), 2.0: ranks(2.0, 2.0)}) == 1
    )


@pytest.mark.parametrize(
    ("weights", "options", "message"),
    [
        ([], {}, "one or more"),
        ([-1.0], {}, "each at least 0"),
        ([1.0], {"num_candidates": 0}, "num_candidates=0; expected at least 1"),
    ],
)
def test_refusals(store, weights, options, message):
    model, tokenizer, trie, dataset = store
    with pytest.raises(ValueError, match=message):
        LateFusion(model, tokenizer, trie, collaborative(trie), **options).ranks(dataset, weights)
    with pytest.raises(ValueError, match="needs"):
        LateFusion(model, tokenizer, trie, collaborative(trie)).ranks(dataset.remove_columns("history"), [1.0])


def test_scores_that_are_no_shares_are_refused(store):
    model, tokenizer, trie, dataset = store
    for scale in (-1.0, 0.0, math.nan):
        with pytest.raises(ValueError, match="expected finite scores of at least 0|score 0 to every item"):
            LateFusion(model, tokenizer, trie, collaborative(trie, scale)).ranks(dataset, [1.0])


@pytest.fixture(scope="module")
def prepared(data_folder):
    return prepare(DataOptions(data=str(data_folder)))


@pytest.fixture(scope="module")
def folder(prepared, tmp_path_factory):
    """Prepared data, an untrained model and a SASRec that has learnt the circle."""
    folder = tmp_path_factory.mktemp("fusion")
    prepared.save(folder / "data")
    sizes = ModelOptions(hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2)
    build_model(prepared, sizes, seed=0).save_pretrained(folder / "model")
    train_teacher(prepared, TeacherOptions(**SMALL), folder / "sasrec", seed=0)
    return folder


def test_a_weight_is_chosen_on_validation(folder, capsys):
    output = folder / "out"
    command = ["--prepared", str(folder / "data"), "--model", str(folder / "model")]
    fusion = ["--sasrec", str(folder / "sasrec"), "--fusion_candidates", "12", "--output_dir", str(output)]
    assert main([*command, *fusion, "--num_beams", "12"]) == 0
    weight = float(capsys.readouterr().out.split("chosen on validation users: ")[1].split()[0])
    # SASRec knows the circle, the model nothing
    assert weight in WEIGHTS[-4:]
    found = json.loads((output / "metrics.json").read_text())["methods"]["model + SASRec"]
    assert found["settings"] == {"fusion_weight": weight, "fusion_candidates": 12, "exclude_history": False}
    assert ilrec(["evaluate", *command, "--num_beams", "12", "--output_dir", str(folder / "alone")]) == 0
    alone = json.loads((folder / "alone/metrics.json").read_text())["methods"]["model"]
    assert found["ndcg@10"] > alone["ndcg@10"] + 0.1
    assert pq.read_table(output / "ranks.parquet").num_rows == 60


def test_of_several_the_mean_counts_for_everybody(prepared, folder):
    model = build_model(prepared, ModelOptions(hidden_size=16, num_hidden_layers=2, num_attention_heads=2), seed=0)
    group = train_teacher(prepared, TeacherOptions(**SMALL | {"sasrec_folds": 2}), folder / "group", seed=0)
    mean = mean_reward_func(group, prepared)
    users = [user for user, _ in prepared.splits.train[:4]]
    each = np.stack([mean([["1", "2"]], user=[user]).numpy() for user in [*users, "stranger"]])
    assert np.ptp(each, axis=0).max() == 0
    loaded = load_teacher(str(folder / "group"), prepared)
    examples = prepared.splits.validation[:10]
    evaluation = EvaluationOptions(num_beams=12)
    first, second = (
        fused_ranks("both", model, teacher, prepared, examples, evaluation, FusionOptions(fusion_weight=0.5))
        for teacher in (group, loaded)
    )
    assert first.starts.tolist() == second.starts.tolist()


def test_refusals_of_the_command(folder, capsys):
    command = ["--prepared", str(folder / "data"), "--model", str(folder / "model")]
    command += ["--sasrec", str(folder / "sasrec")]
    for more, message in [
        (["--ranking", "exact"], "late fusion ranks candidates of a beam search"),
        (["--fusion_weight", "-1"], "--fusion_weight is -1.0, expected 0 or more"),
        (["--fusion_candidates", "5"], "--fusion_candidates is 5, expected at least 10"),
    ]:
        assert main([*command, *more]) == 2
        assert message in capsys.readouterr().err


def test_validation_items_that_were_trained_on_choose_no_weight(data_folder, folder):
    whole = prepare(DataOptions(data=str(data_folder), train_on_validation=True))
    model = build_model(whole, ModelOptions(hidden_size=16, num_hidden_layers=2, num_attention_heads=2), seed=0)
    teacher = load_teacher(str(folder / "sasrec"), whole)
    with pytest.raises(InputError, match="they can choose no weight; give --fusion_weight"):
        fused_ranks("both", model, teacher, whole, whole.splits.test, EvaluationOptions())
