import random

import pytest
import torch

from ilrec_trl.items.item_trie import ItemTrie
from ilrec_trl.rewards.rewards import SASRecReward, ScoreMatrixReward, check_reward_func, save_scores
from ilrec_trl.rewards.sasrec import SASRecConfig, SASRecModel
from tests.references import naive_sasrec_scores, naive_token_rewards


ITEMS = ["guitar", "strings", "tuner", "capo"]
# Sorted by tokens: capo, tuner, guitar, strings.
SEQUENCES = {"guitar": [2, 1], "strings": [2, 3], "tuner": [1, 1], "capo": [0, 0]}


@pytest.fixture
def item_trie():
    trie = ItemTrie.from_sequences(SEQUENCES)
    assert trie.item_ids == ["capo", "tuner", "guitar", "strings"]
    return trie


@pytest.fixture
def model():
    torch.manual_seed(0)
    return SASRecModel(SASRecConfig(item_ids=ITEMS, hidden_size=8, initializer_range=0.5))


class TestSASRecReward:
    def test_probabilities_in_the_order_of_the_trie(self, model, item_trie):
        reward = SASRecReward(model, item_trie)
        scores = reward([["guitar"], ["capo", "tuner"]], user=["a", "b"])
        probabilities = model.score([["guitar"], ["capo", "tuner"]]).softmax(-1)
        for column, item in enumerate(item_trie.item_ids):
            torch.testing.assert_close(scores[:, column], probabilities[:, ITEMS.index(item)])
        torch.testing.assert_close(scores.sum(-1), torch.ones(2))
        check_reward_func(reward, item_trie, [["guitar"]])

    def test_frozen_and_in_eval_mode(self, model, item_trie):
        reward = SASRecReward(model.train(), item_trie)
        assert not reward([["guitar"]]).requires_grad
        assert not model.training
        assert not any(parameter.requires_grad for parameter in model.parameters())

    def test_from_a_folder_with_temperature_and_fewer_items(self, model, item_trie, tmp_path):
        model.save_pretrained(tmp_path)
        smaller = ItemTrie.from_sequences({item: SEQUENCES[item] for item in ("tuner", "strings")})
        scores = SASRecReward(str(tmp_path), smaller, temperature=2.0)([["guitar"]])
        logits = model.eval().score([["guitar"]])[0]
        expected = torch.softmax(torch.stack([logits[2], logits[1]]) / 2.0, dim=0)
        torch.testing.assert_close(scores[0], expected)

    def test_integer_item_ids_of_the_trie(self):
        model = SASRecModel(SASRecConfig(item_ids=["7", "8"], hidden_size=8))
        reward = SASRecReward(model, ItemTrie.from_sequences({7: [1], 8: [0]}))
        torch.testing.assert_close(reward([[7]]), model.score([["7"]]).softmax(-1)[:, [1, 0]])

    def test_token_rewards_of_the_mass_below_a_prefix(self, model, item_trie):
        scores = SASRecReward(model, item_trie)([["guitar"]])[0]
        shares = item_trie.token_rewards(scores[None], [[2]], vocab_size=4)[0]
        guitar, strings = scores[2], scores[3]
        torch.testing.assert_close(shares[1], guitar / (guitar + strings))
        torch.testing.assert_close(shares[3], strings / (guitar + strings))

    def test_token_rewards_equal_the_naive_twins(self, model, item_trie):
        torch.nn.init.normal_(model.output.bias)
        reward = SASRecReward(model, item_trie, temperature=1.5)
        draw = random.Random(0)
        histories = [[draw.choice(ITEMS) for _ in range(length)] for length in [1, 5, 2, 60, 1, 5, 40, 50]]
        prefixes = [draw.choice([[], [2]]) for _ in histories]
        shares = item_trie.token_rewards(reward(histories), prefixes, vocab_size=4)
        for history, prefix, share in zip(histories, prefixes, shares, strict=True):
            logits = naive_sasrec_scores(model, [ITEMS.index(item) for item in history[-50:]])
            by_item = dict(zip(ITEMS, (logits / 1.5).softmax(0).tolist(), strict=True))
            expected = naive_token_rewards(SEQUENCES, by_item, prefix)
            assert {token: pytest.approx(value, abs=1e-5) for token, value in expected.items()} == {
                token: share[token].item() for token in expected
            }

    def test_refusals(self, model, item_trie):
        larger = ItemTrie.from_sequences(SEQUENCES | {"drum": [3]})
        with pytest.raises(ValueError, match="SASRec does not know 1 of the 5 items of the trie, the first is 'drum'"):
            SASRecReward(model, larger)
        with pytest.raises(ValueError, match="temperature=0"):
            SASRecReward(model, item_trie, temperature=0)
        with pytest.raises(ValueError, match=r"\['drum'\] are unknown to this SASRec"):
            SASRecReward(model, item_trie)([["drum"]])


class TestScoreMatrixReward:
    SCORES = torch.tensor([[0.1, 0.2, 0.3, 0.4], [4.0, 3.0, 2.0, 1.0]])

    def test_rows_by_user_and_columns_by_trie(self, item_trie, tmp_path):
        save_scores(tmp_path / "scores", self.SCORES, ["ann", "bob"], ITEMS)
        for reward in (
            ScoreMatrixReward(self.SCORES, ["ann", "bob"], ITEMS, item_trie),
            ScoreMatrixReward.load(tmp_path / "scores", item_trie),
        ):
            scores = reward([["guitar"]] * 3, user=["bob", "ann", "bob"], item=["tuner"] * 3)
            assert scores.tolist() == [[1.0, 2.0, 4.0, 3.0], pytest.approx([0.4, 0.3, 0.1, 0.2]), [1.0, 2.0, 4.0, 3.0]]

    def test_refusals(self, item_trie):
        with pytest.raises(ValueError, match=r"The score matrix has shape \(2, 4\), expected \(1, 4\)"):
            ScoreMatrixReward(self.SCORES, ["ann"], ITEMS, item_trie)
        with pytest.raises(ValueError, match="does not know 1 of the 4 items of the trie, the first is 'capo'"):
            ScoreMatrixReward(self.SCORES[:, :3], ["ann", "bob"], ITEMS[:3], item_trie)
        with pytest.raises(ValueError, match=r"The score matrix has score -1.0 at row 1, column 3 \(1 such scores\)"):
            ScoreMatrixReward(self.SCORES - torch.tensor([[0.0] * 4, [0, 0, 0, 2]]), ["a", "b"], ITEMS, item_trie)
        reward = ScoreMatrixReward(self.SCORES, ["ann", "bob"], ITEMS, item_trie)
        with pytest.raises(ValueError, match=r"the column 'user', but got \['item'\]"):
            reward([["guitar"]], item=["tuner"])
        with pytest.raises(ValueError, match=r"Users \['eve'\] are not among the 2"):
            reward([["guitar"]], user=["eve"])


class TestCheckRewardFunc:
    @pytest.mark.parametrize(
        ("returned", "error", "message"),
        [
            ([[1.0] * 4], TypeError, "returned a list; expected a torch.Tensor"),
            (torch.ones(4), ValueError, r"shape \(4,\), expected \(1, 4\)"),
            (torch.ones(1, 3), ValueError, r"shape \(1, 3\)"),
            (torch.tensor([[1.0, -0.5, 0, 0]]), ValueError, "score -0.5 at row 0, column 1.*softmax"),
            (torch.tensor([[1.0, 0, float("nan"), 0]]), ValueError, "score nan at row 0, column 2"),
            (torch.zeros(1, 4), ValueError, r"score 0 to every item for history \['guitar'\]"),
        ],
    )
    def test_what_the_loss_could_not_use(self, item_trie, returned, error, message):
        with pytest.raises(error, match=message):
            check_reward_func(lambda histories, **columns: returned, item_trie, [["guitar"]])

    def test_columns_are_passed_on_and_good_scores_accepted(self, item_trie):
        seen = {}

        def reward_func(histories, **columns):
            seen.update(columns)
            return torch.tensor([[0.0, 0.0, 1.0, 2.0]])

        assert check_reward_func(reward_func, item_trie, [["guitar"]], user=["ann"]) is None
        assert seen == {"user": ["ann"]}

    def test_not_callable(self, item_trie):
        with pytest.raises(TypeError, match="type str; expected a callable"):
            check_reward_func("popularity", item_trie, [["guitar"]])
