"""Popularity by hand; SASRec as teacher."""

import dataclasses
import json
import math
import shutil

import numpy as np
import pytest
import torch
from transformers.utils import logging

from ilrec_trl.data.splits import NextItemExample, UserSequence, sample
from ilrec_trl.evaluation.metrics import hit_rate, ndcg
from ilrec_trl.items.item_trie import ItemTrie
from ilrec_trl.pipeline.baselines import popularity_ranks, transition_ranks
from ilrec_trl.pipeline.options import DataOptions, EvaluationOptions, InputError, TeacherOptions
from ilrec_trl.pipeline.prepare import prepare
from ilrec_trl.pipeline.teacher import teacher_ranks, teacher_reward, teacher_settings, train_teacher
from ilrec_trl.report.markdown import teacher_note
from ilrec_trl.rewards.sasrec import SASRecConfig, SASRecModel
from ilrec_trl.rewards.sasrec_training import steps_of_epochs, with_min_steps
from ilrec_trl.rewards.transitions import TransitionReward


def test_popularity_ranks():
    # Counts: a 3, b 1, c 1, d 0, e 0, f 0.
    train = [UserSequence("u", ["a", "a", "b"]), UserSequence("v", ["a", "c"])]
    examples = [NextItemExample(item, ["a"], item) for item in "abcf"]
    ranks = popularity_ranks(train, examples, list("abcdef"))
    assert ranks.starts.tolist() == [1, 2, 2, 4]
    assert ranks.ties.tolist() == [1, 2, 2, 3]
    # A popular pair shares ranks 2 and 3; the three unseen items share 4 to 6.
    assert hit_rate(ranks.starts, ranks.ties, 5).tolist() == pytest.approx([1, 1, 1, 2 / 3])


def test_popularity_ranks_without_the_history():
    train = [UserSequence("u", ["a", "a", "b"]), UserSequence("v", ["a", "c"])]
    examples = [NextItemExample("b", ["a", "c"], "b"), NextItemExample("f", ["a", "d"], "f")]
    ranks = popularity_ranks(train, examples, list("abcdef"), exclude_history=True)
    assert ranks.starts.tolist() == [1, 3]  # nothing but b; then b and c before the unseen ones
    assert ranks.ties.tolist() == [1, 2]  # c is gone; of d, e and f the user has d
    repeated = popularity_ranks(train, [NextItemExample("a", ["a", "b"], "a")], list("abcdef"), exclude_history=True)
    assert repeated.starts.tolist() == [float("inf")]


def test_transition_ranks():
    # b came after a twice, c once; what was never seen shares a place
    train = [UserSequence("u", ["a", "b"]), UserSequence("v", ["a", "b"]), UserSequence("w", ["a", "c"])]
    trie = ItemTrie.from_sequences({item: [number] for number, item in enumerate("dabcef")})
    examples = [NextItemExample("u", ["a"], item) for item in "abcdef"]
    ranks = transition_ranks(train, examples, trie, batch_size=4)
    # Counts and three times popularity: b 2 + 3 * 2.5 / 9, c 1 + 3 * 1.5 / 9, a 3 * 3.5 / 9, the others 3 * 0.5 / 9
    assert ranks.starts.tolist() == [3, 1, 2, 4, 4, 4]
    assert ranks.ties.tolist() == [1, 1, 1, 3, 3, 3]
    without = transition_ranks(train, examples, trie, exclude_history=True, batch_size=4)
    assert without.starts.tolist() == [math.inf, 1, 2, 3, 3, 3]


@pytest.mark.parametrize(
    ("whole", "epochs", "steps"), [(False, None, 2_000), (True, None, 500), (True, 2, 2), (False, 2, 2)]
)
def test_without_validation_items_fewer_updates_have_to_do(data_folder, tmp_path, monkeypatch, whole, epochs, steps):
    """Nothing would end 2,000 updates early, long after the best ones."""
    asked = []

    def train(splits, item_ids, args, **settings):
        args = with_min_steps(args, len(splits.train))
        asked.append(args.max_steps if args.max_steps > 0 else steps_of_epochs(args, len(splits.train)))
        return SASRecModel(SASRecConfig(item_ids=item_ids, hidden_size=8, num_attention_heads=1))

    monkeypatch.setattr("ilrec_trl.pipeline.teacher.train_sasrec", train)
    prepared = prepare(DataOptions(data=str(data_folder), train_on_validation=whole))
    train_teacher(prepared, TeacherOptions(sasrec_folds=1, sasrec_epochs=epochs), tmp_path, seed=0)
    assert asked == [steps]


@pytest.mark.parametrize(("asked", "limit"), [(None, 100), (True, 100), (False, 100), (None, 2), (False, 2)])
def test_sasrec_knows_what_the_language_model_reads(data_folder, tmp_path, monkeypatch, caplog, asked, limit):
    """By default, but where its softmax is sampled."""
    monkeypatch.setattr("ilrec_trl.rewards.sasrec.FULL_SOFTMAX_ITEMS", limit)
    given = []

    def train(splits, item_ids, args, item_features=None, **settings):
        given.append(item_features)
        return SASRecModel(SASRecConfig(item_ids=item_ids, hidden_size=8, num_attention_heads=1))

    monkeypatch.setattr("ilrec_trl.pipeline.teacher.train_sasrec", train)
    prepared = prepare(DataOptions(data=str(data_folder)))
    options = TeacherOptions(sasrec_folds=1, sasrec_item_tokens=asked)
    model = train_teacher(prepared, options, tmp_path, seed=0)
    tokens = prepared.tokenizer.convert_ids_to_tokens
    expected = [prepared.catalog.semantic_ids] if asked is not False and limit == 100 else [None]
    assert [each and [tokens(item) for item in each] for each in given] == expected
    assert teacher_settings(model, options, 0)["item_tokens"] == (expected != [None])
    assert ("learns no vectors of the items' tokens" in caplog.text) == (asked is None and limit == 2)


def test_tokens_that_cannot_be_learnt_are_refused(data_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("ilrec_trl.rewards.sasrec.FULL_SOFTMAX_ITEMS", 2)
    prepared = prepare(DataOptions(data=str(data_folder)))
    with pytest.raises(InputError, match="--sasrec_item_tokens cannot be had for"):
        train_teacher(prepared, TeacherOptions(sasrec_item_tokens=True), tmp_path, seed=0)


def test_trained_ones_know_tokens_or_do_not(data_folder, tmp_path):
    prepared = prepare(DataOptions(data=str(data_folder)))
    with pytest.raises(InputError, match="leave out --sasrec_item_tokens"):
        train_teacher(prepared, TeacherOptions(sasrec=str(tmp_path), sasrec_item_tokens=True), tmp_path, seed=0)


def test_the_teacher_is_judged_as_the_methods_are_ranked(data_folder):
    prepared = prepare(DataOptions(data=str(data_folder)))
    torch.manual_seed(0)
    fresh = SASRecModel(SASRecConfig(item_ids=prepared.catalog.item_ids, hidden_size=8, num_attention_heads=1))
    assert len(prepared.splits.validation) > 20
    train, examples = prepared.splits.train, sample(prepared.splits.validation, 20)
    found = []
    for exclude in (False, True):
        evaluation = EvaluationOptions(exclude_history=exclude, validation_users=20)
        figures = teacher_reward(fresh, prepared, TeacherOptions(), evaluation)[1]["teacher_ndcg@10"]
        ranks = [
            teacher_ranks(fresh, examples, {}, exclude),
            popularity_ranks(train, examples, prepared.catalog.item_ids, exclude),
            transition_ranks(train, examples, prepared.item_trie, exclude),
        ]
        expected = {each.method: ndcg(each.starts, each.ties, 10).mean() for each in ranks}
        assert figures == pytest.approx(expected | {"questions": 20})
        found.append(figures)
    assert all(found[0][name] < found[1][name] for name in ("SASRec", "popularity"))


def test_a_teacher_no_better_than_popularity_is_warned_of(data_folder, tmp_path, caplog):
    (tmp_path / "bestseller").mkdir()
    shutil.copyfile(data_folder / "index.json", tmp_path / "bestseller/index.json")
    # What is asked on validation items is item 7 alone
    sequences = {str(user): [user % 7, 7, 7, 7, user % 7] for user in range(30)}
    (tmp_path / "bestseller/inter.json").write_text(json.dumps(sequences))
    config = {"hidden_size": 16, "num_attention_heads": 1, "dropout": 0.0}
    logging.enable_propagation()
    try:
        options = DataOptions(data=str(tmp_path / "bestseller"))
        prepared = prepare(options)
        torch.manual_seed(0)
        fresh = SASRecModel(SASRecConfig(item_ids=prepared.catalog.item_ids, **config))
        _, settings = teacher_reward(fresh, prepared, TeacherOptions(), EvaluationOptions())
        assert teacher_note(settings) in caplog.text
        assert "ranks 30 validation items no better than popularity does (NDCG@10 0." in caplog.text
        assert " and 1.0000)" in caplog.text
        caplog.clear()
        # One that has learnt something, and validation items that are trained on, are not spoken of
        whole = prepare(dataclasses.replace(options, train_on_validation=True))
        assert "teacher_ndcg@10" not in teacher_reward(fresh, whole, TeacherOptions(), EvaluationOptions())[1]
        circle = prepare(DataOptions(data=str(data_folder)))
        short = TeacherOptions(sasrec_epochs=40, sasrec_folds=1, sasrec_hidden_size=16, sasrec_dropout=0.0)
        teacher_reward(
            train_teacher(circle, short, tmp_path / "sasrec", seed=0), circle, TeacherOptions(), EvaluationOptions()
        )
        assert "popularity" not in caplog.text
    finally:
        logging.disable_propagation()


def test_a_share_of_the_rewards_is_that_of_transitions(data_folder, tmp_path):
    prepared = prepare(DataOptions(data=str(data_folder)))
    teacher = SASRecModel(SASRecConfig(item_ids=prepared.catalog.item_ids, hidden_size=8, num_attention_heads=1))
    histories, users = [["1", "2"], ["5"]], [entry.user for entry in prepared.splits.train[:2]]
    scores = {
        share: teacher_reward(teacher, prepared, TeacherOptions(transition_share=share), EvaluationOptions())[0](
            histories, user=users
        )
        for share in (0.0, 0.25)
    }
    counted = TransitionReward(prepared.splits.train, prepared.item_trie)(histories, user=users)
    torch.testing.assert_close(scores[0.25], 0.75 * scores[0.0] + 0.25 * counted)
    with pytest.raises(InputError, match=r"--transition_share is 1.0, expected a number from 0 to below 1"):
        train_teacher(prepared, TeacherOptions(transition_share=1.0), tmp_path, seed=0)


def test_a_saved_teacher_must_know_the_items(data_folder, tmp_path, caplog):
    prepared = prepare(DataOptions(data=str(data_folder)))
    config = SASRecConfig(item_ids=["0", "1"], hidden_size=8, num_attention_heads=1)
    SASRecModel(config).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="does not know item '10'"):
        train_teacher(prepared, TeacherOptions(sasrec=str(tmp_path)), tmp_path, seed=0)
    config.item_ids = [*prepared.catalog.item_ids, "more"]
    SASRecModel(config).save_pretrained(tmp_path)
    logging.enable_propagation()
    try:
        train_teacher(prepared, TeacherOptions(sasrec=str(tmp_path)), tmp_path, seed=0)
    finally:
        logging.disable_propagation()
    assert "knows 1 further items, such as 'more', and ranks them too" in caplog.text


def test_a_group_of_teachers_is_trained_loaded_and_ranked(data_folder, tmp_path):
    prepared = prepare(DataOptions(data=str(data_folder)))
    small = {"sasrec_hidden_size": 16, "sasrec_epochs": 1}
    options = TeacherOptions(sasrec_folds=2, sasrec_ensemble=2, **small)
    group = train_teacher(prepared, options, tmp_path, seed=0)
    settings = teacher_settings(group, options, 0)
    assert (settings["folds"], settings["ensemble"]) == (2, 2)
    loaded = train_teacher(prepared, TeacherOptions(sasrec=str(tmp_path)), tmp_path / "unused", seed=0)
    examples = prepared.splits.validation
    ranks = [teacher_ranks(teacher, examples, {}).starts for teacher in (group, loaded)]
    assert ranks[0].tolist() == ranks[1].tolist()
    user = prepared.splits.train[0].user
    reward, _ = teacher_reward(loaded, prepared, options, EvaluationOptions())
    assert reward([["1", "2"]], user=[user]).sum().item() == pytest.approx(1)
    # Rewards at the group's own temperature only where that is asked for
    group.temperature = 2.0
    asked = [["1", "2"]], {"user": [user]}
    own = dataclasses.replace(options, calibrate_rewards=True)
    expected = group.reward_func(prepared.item_trie, 2.0)(asked[0], **asked[1])
    calibrated, settings = teacher_reward(group, prepared, own, EvaluationOptions())
    assert torch.equal(calibrated(asked[0], **asked[1]), expected)
    plain = group.reward_func(prepared.item_trie)(asked[0], **asked[1])
    torch.testing.assert_close(reward(asked[0], **asked[1]), plain)  # loaded weights may round otherwise
    assert not torch.allclose(plain, expected, rtol=1e-3)
    figures = settings.pop("teacher_ndcg@10")
    assert settings == {"reward_temperature": 2.0, "transition_share": 0.0}
    # Of the models one by one, not of their mean probability
    each = [
        ndcg(teacher_ranks(model, examples, {}).starts, np.ones(len(examples)), 10).mean() for model in group.models
    ]
    counted = popularity_ranks(prepared.splits.train, examples, prepared.catalog.item_ids)
    assert figures["SASRec"] == pytest.approx(np.mean(each), abs=1e-4)
    assert figures["popularity"] == pytest.approx(ndcg(counted.starts, counted.ties, 10).mean(), abs=1e-4)
    assert figures["transitions"] > figures["popularity"]  # users go round in a circle
    assert figures["questions"] == len(examples)
    for wrong in ({"sasrec_folds": 1}, {"reward_temperature": 2.0}):
        with pytest.raises(InputError, match="--calibrate_rewards needs cross-fitted SASRecs"):
            train_teacher(
                prepared, TeacherOptions(**{"sasrec_folds": 2, "calibrate_rewards": True} | wrong), tmp_path, seed=0
            )
    with pytest.raises(InputError, match="--sasrec names trained ones"):
        train_teacher(prepared, TeacherOptions(sasrec=str(tmp_path), sasrec_folds=2), tmp_path, seed=0)
    with pytest.raises(InputError, match="61 folds of 60 users"):
        train_teacher(prepared, TeacherOptions(sasrec_folds=61), tmp_path, seed=0)
    # One model in its place
    train_teacher(prepared, TeacherOptions(sasrec_folds=1, **small), tmp_path, seed=0)
    single = train_teacher(prepared, TeacherOptions(sasrec=str(tmp_path)), tmp_path, seed=0)
    assert isinstance(single, SASRecModel)
    with pytest.raises(InputError, match="--calibrate_rewards needs cross-fitted SASRecs"):
        train_teacher(prepared, TeacherOptions(sasrec=str(tmp_path), calibrate_rewards=True), tmp_path, seed=0)
