import pytest
import torch
from transformers import TrainerCallback

from ilrec_trl.data.splits import NextItemExample, Splits, UserSequence
from ilrec_trl.items.item_trie import ItemTrie
from ilrec_trl.rewards.sasrec import SASRecConfig, SASRecModel
from ilrec_trl.rewards.sasrec_training import evaluate_sasrec, sasrec_training_arguments, train_sasrec
from ilrec_trl.rewards.shared_vectors import fold_vectors, share_vectors


FEATURES = [["string", "large"], ["string"], ["drum", "large"], [], ["string", "string"]]


def small_model(**changes):
    torch.manual_seed(0)
    return SASRecModel(SASRecConfig(item_ids=list("abcde"), hidden_size=8, max_position_embeddings=4, **changes))


@pytest.mark.parametrize("tie_word_embeddings", [False, True])
def test_items_are_their_own_vector_and_those_of_their_features(tie_word_embeddings):
    model = small_model(tie_word_embeddings=tie_word_embeddings)
    share_vectors(model, FEATURES)
    module, padding = (model.item_embedding, 1) if tie_word_embeddings else (model.output, 0)
    shared = module.parametrizations.weight
    string, large, drum = shared[0].vectors  # in the order in which they are first met
    own = shared.original[padding:]
    expected = own + torch.stack([string + large, string, drum + large, 0 * drum, string])  # twice named counts once
    torch.testing.assert_close(module.weight[padding:], expected)
    # In what is read items begin as their features alone, so that those of the same ones are the same
    read = model.item_embedding.weight
    assert not read[0].any()  # the padding
    assert torch.equal(read[2], read[5])
    assert not torch.equal(read[1], read[2])
    assert torch.equal(read[4], small_model(tie_word_embeddings=tie_word_embeddings).item_embedding.weight[4])


def test_sums_begin_as_large_as_items_without_features():
    torch.manual_seed(0)
    model = SASRecModel(SASRecConfig(item_ids=[str(item) for item in range(4_000)], hidden_size=32))
    share_vectors(
        model, [[f"{item} {feature}" for feature in range(8)] if item % 4 == 0 else [] for item in range(4_000)]
    )
    read = model.item_embedding.weight[1:]
    assert read[::4].std().item() == pytest.approx(model.config.item_initializer_range, rel=0.02)
    assert read[1::4].std().item() == pytest.approx(model.config.item_initializer_range, rel=0.02)


def test_checkpoint_of_a_training_with_features_is_no_model(tmp_path):
    model = small_model()
    share_vectors(model, FEATURES)
    model.save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match=r"lacks item_embedding.weight, output.weight. A checkpoint of a training with"
    ):
        SASRecModel.from_pretrained(tmp_path)


@pytest.mark.parametrize("tie_word_embeddings", [False, True])
def test_folded_model_scores_the_same_and_is_a_plain_one(tmp_path, tie_word_embeddings):
    model = small_model(tie_word_embeddings=tie_word_embeddings).eval()
    plain = set(model.state_dict())
    share_vectors(model, FEATURES)
    scores = model.score([["a", "c"], ["e"]])
    fold_vectors(model)
    assert set(model.state_dict()) == plain
    assert torch.equal(model.score([["a", "c"], ["e"]]), scores)
    model.save_pretrained(tmp_path)
    assert torch.equal(SASRecModel.from_pretrained(tmp_path).score([["a", "c"], ["e"]]), scores)


def test_training_knows_unseen_items_by_their_features_and_returns_the_best_epoch_folded(tmp_path):
    """Large items follow small ones and the other way round; the last of both is in no training sequence."""
    items = [f"{size}{number}" for size in ("small", "large") for number in range(6)]
    features = [[item[:5]] for item in items]
    walks = [
        [("small", "large")[(user + step) % 2] + str((user * 3 + step) % 5) for step in range(5)] for user in range(60)
    ]
    train = [UserSequence(str(user), walk) for user, walk in enumerate(walks)]
    asked = [NextItemExample("0", ["small0"], "large5"), NextItemExample("1", ["large1"], "small5")]
    args = sasrec_training_arguments(
        tmp_path, use_cpu=True, disable_tqdm=True, num_train_epochs=12, learning_rate=1e-2, metric_for_best_model="mrr"
    )
    gap = {}
    for name, given in (("plain", None), ("shared", features)):
        watch = Watch()
        config = SASRecConfig(hidden_size=16, max_position_embeddings=8, dropout=0.1)
        splits = Splits(train, asked, [])
        model = train_sasrec(splits, items, args, config=config, item_features=given, callbacks=[watch])
        assert (1 / evaluate_sasrec(model, asked)).mean() == pytest.approx(max(watch.mrr))
        scores = model.score([["small0"]])[0]
        gap[name] = (scores[items.index("large5")] - scores[items.index("small5")]).item()
    assert abs(gap["plain"]) < 0.25, gap
    assert gap["shared"] > 0.3, gap


class Watch(TrainerCallback):
    def __init__(self):
        self.mrr = []

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        self.mrr.append(metrics["eval_mrr"])


def test_item_tokens_are_those_of_the_trie_without_the_end():
    sequences = {"a": [5, 6, 7], "b": [5], "c": [4, 5, 5], "d": [5]}
    trie = ItemTrie.from_sequences(sequences, end_token_id=2)
    assert trie.sequences(["c", "a", "d", "b"]) == [[4, 5, 5], [5, 6, 7], [5], [5]]
    assert ItemTrie.from_sequences({"a": [3, 2], "b": [4]}).sequences() == [[3, 2], [4]]


@pytest.mark.parametrize(
    ("features", "changes", "message"),
    [
        (FEATURES[1:], {}, "Got features of 4 items for a SASRec of 5"),
        ([[]] * 5, {}, "Got 5 empty lists"),
        (["string"] * 5, {}, "in a str, expected a list with one list of features for each"),
        (dict.fromkeys("abcde", ["string"]), {}, "in a dict, expected a list"),
        (torch.ones(5, 2), {}, "in a Tensor, expected a list"),
        (FEATURES, {"num_sampled_negatives": 2}, "need the softmax over the whole catalogue, but .* samples 2"),
    ],
)
def test_what_cannot_be_shared_is_refused(features, changes, message):
    with pytest.raises(ValueError, match=message):
        share_vectors(small_model(**changes), features)
