import pytest
import torch

from ilrec_trl.data.splits import UserSequence
from ilrec_trl.items.item_trie import ItemTrie
from ilrec_trl.rewards.rewards import check_reward_func
from ilrec_trl.rewards.transitions import TransitionReward


ITEMS = list("abcdef")
TRIE = ItemTrie.from_sequences({item: [number] for number, item in enumerate(reversed(ITEMS))})
SEQUENCES = [
    UserSequence("u", list("abcd")),
    UserSequence("v", list("bda")),
    UserSequence("w", list("abbab")),
    UserSequence("x", list("e")),
]


def naive(history, user, sequences, window=3, latest=5, decay=0.7, smoothing=3.0):
    """Scores by item, pair by pair."""
    others = [each for each in sequences if each.user != user]
    popularity = {item: 0.5 + sum(each.items.count(item) for each in others) for item in ITEMS}
    total = sum(popularity.values())
    asked = history[::-1][:latest]
    shares = [decay**place for place in range(len(asked))]
    scores = dict.fromkeys(ITEMS, 0.0)
    for item, share in zip(asked, shares, strict=True):
        row = {other: smoothing * count / total for other, count in popularity.items()}
        for each in others:
            for place, earlier in enumerate(each.items):
                for gap, later in enumerate(each.items[place + 1 : place + 1 + window], start=1):
                    row[later] += (earlier == item) / gap
        for other, count in row.items():
            scores[other] += share / sum(shares) * count / sum(row.values())
    return scores


@pytest.mark.parametrize(
    "options", [{}, {"window": 1, "latest": 1}, {"window": 2, "latest": 3, "decay": 1.0, "smoothing": 0.1}]
)
def test_scores_are_those_of_counting_pair_by_pair(options):
    given = {"history" if name == "latest" else name: value for name, value in options.items()}
    reward = TransitionReward(SEQUENCES, TRIE, **given)
    histories = [list("ab"), list("abc"), ["e"], list("fbbd"), list("abcdefab"), ["b"]]
    users = ["u", "w", "x", "nobody", "v", "w"]
    scores = reward(histories, user=users)
    for row, (history, user) in enumerate(zip(histories, users, strict=True)):
        expected = naive(history, user, SEQUENCES, **options)
        assert sum(expected.values()) == pytest.approx(1)
        assert scores[row].tolist() == pytest.approx([expected[item] for item in TRIE.item_ids], abs=1e-6)
    check_reward_func(reward, TRIE, histories, user=users)


def test_a_user_with_several_sequences_knows_none_of_them():
    sequences = [UserSequence("u", list("ab")), UserSequence("u", list("ac")), UserSequence("v", list("ad"))]
    scores = dict(zip(TRIE.item_ids, TransitionReward(sequences, TRIE)([["a"]], user=["u"])[0].tolist(), strict=True))
    assert scores["d"] > 2 * max(scores["b"], scores["c"])
    assert scores == pytest.approx(naive(["a"], "u", sequences), abs=1e-6)


def test_for_evaluation_every_sequence_counts():
    scores = TransitionReward(SEQUENCES, TRIE).score([["a"], list("bd")])
    assert torch.equal(scores, TransitionReward(SEQUENCES, TRIE)([["a"], list("bd")], user=["nobody", "nobody"]))


def test_without_a_history_popularity_is_left():
    scores = TransitionReward(SEQUENCES, TRIE)([[]], user=["w"])[0]
    expected = {"a": 2.5, "b": 2.5, "c": 1.5, "d": 2.5, "e": 1.5, "f": 0.5}
    assert scores.tolist() == pytest.approx([expected[item] / 11 for item in TRIE.item_ids])
    assert scores.dtype == torch.float32


def test_refusals():
    reward = TransitionReward(SEQUENCES, TRIE, user_column="customer")
    with pytest.raises(ValueError, match="needs the column 'customer'"):
        reward([["a"]], user=["u"])
    with pytest.raises(ValueError, match="Item 'z' is not in the trie"):
        reward([["z"]], customer=["u"])
    with pytest.raises(ValueError, match="Item 'z' is not in the trie"):
        TransitionReward([UserSequence("u", ["a", "z"])], TRIE)
    with pytest.raises(ValueError, match="Got no sequences"):
        TransitionReward([], TRIE)
    for wrong in ({"window": 0}, {"history": 0}, {"decay": 0}, {"decay": 1.1}, {"smoothing": 0}):
        with pytest.raises(ValueError, match="expected at least 1"):
            TransitionReward(SEQUENCES, TRIE, **wrong)
