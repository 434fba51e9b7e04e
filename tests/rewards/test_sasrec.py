import math
import random

import pytest
import torch

from ilrec_trl.rewards.sasrec import SASRecConfig, SASRecModel
from ilrec_trl.rewards.sequence_batches import IGNORE_INDEX, collate_sequences
from tests.references import naive_sasrec_scores


ITEMS = ["guitar", "strings", "tuner", "capo", "strap"]


def small_model(**changes) -> SASRecModel:
    torch.manual_seed(0)
    settings = {"hidden_size": 8, "max_position_embeddings": 6, "initializer_range": 0.3} | changes
    return SASRecModel(SASRecConfig(item_ids=ITEMS, **settings)).eval()


class TestSASRecModel:
    @pytest.mark.parametrize("tied", [False, True])
    def test_scores_equal_the_naive_twin(self, tied):
        model = small_model(tie_word_embeddings=tied)
        if model.output is not None:
            torch.nn.init.normal_(model.output.bias)
        for history in (
            ["capo"],
            ["guitar", "strings", "guitar"],
            ["tuner", "capo", "strap", "guitar", "capo", "tuner"],
        ):
            expected = naive_sasrec_scores(model, [ITEMS.index(item) for item in history])
            torch.testing.assert_close(model.score([history])[0].double(), expected, atol=1e-5, rtol=1e-5)

    def test_padding_changes_nothing_and_rows_keep_their_order(self):
        model = small_model()
        histories = [["tuner"], ["capo", "strap", "guitar", "capo"], ["guitar", "tuner"], ["strap"]]
        together = model.score(histories, batch_size=3)
        alone = torch.cat([model.score([history]) for history in histories])
        torch.testing.assert_close(together, alone)
        assert not together.requires_grad

    def test_scores_in_batches_of_many_lengths_equal_the_naive_twin(self):
        model = small_model(num_hidden_layers=3)
        draw = random.Random(0)
        histories = [[draw.choice(ITEMS) for _ in range(1 + place % 6)] for place in range(150)]
        scores = model.score(histories)
        for row in range(0, 150, 7):
            expected = naive_sasrec_scores(model, [ITEMS.index(item) for item in histories[row]])
            torch.testing.assert_close(scores[row].double(), expected, atol=1e-5, rtol=1e-5)

    def test_only_the_latest_items_of_a_long_history_count(self):
        model = small_model(max_position_embeddings=2)
        assert torch.equal(model.score([["tuner", "capo", "strap"]]), model.score([["capo", "strap"]]))
        assert not torch.equal(model.score([["tuner", "strap"]]), model.score([["capo", "strap"]]))

    def test_no_position_sees_what_follows(self):
        model = small_model()
        ids = torch.tensor([[1, 2, 3, 4], [1, 2, 5, 5]])
        labels = torch.tensor([[0, 0, IGNORE_INDEX, IGNORE_INDEX]] * 2)
        logits = model(ids, labels=labels).logits.view(2, 2, -1)
        assert torch.equal(logits[0], logits[1])
        labels = torch.tensor([[IGNORE_INDEX] * 3 + [0]] * 2)
        logits = model(ids, labels=labels).logits
        assert not torch.allclose(logits[0], logits[1], atol=1e-3)

    def test_loss_is_the_mean_cross_entropy_of_the_targets(self):
        model = small_model()
        batch = collate_sequences(
            [{"input_ids": [1, 2, 3], "labels": [1, 2, 3]}, {"input_ids": [4], "labels": [4]}],
        )
        assert batch["input_ids"].tolist() == [[1, 2, 3], [4, 0, 0]]
        assert batch["labels"].tolist() == [[1, 2, 3], [4, IGNORE_INDEX, IGNORE_INDEX]]
        output = model(**batch)
        assert output.logits.shape == (4, 5)
        questions = [[0], [0, 1], [0, 1, 2], [3]]
        expected = [
            -naive_sasrec_scores(model, question, length).log_softmax(0)[target].item()
            for question, target, length in zip(questions, [1, 2, 3, 4], [3, 3, 3, 1], strict=True)
        ]
        assert output.loss.item() == pytest.approx(sum(expected) / 4, abs=1e-5)
        assert model(**batch, num_items_in_batch=8).loss.item() == pytest.approx(sum(expected) / 8, abs=1e-5)

    def test_dropout_only_in_training_and_score_restores_the_mode(self):
        model = small_model().train()
        first, second = (model.score([["tuner", "capo"]]) for _ in range(2))
        assert torch.equal(first, second)
        assert model.training
        ids = torch.tensor([[1, 2]])
        assert not torch.equal(model(ids).logits, model(ids).logits)

    def test_save_and_load(self, tmp_path):
        model = small_model()
        model.save_pretrained(tmp_path)
        assert (tmp_path / "model.safetensors").exists()
        loaded = SASRecModel.from_pretrained(tmp_path)
        assert loaded.config.item_ids == ITEMS
        assert all(torch.equal(value, model.state_dict()[name]) for name, value in loaded.state_dict().items())
        torch.testing.assert_close(loaded.score([["tuner", "capo"]]), model.score([["tuner", "capo"]]))

    def test_initial_weights(self):
        model = SASRecModel(SASRecConfig(item_ids=[str(item) for item in range(4000)], hidden_size=32))
        assert model.item_embedding.weight.std().item() == pytest.approx(0.15, rel=0.02)
        assert model.output.weight.std().item() == pytest.approx(0.02, rel=0.02)
        assert not model.item_embedding.weight[0].any()
        # Nothing is known yet: about the same probability for each item.
        loss = model(torch.tensor([[1, 2, 3]]), labels=torch.tensor([[1, 2, 3]])).loss
        assert loss.item() == pytest.approx(math.log(4000), rel=0.02)

    def test_refusals(self):
        with pytest.raises(ValueError, match="no `item_ids`"):
            SASRecModel(SASRecConfig())
        with pytest.raises(ValueError, match="holds 2 ids, 1 of them distinct"):
            SASRecModel(SASRecConfig(item_ids=["a", "a"]))
        with pytest.raises(ValueError, match="hidden_size=7 is no multiple of num_attention_heads=2"):
            SASRecModel(SASRecConfig(item_ids=["a"], hidden_size=7))
        with pytest.raises(ValueError, match=r"\['drum'\] are unknown to this SASRec of 5 items"):
            small_model().score([["guitar", "drum"]])
        with pytest.raises(ValueError, match="empty history"):
            small_model().score([[]])


@pytest.mark.parametrize("tied", [False, True])
def test_item_vectors_are_what_scores_are_made_of(tied):
    model = SASRecModel(SASRecConfig(item_ids=["a", "b", "c"], hidden_size=8, tie_word_embeddings=tied)).eval()
    hidden = []
    model.norm.register_forward_hook(lambda _, __, output: hidden.append(output))
    scores = model.score([["a", "b"]])
    bias = 0 if tied else model.output.bias[[2, 0]]
    torch.testing.assert_close(hidden[0] @ model.item_vectors(["c", "a"]).T + bias, scores[:, [2, 0]])
    assert not model.item_vectors(["a"]).requires_grad
    with pytest.raises(ValueError, match="unknown to this SASRec"):
        model.item_vectors(["d"])
