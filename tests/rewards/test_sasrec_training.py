import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import TrainerCallback, TrainingArguments

from ilrec_trl.data.interactions import Interactions
from ilrec_trl.data.splits import NextItemExample, Splits, UserSequence
from ilrec_trl.rewards import sasrec_training
from ilrec_trl.rewards.sasrec import SASRecConfig, SASRecModel
from ilrec_trl.rewards.sasrec_training import (
    _ranking_quality,
    _training_rows,
    evaluate_sasrec,
    sasrec_training_arguments,
    steps_of_epochs,
    train_sasrec,
    with_min_steps,
)
from ilrec_trl.rewards.sequence_batches import IGNORE_INDEX


def num_steps(args, num_rows):
    args = with_min_steps(args, num_rows)
    return args.max_steps if args.max_steps > 0 else steps_of_epochs(args, num_rows)


ITEMS = [str(item) for item in range(12)]
FEATURES = [[f"third {number // 4}", f"place {number % 4}"] for number in range(12)]


def cyclic_splits() -> Splits:
    """Users walk round a circle of 12 items, forwards or backwards: one item leaves two choices, two items tell."""
    walks = {}
    for start in range(12):
        for step in (1, -1):
            for length in (5, 6, 7, 9):  # so that training reaches the positions that are asked later
                walks[f"{start},{step},{length}"] = [(start + step * k) % 12 for k in range(length)]
    return Interactions.from_sequences(walks).leave_one_out()


def small_config() -> SASRecConfig:
    return SASRecConfig(hidden_size=16, max_position_embeddings=8, dropout=0.1)


def arguments(folder: Path, **changes):
    settings = {"learning_rate": 1e-2, "per_device_train_batch_size": 32, "num_train_epochs": 20, "disable_tqdm": True}
    return sasrec_training_arguments(folder, use_cpu=True, **(settings | changes))


class TestTrainSASRec:
    @pytest.mark.parametrize("num_sampled_negatives", [0, 3])
    def test_learns_what_popularity_cannot(self, tmp_path, num_sampled_negatives):
        splits = cyclic_splits()
        config = small_config()
        config.num_sampled_negatives = num_sampled_negatives
        # A batch of few users, or its targets are all twelve items
        small = {"per_device_train_batch_size": 4, "num_train_epochs": 8, "save_strategy": "no"}
        small["load_best_model_at_end"] = False
        settings = arguments(tmp_path, **(small if num_sampled_negatives else {}))
        model = train_sasrec(splits, ITEMS, settings, config=config, patience=None)
        assert not model.training
        # All items are equally popular: chance is 1 in 12; the last item alone gives 1 in 2.
        assert (evaluate_sasrec(model, splits.test) == 1).mean() > 0.9

    @pytest.mark.parametrize(("num_sampled_negatives", "item_features"), [(0, None), (3, None), (0, FEATURES)])
    def test_resumed_training_is_the_uninterrupted_one(self, tmp_path, num_sampled_negatives, item_features):
        splits = cyclic_splits()

        def small_config():
            return SASRecConfig(
                hidden_size=16, max_position_embeddings=8, dropout=0.1, num_sampled_negatives=num_sampled_negatives
            )

        options = {"save_total_limit": None, "load_best_model_at_end": False}
        whole = train_sasrec(
            splits,
            ITEMS,
            arguments(tmp_path / "a", num_train_epochs=4, **options),
            config=small_config(),
            item_features=item_features,
            patience=None,
        )
        checkpoint = tmp_path / "a" / "checkpoint-6"
        assert checkpoint.exists()
        resumed = train_sasrec(
            splits,
            ITEMS,
            arguments(tmp_path / "b", num_train_epochs=4, **options),
            config=small_config(),
            item_features=item_features,
            patience=None,
            resume_from_checkpoint=str(checkpoint),
        )
        assert not (tmp_path / "b" / "checkpoint-3").exists()  # it did not start anew
        for name, value in whole.state_dict().items():
            assert torch.equal(value, resumed.state_dict()[name]), name

    def test_best_epoch_is_returned_and_patience_ends_training(self, tmp_path):
        # Item 9 is never bought, so that its rank in validation falls from epoch to epoch.
        train = [UserSequence("a", ["0", "1", "2", "3"] * 2), UserSequence("b", ["4", "5"])]
        splits = Splits(train, [NextItemExample("a", ["0", "1"], "9")], [])
        settings = arguments(tmp_path, num_train_epochs=40, metric_for_best_model="mrr", save_total_limit=None)
        model = train_sasrec(splits, ITEMS, settings, config=small_config(), patience=3)
        last = max(tmp_path.glob("checkpoint-*"), key=lambda path: int(path.name.removeprefix("checkpoint-")))
        state = json.loads((last / "trainer_state.json").read_text())
        by_epoch = [entry["eval_mrr"] for entry in state["log_history"] if "eval_mrr" in entry]
        assert 4 <= len(by_epoch) < 40
        assert by_epoch[-1] < max(by_epoch)
        assert 1 / evaluate_sasrec(model, splits.validation)[0] == pytest.approx(max(by_epoch))

    def test_few_users_are_gone_through_more_often(self, tmp_path):
        splits, seen = cyclic_splits(), []  # 72 rows of one batch and a half

        def steps(_, args, state, control, **kwargs):
            seen.append(state.global_step)

        callback = type("Watch", (TrainerCallback,), {"on_evaluate": steps})()
        settings = sasrec_training_arguments(tmp_path, use_cpu=True, disable_tqdm=True, min_steps=50)
        train_sasrec(splits, ITEMS, settings, config=small_config(), patience=None, callbacks=[callback])
        assert seen == [*range(3, 50, 3), 50]  # 14 epochs would be 28
        assert settings.max_steps == -1  # the caller's own are left as they are
        # As many updates as that, or a number of them by name, are evaluated as asked
        for changes in ({"min_steps": 28}, {"max_steps": 28, "min_steps": 50}):
            seen.clear()
            settings = sasrec_training_arguments(tmp_path, use_cpu=True, disable_tqdm=True, **changes)
            train_sasrec(splits, ITEMS, settings, config=small_config(), patience=None, callbacks=[callback])
            assert seen == [*range(2, 29, 2)]

    def test_how_long_it_trains(self, tmp_path):
        default = sasrec_training_arguments(tmp_path, use_cpu=True)
        assert num_steps(default, 640) == 2_000  # 14 epochs of 10
        assert num_steps(default, 64_000) == 14_000
        assert num_steps(sasrec_training_arguments(tmp_path, use_cpu=True, num_train_epochs=3), 640) == 30
        assert num_steps(sasrec_training_arguments(tmp_path, use_cpu=True, max_steps=7), 640) == 7
        assert num_steps(sasrec_training_arguments(tmp_path, use_cpu=True, min_steps=0), 640) == 140
        assert num_steps(TrainingArguments(str(tmp_path), use_cpu=True, num_train_epochs=2), 80) == 20

    def test_without_a_bound_on_gradients_sampling_trains_too(self, tmp_path):
        config = small_config()
        config.num_sampled_negatives = 3
        settings = arguments(tmp_path, num_train_epochs=1, max_grad_norm=0.0)
        seen = []
        callback = type("Watch", (TrainerCallback,), {"on_evaluate": lambda *_, metrics, **__: seen.append(metrics)})()
        train_sasrec(cyclic_splits(), ITEMS, settings, config=config, callbacks=[callback])
        assert len(seen) == 1
        state = json.loads(next(tmp_path.glob("checkpoint-*/trainer_state.json")).read_text())
        assert state["log_history"][0]["grad_norm"] > 0

    def test_what_sparse_gradients_cannot_do_is_refused_where_items_are_sampled(self, tmp_path):
        config = small_config()
        config.num_sampled_negatives = 3
        with pytest.raises(ValueError, match=r"weight_decay=0.1, which would touch every item"):
            train_sasrec(cyclic_splits(), ITEMS, arguments(tmp_path, weight_decay=0.1), config=config)
        with pytest.raises(ValueError, match=r"optim=.*adafactor.*sparse Adam"):
            train_sasrec(cyclic_splits(), ITEMS, arguments(tmp_path, optim="adafactor"), config=config)

    def test_item_outside_the_catalogue_is_refused(self, tmp_path):
        with pytest.raises(ValueError, match=r"\['11'\] are unknown to this SASRec of 11 items"):
            train_sasrec(cyclic_splits(), ITEMS[:11], arguments(tmp_path), config=small_config())


def test_every_item_after_the_first_is_a_target_once():
    model = SASRecModel(SASRecConfig(item_ids=ITEMS, hidden_size=8, max_position_embeddings=4))
    rows = _training_rows(model, [UserSequence("a", ITEMS), UserSequence("b", ["7"]), UserSequence("c", ["7", "2"])])
    assert [{key: value.tolist() for key, value in row.items()} for row in rows] == [
        {"input_ids": [1, 2, 3, 4], "labels": [1, 2, 3, 4]},
        {"input_ids": [5, 6, 7, 8], "labels": [5, 6, 7, 8]},
        {"input_ids": [9, 10, 11], "labels": [9, 10, 11]},
        {"input_ids": [8], "labels": [2]},
    ]


class TestEvaluateSASRec:
    def test_ranks_in_the_order_of_the_examples(self):
        torch.manual_seed(0)
        model = SASRecModel(SASRecConfig(item_ids=ITEMS, hidden_size=8, initializer_range=0.5))
        examples = [
            NextItemExample("a", ["1", "2", "3", "4"], "5"),
            NextItemExample("b", ["6"], "0"),
            NextItemExample("c", ["1", "2"], "2"),
        ]
        ranks = evaluate_sasrec(model, examples, batch_size=2)
        for rank, (_, history, item) in zip(ranks, examples, strict=True):
            order = model.score([history])[0].argsort(descending=True).tolist()
            assert ITEMS[order[rank - 1]] == item
        assert model.training

    @pytest.mark.parametrize("exclude_history", [False, True])
    def test_ranks_do_not_depend_on_how_many_scores_are_in_memory(self, monkeypatch, exclude_history):
        torch.manual_seed(0)
        model = SASRecModel(SASRecConfig(item_ids=ITEMS, hidden_size=8, initializer_range=0.5))
        examples = [NextItemExample(str(u), [ITEMS[u], ITEMS[-u]], ITEMS[(3 * u) % 12]) for u in range(12)]
        expected = evaluate_sasrec(model, examples, exclude_history=exclude_history)
        monkeypatch.setattr(sasrec_training, "_SCORES_AT_ONCE", 30)
        assert np.array_equal(evaluate_sasrec(model, examples, exclude_history=exclude_history), expected)

    def test_ties_count_against_the_target(self):
        model = SASRecModel(SASRecConfig(item_ids=ITEMS, hidden_size=8))
        torch.nn.init.zeros_(model.output.weight)
        assert evaluate_sasrec(model, [NextItemExample("a", ["1"], "5")]).tolist() == [12]

    def test_quality_by_hand(self):
        prediction = type("Prediction", (), {"predictions": np.array([1, 3, 11, 10])})
        quality = _ranking_quality(prediction)
        assert quality["hit@10"] == 3 / 4
        assert quality["ndcg@10"] == pytest.approx((1 + 1 / 2 + 1 / np.log2(11)) / 4)
        assert quality["mrr"] == pytest.approx((1 + 1 / 3 + 1 / 11 + 1 / 10) / 4)


def test_labels_are_ignored_where_nothing_is_asked():
    model = SASRecModel(SASRecConfig(item_ids=ITEMS, hidden_size=8))
    output = model(torch.tensor([[1, 2]]), labels=torch.tensor([[IGNORE_INDEX, IGNORE_INDEX]]), num_items_in_batch=1)
    assert output.loss.item() == 0
    output.loss.backward()


def test_excluded_history_ranks_last():
    """With the history out of the way a target moves up by the seen items that stood above it, and no further."""
    torch.manual_seed(0)
    items = [f"i{number}" for number in range(12)]
    model = SASRecModel(SASRecConfig(item_ids=items, hidden_size=8)).eval()
    examples = [
        NextItemExample("u", ["i0", "i1", "i2"], "i5"),
        NextItemExample("v", ["i4"], "i6"),
        NextItemExample("w", ["i7", "i8"], "i8"),
    ]
    plain, excluded = (evaluate_sasrec(model, examples, exclude_history=flag) for flag in (False, True))
    scores = model.score([example.history for example in examples])
    for row, example in enumerate(examples[:2]):
        target = scores[row, items.index(example.item)]
        above = sum(bool(scores[row, items.index(item)] >= target) for item in example.history)
        assert excluded[row] == plain[row] - above
    assert excluded[2] == len(items)  # a target of the history itself


def test_scores_that_are_no_numbers_rank_last():
    model = SASRecModel(SASRecConfig(item_ids=["a", "b", "c"], hidden_size=8)).eval()
    torch.nn.init.constant_(model.output.weight, float("nan"))
    assert evaluate_sasrec(model, [NextItemExample("u", ["a"], "b")]).tolist() == [3]
