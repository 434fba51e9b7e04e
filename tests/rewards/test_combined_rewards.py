import pytest
import torch

from ilrec_trl.items.item_trie import ItemTrie
from ilrec_trl.rewards.combined_rewards import CrossFittedReward, EnsembleReward
from ilrec_trl.rewards.rewards import check_reward_func


def constant(*scores):
    return lambda histories, **columns: torch.tensor([scores] * len(histories))


class TestEnsembleReward:
    def test_weighted_mean_of_shares_by_hand(self):
        reward = EnsembleReward([constant(2.0, 6.0), constant(30.0, 10.0)], weights=[1, 3])
        # 1/4 * (1/4, 3/4) + 3/4 * (3/4, 1/4)
        assert reward([["a"], ["b"]]).tolist() == [pytest.approx([0.625, 0.375])] * 2

    def test_a_function_without_mass_leaves_it_to_the_others(self):
        assert EnsembleReward([constant(0.0, 0.0), constant(1.0, 3.0)])([["a"]]).tolist() == [[0.25, 0.75]]
        item_trie = ItemTrie.from_sequences({"a": [1], "b": [2]})
        with pytest.raises(ValueError, match="score 0 to every item"):
            check_reward_func(EnsembleReward([constant(0.0, 0.0)]), item_trie, [["a"]])

    def test_columns_are_passed_on(self):
        by_user = lambda histories, user: torch.tensor([[float(name), 1.0] for name in user])  # noqa: E731
        assert EnsembleReward([by_user])([["a"], ["b"]], user=["1", "3"]).tolist() == [[0.5, 0.5], [0.75, 0.25]]

    @pytest.mark.parametrize(
        ("number", "weights", "message"),
        [
            (0, None, "0 reward functions"),
            (2, [1.0], "and 1 weights"),
            (2, [1, -1], "at least 0"),
            (1, [0.0], "above"),
        ],
    )
    def test_refusals(self, number, weights, message):
        with pytest.raises(ValueError, match=message):
            EnsembleReward([constant(1.0)] * number, weights)


class TestCrossFittedReward:
    FOLDS = {"ann": 0, "bob": 1, "7": 2}

    def reward(self, seen, **options):
        def fold(number):
            def reward_func(histories, **columns):
                seen[number].append((histories, columns))
                return torch.eye(3)[number].repeat(len(histories), 1) + len(histories[0]) * 0

            return reward_func

        return CrossFittedReward([fold(number) for number in range(3)], self.FOLDS, **options)

    def test_every_row_is_scored_by_the_function_of_its_fold_alone(self):
        seen = [[], [], []]
        reward = self.reward(seen)
        histories = [["a"], ["b"], ["c"], ["d"]]
        scores = reward(histories, user=["bob", "ann", 7, "bob"], item=["w", "x", "y", "z"])
        assert scores.tolist() == [[0, 1, 0], [1, 0, 0], [0, 0, 1], [0, 1, 0]]
        assert seen[0] == [([["b"]], {"user": ["ann"], "item": ["x"]})]
        assert seen[1] == [([["a"], ["d"]], {"user": ["bob", "bob"], "item": ["w", "z"]})]

    def test_strangers_get_the_mean_of_all(self):
        scores = self.reward([[], [], []])([["a"], ["b"], ["c"]], user=["cem", "bob", None])
        torch.testing.assert_close(scores, torch.tensor([[1 / 3] * 3, [0, 1, 0], [1 / 3] * 3]))

    def test_without_the_column_nothing_is_scored(self):
        with pytest.raises(ValueError, match=r"chosen by the column 'user', but got \['item'\]"):
            self.reward([[], [], []])([["a"]], item=["x"])
        scores = self.reward([[], [], []], user_column="customer")([["a"]], customer=["ann"])
        assert scores.tolist() == [[1, 0, 0]]

    def test_refusals(self):
        with pytest.raises(ValueError, match="1 reward functions; cross-fitting needs 2"):
            CrossFittedReward([constant(1.0)], {})
        with pytest.raises(ValueError, match="User 'ann' is in fold 2, but there are 2"):
            CrossFittedReward([constant(1.0)] * 2, {"ann": 2})
