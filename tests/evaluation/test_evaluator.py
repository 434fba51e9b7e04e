"""The evaluator against exact ranking of every item, and the callback in a trainer."""

import math

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import EarlyStoppingCallback, TrainerControl, TrainerState
from trl import SFTConfig, SFTTrainer

from ilrec_trl.evaluation.evaluator import RecommendationEvaluator
from ilrec_trl.evaluation.exact_ranking import rank_items, ranks_by_scores
from ilrec_trl.evaluation.recommendation_callback import RecommendationCallback
from ilrec_trl.items.item_trie import ItemTrie
from tests.references import naive_expected_metrics

from .small_store import make_catalog, make_dataset, make_model, questions


@pytest.fixture(scope="module")
def catalog():
    return make_catalog()


@pytest.fixture(scope="module")
def tokenizer(catalog):
    return catalog.build_tokenizer()


@pytest.fixture(scope="module")
def item_trie(catalog, tokenizer):
    return catalog.trie(tokenizer)


@pytest.fixture(scope="module")
def model(tokenizer):
    return make_model(tokenizer)


@pytest.fixture(scope="module")
def dataset(catalog):
    return make_dataset(catalog, 18)


def exact_ranks(model, tokenizer, dataset, item_trie, exclude_history=False):
    """Ranks from the scores of all items; a tie is a shared sequence, never a rounding accident."""
    scores = rank_items(model, tokenizer, list(dataset["prompt"]), item_trie).double()
    starts, ties = [], []
    for row, target in zip(scores, dataset, strict=True):
        excluded = set(target["history"]) if exclude_history else set()
        leaf = int(item_trie.leaf_of([target["item"]]))
        left = [item for item in item_trie.item_ids if item not in excluded]
        place = [item for item in left if int(item_trie.leaf_of([item])) == leaf]
        own = row[item_trie.index_of([target["item"]])]
        better = [item for item in left if item not in place and row[item_trie.index_of([item])] > own]
        starts.append(len(better) + 1 if target["item"] in place else math.inf)
        ties.append(max(1, len(place)))
    return starts, ties


@pytest.mark.parametrize("batch_size", [1, 4, 64])
@pytest.mark.parametrize("exclude_history", [False, True])
@pytest.mark.parametrize("ranking", [{"num_beams": 6}, {"ranking": "exact", "num_beams": 1}], ids=["beam", "exact"])
def test_evaluator_equals_exact_ranking(model, tokenizer, dataset, item_trie, batch_size, exclude_history, ranking):
    evaluator = RecommendationEvaluator(
        dataset, item_trie, k=(1, 5), batch_size=batch_size, exclude_history=exclude_history, **ranking
    )
    metrics = evaluator(model, tokenizer)
    starts, ties = exact_ranks(model, tokenizer, dataset, item_trie, exclude_history)
    found = [math.isfinite(start) for start in starts]
    assert np.where(found, evaluator.last_ranks.starts, math.inf).tolist() == starts
    assert evaluator.last_ranks.ties[found].tolist() == np.array(ties)[found].tolist()
    assert evaluator.last_ranks.users == dataset["user"]
    each = [naive_expected_metrics(start, tie, cuts=(1, 5)) for start, tie in zip(starts, ties, strict=True)]
    assert metrics == {name: pytest.approx(np.mean([user[name] for user in each])) for name in metrics}
    assert list(metrics) == ["hit@1", "hit@5", "ndcg@5", "mrr"]
    assert evaluator.standard_errors["mrr"] == pytest.approx(np.std([user["mrr"] for user in each], ddof=1) / 18**0.5)


def test_items_that_share_an_id_are_no_free_hit(model, tokenizer, catalog, item_trie):
    dataset = questions(catalog, [["a"], ["a"]], ["d", "e"])
    evaluator = RecommendationEvaluator(dataset, item_trie, num_beams=10)
    evaluator(model, tokenizer)
    assert evaluator.last_ranks.starts[0] == evaluator.last_ranks.starts[1]
    assert evaluator.last_ranks.ties.tolist() == [2, 2]


def test_a_target_that_is_excluded_is_not_found_and_its_user_kept(model, tokenizer, catalog, item_trie):
    dataset = questions(catalog, [["a", "d"], ["a", "d"]], ["d", "e"])
    evaluator = RecommendationEvaluator(dataset, item_trie, num_beams=10, exclude_history=True)
    metrics = evaluator(model, tokenizer)
    assert evaluator.last_ranks.starts[0] == math.inf
    # "e" no longer shares its place with "d", which is excluded.
    assert evaluator.last_ranks.ties[1] == 1
    assert metrics["hit@10"] == 0.5


def test_a_target_beyond_the_beams_counts_as_not_found(model, tokenizer, dataset, item_trie):
    evaluator = RecommendationEvaluator(dataset, item_trie, k=(1,), num_beams=1)
    assert evaluator(model, tokenizer)["mrr"] == pytest.approx(evaluator(model, tokenizer)["hit@1"])
    assert np.isinf(evaluator.last_ranks.starts).any()
    assert len(evaluator.last_ranks.starts) == len(dataset)


def test_the_model_stays_in_training_mode(model, tokenizer, dataset, item_trie):
    model.train()
    RecommendationEvaluator(dataset, item_trie)(model, tokenizer)
    assert model.training


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda data: data.remove_columns("item"), {}, r"needs \['item'\] as well"),
        (lambda data: data.remove_columns("history"), {"exclude_history": True}, r"needs \['history'\] as well"),
        (lambda data: data.select([]), {}, "no row"),
        (lambda data: data, {"k": (1, 50)}, "got num_beams=20 for k=.*use at least 50 beams"),
        (lambda data: data.map(lambda row: {"item": "zither"}), {}, "zither"),
        (lambda data: data, {"ranking": "full"}, "got ranking='full'; expected 'beam' or 'exact'"),
        (lambda data: data, {"allow": ["zither"]}, "zither"),
        (
            lambda data: data,
            {"ranking": "exact", "memory_budget_mib": 1.0},
            "memory_budget_mib bounds beam search alone",
        ),
        (lambda data: data, {"batch_size": 0}, "got batch_size=0; expected at least 1 user a batch"),
    ],
)
def test_refusals(dataset, item_trie, change, options, message):
    with pytest.raises(ValueError, match=message):
        RecommendationEvaluator(change(dataset), item_trie, **options)


@pytest.mark.parametrize("ranking", ["beam", "exact"])
@pytest.mark.parametrize("exclude_history", [False, True])
def test_of_an_allow_list_only_its_items_are_ranked(model, tokenizer, dataset, item_trie, ranking, exclude_history):
    """Without "e" the target "d" shares its place with nobody; with "b" gone everybody behind it moves up."""
    allow = ["a", "c", "d", "f"]
    evaluator = RecommendationEvaluator(
        dataset, item_trie, k=(1,), ranking=ranking, num_beams=6, allow=allow, exclude_history=exclude_history
    )
    evaluator(model, tokenizer)
    lists = [sorted(zip(row.tolist(), item_trie.item_ids, strict=True), reverse=True)
             for row in rank_items(model, tokenizer, list(dataset["prompt"]), item_trie)]  # fmt: skip
    for row, ranked, start, ties in zip(
        dataset, lists, evaluator.last_ranks.starts, evaluator.last_ranks.ties, strict=True
    ):
        left = [item for _, item in ranked if item in allow and not (exclude_history and item in row["history"])]
        assert (start, ties) == (left.index(row["item"]) + 1 if row["item"] in left else math.inf, 1)


@pytest.mark.parametrize("options", [{"num_beams": 6}, {"ranking": "exact"}], ids=["beam", "exact"])
def test_probabilities_among_continuations_rank_otherwise(model, tokenizer, dataset, item_trie, options):
    """Of each the ranking equals that of the scores; the two differ for some user."""
    found = []
    for normalise in ("vocabulary", "continuations"):
        evaluator = RecommendationEvaluator(dataset, item_trie, k=(1,), normalise=normalise, **options)
        evaluator(model, tokenizer)
        scores = rank_items(model, tokenizer, list(dataset["prompt"]), item_trie, normalise=normalise)
        expected = ranks_by_scores(scores, list(dataset["item"]), item_trie)
        assert list(zip(evaluator.last_ranks.starts, evaluator.last_ranks.ties, strict=True)) == expected
        found.append(evaluator.last_ranks.starts.tolist())
    assert found[0] != found[1]


def test_a_memory_budget_changes_no_rank_and_is_refused_where_nothing_fits(model, tokenizer, dataset, item_trie):
    evaluator = RecommendationEvaluator(dataset, item_trie, num_beams=10)
    metrics = evaluator(model, tokenizer)
    small = RecommendationEvaluator(dataset, item_trie, num_beams=10, memory_budget_mib=0.2)
    assert small(model, tokenizer) == metrics
    with pytest.raises(ValueError, match="more than memory_budget_mib=0.001"):
        RecommendationEvaluator(dataset, item_trie, memory_budget_mib=0.001)(model, tokenizer)


def test_where_sequences_score_the_same_the_order_is_that_of_the_trie(item_trie):
    """By hand: "a" and "c" lead with one score, then "b", then "d" and "e", which share a sequence; "f" is last."""
    scores = torch.tensor(
        [[{"a": 0.0, "c": 0.0, "b": -1.0, "f": -9.0}.get(item, -2.0) for item in item_trie.item_ids]]
    )
    places = {item: ranks_by_scores(scores, [item], item_trie)[0] for item in "abcdef"}
    assert places == {"a": (1, 1), "c": (2, 1), "b": (3, 1), "d": (4, 2), "e": (4, 2), "f": (6, 1)}
    without = {item: ranks_by_scores(scores, [item], item_trie, [["a", "d"]])[0] for item in "abcdef"}
    assert without == {"a": (math.inf, 1), "c": (1, 1), "b": (2, 1), "d": (math.inf, 1), "e": (3, 1), "f": (4, 1)}


@pytest.mark.parametrize(
    ("module", "parameter", "message"),
    [
        (type("FullyShardedDataParallel", (torch.nn.Linear,), {})(1, 1), None, "sharded by FSDP1.*fsdp_version: 2"),
        (torch.nn.Linear(1, 1), "ds_id", "partitioned by DeepSpeed ZeRO-3.*Use ZeRO-2, DDP or FSDP2"),
    ],
)
def test_weights_that_cannot_be_gathered_are_refused(dataset, item_trie, tokenizer, module, parameter, message):
    if parameter is not None:
        setattr(module.weight, parameter, 0)
    with pytest.raises(NotImplementedError, match=message):
        RecommendationEvaluator(dataset, item_trie)(torch.nn.Sequential(module), tokenizer)


@pytest.fixture
def training_args(tmp_path):
    return SFTConfig(
        output_dir=str(tmp_path),
        max_steps=3,
        eval_steps=1,
        save_steps=1,
        eval_strategy="steps",
        save_strategy="steps",
        load_best_model_at_end=True,
        metric_for_best_model="eval_ndcg@5",
        greater_is_better=True,
        per_device_train_batch_size=6,
        learning_rate=1e-2,
        report_to="none",
        use_cpu=True,
        bf16=False,
        activation_checkpointing=False,
        disable_tqdm=True,
    )


def test_callback_feeds_best_model_and_early_stopping(model, tokenizer, dataset, item_trie, training_args):
    evaluator = RecommendationEvaluator(dataset, item_trie, k=(1, 5))
    callbacks = [RecommendationCallback(evaluator), EarlyStoppingCallback(early_stopping_patience=10)]
    trainer = SFTTrainer(
        model,
        training_args,
        train_dataset=dataset,
        eval_dataset=dataset,
        processing_class=tokenizer,
        callbacks=callbacks,
    )
    trainer.train()
    logged = [entry["eval_ndcg@5"] for entry in trainer.state.log_history if "eval_ndcg@5" in entry]
    assert len(logged) == 3
    assert trainer.state.best_metric == max(logged)
    # The best weights are back, and the evaluator says of them what it said then.
    assert evaluator(trainer.model, tokenizer)["ndcg@5"] == pytest.approx(max(logged))


def test_callback_logs_through_its_trainer(model, tokenizer, dataset, item_trie, training_args):
    class Recorder:
        def __init__(self):
            self.logged = []

        def log(self, logs):
            self.logged.append(logs)

    callback = RecommendationCallback(RecommendationEvaluator(dataset, item_trie), metric_key_prefix="valid")
    callback.bind_trainer(Recorder())
    state, metrics = TrainerState(), {"valid_loss": 1.0}
    callback.on_evaluate(
        training_args, state, TrainerControl(), metrics=metrics, model=model, processing_class=tokenizer
    )
    assert set(metrics) - {"valid_loss"} == {f"valid_{name}" for name in evaluator_names()}
    assert callback.trainer.logged == [{name: value for name, value in metrics.items() if name != "valid_loss"}]
    assert state.log_history == []


def evaluator_names():
    return ["hit@1", "hit@5", "hit@10", "ndcg@5", "ndcg@10", "mrr"]


def test_rows_of_several_targets_are_refused():
    dataset = Dataset.from_list([{"prompt": "a", "item": ["x", "y"]}])
    with pytest.raises(ValueError, match="a list of 2 ids, .*build the data set with `next_item_dataset`"):
        RecommendationEvaluator(dataset, ItemTrie.from_sequences({"x": [1], "y": [2]}))
