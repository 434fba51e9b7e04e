"""From item texts, and what users did, to vectors: TF-IDF by hand, what is refused, and the same vectors later."""

import math
import sys

import numpy as np
import pytest

from ilrec_trl import ItemEncoder
from ilrec_trl.semantic_ids.item_encoder import CollaborativeMap
from ilrec_trl.semantic_ids.text_vectors import SentenceEncoder, TfidfSvdEncoder, item_texts


ITEMS = {
    "1": {"title": "Red lute &amp; bow", "brand": "Oud", "categories": ["Music", ["Strings"]], "price": 3},
    "2": {"title": "Blue lute", "brand": None},
    "3": {"title": "Steel screw", "description": ["Long.", "Sharp."]},
    "4": {"title": "Steel bolt"},
}


def test_item_texts():
    texts = item_texts(ITEMS)
    assert texts["1"] == "Red lute & bow Oud Music Strings"
    assert texts["2"] == "Blue lute"
    assert texts["3"] == "Steel screw Long. Sharp."
    assert item_texts(ITEMS, ["brand", "title"])["1"] == "Oud Red lute & bow"
    assert item_texts(ITEMS, template="{title} by {brand}, {price}")["1"] == "Red lute & bow by Oud, 3"
    assert item_texts(ITEMS, ["brand"])["2"] == ""
    assert item_texts(ITEMS, template="by {brand}") == {"1": "by Oud", "2": "", "3": "", "4": ""}
    with pytest.raises(ValueError, match=r"No item has a text in \['name'\]; the items have \['brand', 'categories'"):
        item_texts(ITEMS, ["name"])


def test_tfidf_by_hand():
    """With as many dimensions as there are texts the SVD only turns: products of vectors are those of TF-IDF."""
    texts = ["red lute lute", "lute bow", "red"]
    encoder = TfidfSvdEncoder.fit(texts, dimensions=10)
    idf = {word: math.log(4 / (1 + count)) + 1 for word, count in {"red": 2, "lute": 2, "bow": 1}.items()}
    rows = [
        {"red": idf["red"], "lute": (1 + math.log(2)) * idf["lute"]},
        {"lute": idf["lute"], "bow": idf["bow"]},
        {"red": idf["red"]},
    ]
    rows = [{word: x / math.sqrt(sum(y * y for y in row.values())) for word, x in row.items()} for row in rows]
    expected = [[sum(a[word] * b.get(word, 0) for word in a) for b in rows] for a in rows]
    vectors = encoder.encode(texts)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors @ vectors.T, expected, atol=1e-6)
    assert encoder.encode(["unknown words", ""]).tolist() == [[0, 0, 0], [0, 0, 0]]
    with pytest.raises(ValueError, match="The 2 texts hold no words"):
        TfidfSvdEncoder.fit(["!", ""])


def test_likeness_follows_words():
    vectors = ItemEncoder.fit_tfidf(ITEMS, ["title"]).encode(ITEMS)
    likeness = vectors @ vectors.T
    assert likeness[0, 1] > likeness[0, 2] + 0.1
    assert likeness[2, 3] > likeness[2, 1] + 0.1
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)


def test_items_without_text_are_refused_by_name():
    encoder = ItemEncoder.fit_tfidf(ITEMS)
    with pytest.raises(ValueError, match=r"2 items have no text, or none with a known word: \['8', '9'\]"):
        encoder.encode({**ITEMS, "8": {"title": " "}, "9": {"title": "Zither"}})
    encoder = ItemEncoder.fit_tfidf(ITEMS, without_text="zero")
    assert not encoder.encode({"1": ITEMS["1"], "8": {"price": 2}})[1].any()
    with pytest.raises(ValueError, match="Got without_text='drop'"):
        ItemEncoder.fit_tfidf(ITEMS, without_text="drop")


def activity(seed=0, number=60):
    """Texts in two directions; users tell apart by the first one only, and have not seen every third item."""
    generator = np.random.default_rng(seed)
    texts = generator.normal(size=(number, 2))
    texts = (texts / np.linalg.norm(texts, axis=1, keepdims=True)).astype(np.float32)
    collaborative = np.stack([texts[:, 0], np.zeros(number), 0.01 * generator.normal(size=number)], 1)
    return texts, collaborative.astype(np.float32), np.arange(number) % 3 != 0


def test_the_weight_is_the_share_of_the_squared_distance():
    texts, collaborative, known = activity()
    _, joined = CollaborativeMap.fit(texts, collaborative, known, weight=0.25)
    unit = collaborative[known] - collaborative[known].mean(0)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    a, b = np.flatnonzero(known)[:2]
    distance = 0.75 * ((texts[a] - texts[b]) ** 2).sum() + 0.25 * ((unit[0] - unit[1]) ** 2).sum()
    np.testing.assert_allclose(((joined[a] - joined[b]) ** 2).sum(), distance, rtol=1e-5)
    _, alone = CollaborativeMap.fit(texts, collaborative, known, weight=0)
    np.testing.assert_allclose(alone[:, :2], texts)
    assert not alone[:, 2:].any()


@pytest.mark.parametrize("mode", ["concatenate", "predict"])
def test_what_users_did_not_see_is_predicted_and_never_read(mode):
    texts, collaborative, known = activity()
    collaborative[~known] = np.nan
    fitted, joined = CollaborativeMap.fit(texts, collaborative, known, mode=mode)
    assert np.isfinite(joined).all()
    np.testing.assert_allclose(joined[~known], fitted.join(texts[~known]), atol=1e-6)
    assert (mode == "predict") == np.allclose(joined[known], fitted.join(texts[known]), atol=1e-4)
    # the direction that users tell apart by is what is predicted
    expected = np.sign(texts[~known, 0] - texts[known, 0].mean())
    clear = np.abs(texts[~known, 0]) > 0.2
    assert (np.sign(fitted.predict(texts[~known])[clear, 0]) == expected[clear]).all()


def test_collaborative_vectors_that_do_not_fit():
    texts, collaborative, known = activity()
    for arguments, message in (
        ((texts, collaborative[:-1], known), "60, 59, 60"),
        ((texts, collaborative, np.zeros(60, bool)), "Got 0 items with a collaborative vector"),
        ((texts, collaborative, known, 1.5), "weight of 1.5"),
        ((texts, collaborative, known, 0.5, "mean"), "Got mode 'mean'"),
    ):
        with pytest.raises(ValueError, match=message):
            CollaborativeMap.fit(*arguments)


@pytest.mark.parametrize("collaborative", [False, True])
def test_save_and_load_encode_new_items_alike(collaborative, tmp_path):
    encoder = ItemEncoder.fit_tfidf(ITEMS, ["title", "brand"], without_text="zero")
    if collaborative:
        vectors = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
        joined = encoder.add_collaborative(ITEMS, vectors, np.array([True, True, True, False]), 0.4)
        assert joined.shape == (4, encoder.text.components.shape[1] + 3)
    encoder.save(tmp_path)
    loaded = ItemEncoder.load(tmp_path)
    new = {"5": {"title": "Red steel lute", "brand": "Oud"}, "6": {"title": "Nothing known"}}
    np.testing.assert_allclose(loaded.encode(new), encoder.encode(new), atol=1e-6)
    assert (loaded.fields, loaded.template, loaded.without_text) == (["title", "brand"], None, "zero")
    (tmp_path / "encoder.json").write_text('{"format": 0}')
    with pytest.raises(ValueError, match="format 0, expected 1"):
        ItemEncoder.load(tmp_path)


def test_a_sentence_transformers_model(tmp_path):
    """A model of its own making, from disk: nothing is downloaded."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from transformers import BertConfig, BertModel, BertTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "red", "blue", "lute", "steel", "screw", "bolt"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    BertTokenizerFast(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path / "bert")
    BertModel(BertConfig(vocab_size=len(words), **sizes)).save_pretrained(tmp_path / "bert")
    module = Transformer(str(tmp_path / "bert"))
    SentenceTransformer(modules=[module, Pooling(8)], device="cpu").save(str(tmp_path / "model"))

    encoder = ItemEncoder(SentenceEncoder(str(tmp_path / "model")), fields=["title"])
    vectors = encoder.encode(ITEMS)
    assert vectors.shape == (4, 8)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    with pytest.raises(ValueError, match=r"1 items have no text.*\['5'\]"):
        encoder.encode({**ITEMS, "5": {"title": ""}})
    encoder.save(tmp_path / "saved")
    np.testing.assert_allclose(ItemEncoder.load(tmp_path / "saved").encode(ITEMS), vectors, atol=1e-6)


@pytest.mark.parametrize(
    ("module", "extra", "make"),
    [
        ("sklearn.feature_extraction.text", "text", lambda: ItemEncoder.fit_tfidf(ITEMS)),
        ("sentence_transformers", "text", lambda: SentenceEncoder("any")),
    ],
)
def test_a_missing_extra_is_named(module, extra, make, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf"pip install 'ilrec-trl\[{extra}\]'"):
        make()
