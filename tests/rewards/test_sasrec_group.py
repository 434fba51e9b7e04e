import dataclasses

import numpy as np
import pytest
import torch

from ilrec_trl.data.interactions import Interactions
from ilrec_trl.data.splits import NextItemExample, UserSequence
from ilrec_trl.items.item_trie import ItemTrie
from ilrec_trl.rewards import sasrec_group
from ilrec_trl.rewards.sasrec import SASRecConfig, SASRecModel
from ilrec_trl.rewards.sasrec_group import SASRecGroup, assign_folds, train_sasrec_group, without_fold
from ilrec_trl.rewards.sasrec_training import evaluate_sasrec, sasrec_training_arguments


ITEMS = [str(item) for item in range(8)]
TRIE = ItemTrie.from_sequences({item: [number] for number, item in enumerate(reversed(ITEMS))})


def circle_splits(num_users=12):
    walks = {f"u{user}": [str((user + step) % 8) for step in range(4 + user % 3)] for user in range(num_users)}
    return Interactions.from_sequences(walks).leave_one_out()


def train(splits, folder, **options):
    args = sasrec_training_arguments(
        folder / "unused", use_cpu=True, disable_tqdm=True, num_train_epochs=2, learning_rate=1e-2
    )
    config = SASRecConfig(hidden_size=8, max_position_embeddings=8, dropout=0.1)
    return train_sasrec_group(splits, ITEMS, args, folder, config=config, **options)


def test_folds_are_even_and_leave_nothing_of_their_users():
    splits = circle_splits()
    fold_of = assign_folds(splits, 5, seed=0)
    assert sorted(np.bincount(list(fold_of.values()))) == [2, 2, 2, 3, 3]
    assert fold_of == assign_folds(splits, 5, seed=0) != assign_folds(splits, 5, seed=1)
    for fold in range(5):
        part = without_fold(splits, fold_of, fold)
        others = [user for user, _ in splits.train if fold_of[user] != fold]
        assert [user for user, _ in part.train] == [user for user, _, _ in part.validation] == others


def test_nothing_of_a_user_reaches_the_scorer_of_that_user(tmp_path):
    """Another sequence and another validation item of one user change every scorer but that user's own."""
    splits = circle_splits()
    user = splits.train[4].user
    changed = dataclasses.replace(
        splits,
        train=[entry if entry.user != user else UserSequence(user, ["7", "0", "3"]) for entry in splits.train],
        validation=[
            entry if entry.user != user else NextItemExample(user, ["7", "0", "3"], "1") for entry in splits.validation
        ],
    )
    groups = [train(data, tmp_path / name, folds=3) for name, data in (("a", splits), ("b", changed))]
    assert groups[0].folds == groups[1].folds
    own = groups[0].folds[0][user]
    for fold, (a, b) in enumerate(zip(groups[0].models, groups[1].models, strict=True)):
        same = all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))
        assert same == (fold == own)
    rewards = [group.reward_func(TRIE) for group in groups]
    stranger = next(other for other, fold in groups[0].folds[0].items() if fold != own)
    scores = [reward([["1", "2"]] * 2, user=[user, stranger]) for reward in rewards]
    assert torch.equal(scores[0][0], scores[1][0])
    assert not torch.equal(scores[0][1], scores[1][1])


def test_ensemble_and_folds_reload_and_resume(tmp_path, monkeypatch):
    splits = circle_splits()
    whole = train(splits, tmp_path / "group", members=2, folds=2)
    assert (whole.num_members, whole.num_folds, len(whole.models)) == (2, 2, 4)
    loaded = SASRecGroup.load(tmp_path / "group")
    users = list(loaded.folds[0])
    ask = [["1"], ["2", "3"], ["4"]], {"user": [users[0], users[1], "nobody"]}
    expected = whole.reward_func(TRIE)(ask[0], **ask[1])
    assert torch.equal(loaded.reward_func(TRIE)(ask[0], **ask[1]), expected)

    # As if killed in the third training: it alone is trained again, and comes out the same
    (tmp_path / "group/member1-fold0/finished.json").unlink()
    (tmp_path / "group/group.json").unlink()
    trained = []
    original = sasrec_group.train_sasrec
    monkeypatch.setattr(sasrec_group, "train_sasrec", lambda *a, **k: trained.append(a[2].seed) or original(*a, **k))
    again = train(splits, tmp_path / "group", members=2, folds=2)
    assert trained == [42 + 2]
    assert torch.equal(again.reward_func(TRIE)(ask[0], **ask[1]), expected)
    # Other data are another training
    train(dataclasses.replace(splits, train=splits.train[:-1]), tmp_path / "group", members=2, folds=2)
    assert len(trained) == 5


def test_scores_of_an_ensemble_by_hand():
    torch.manual_seed(0)
    models = [SASRecModel(SASRecConfig(item_ids=ITEMS, hidden_size=8, initializer_range=0.5)) for _ in range(3)]
    mean = torch.stack([model.eval().score([["1", "2"]])[0].softmax(-1) for model in models]).mean(0)  # (I,)
    scores = SASRecGroup(models).reward_func(TRIE)([["1", "2"]])[0]
    for item, score in zip(TRIE.item_ids, scores, strict=True):
        torch.testing.assert_close(score, mean[ITEMS.index(item)])
    for exclude_history in (False, True):
        left = [item for item in ITEMS if not (exclude_history and item in ("1", "2"))]
        order = sorted(left, key=lambda item: -mean[ITEMS.index(item)])
        examples = [NextItemExample("u", ["1", "2"], item) for item in order]
        ranks = evaluate_sasrec(models, examples, exclude_history=exclude_history)
        assert ranks.tolist() == list(range(1, len(left) + 1))


def test_a_cross_fitted_group_is_calibrated_by_users_whom_its_models_have_not_seen(tmp_path, monkeypatch):
    splits, asked = circle_splits(), {}
    monkeypatch.setattr(sasrec_group, "calibrated_temperature", lambda *given: asked.update(enumerate(given)) or 2.5)
    group = train(splits, tmp_path, members=2, folds=2)
    for number, part in enumerate(asked[1]):
        member, fold = divmod(number, 2)
        assert part
        assert part == [entry for entry in splits.train if group.folds[member][entry.user] == fold]
    assert SASRecGroup.load(tmp_path).temperature == group.temperature == 2.5
    # Without folds nobody is left to ask
    assert train(splits, tmp_path / "all", members=2).temperature is None


def test_refusals(tmp_path):
    splits = circle_splits()
    with pytest.raises(ValueError, match="1 folds of 12 users; expected from 2 folds to one a user"):
        train(splits, tmp_path, folds=1)
    with pytest.raises(ValueError, match="an ensemble of 0; expected 1 or more"):
        train(splits, tmp_path, members=0)
    models = [SASRecModel(SASRecConfig(item_ids=items, hidden_size=8)) for items in (["a", "b"], ["b", "a"])]
    with pytest.raises(ValueError, match="same items in the same order"):
        SASRecGroup(models)
    assert not (tmp_path / "group.json").exists()
