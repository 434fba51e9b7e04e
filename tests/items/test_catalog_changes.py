import tempfile

import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LogitsProcessorList

from ilrec_trl import (
    ItemCatalog,
    ItemTrieLogitsProcessor,
    RecommendationEvaluator,
    SASRecConfig,
    SASRecModel,
    SASRecReward,
    ScoreMatrixReward,
    rank_items,
    recommend,
)


PROMPTS = ["<a_0><b_1>", "<a_1><b_0>"]


@pytest.fixture
def model_and_tokenizer(both, text_tokenizer, load_llama):
    model = load_llama()
    both.add_tokens(text_tokenizer, model)
    return model.eval(), text_tokenizer


@pytest.mark.parametrize("kind", ["semantic_ids", "titles"])
def test_removed_items_are_never_recommended_and_the_others_keep_their_scores(both, kind, model_and_tokenizer):
    model, tokenizer = model_and_tokenizer
    catalog = both.as_kind(kind)
    whole = catalog.trie(tokenizer)
    scores = dict(zip(whole.item_ids, rank_items(model, tokenizer, PROMPTS, whole).T, strict=True))
    trie = catalog.without_items(["harp", "gong"]).trie(tokenizer)
    assert sorted(trie.item_ids) == ["drum", "lute"]
    for row in recommend(model, tokenizer, PROMPTS, trie, top_k=2, num_beams=4):
        assert sorted(item for item, _ in row) == ["drum", "lute"]
    for item, column in zip(trie.item_ids, rank_items(model, tokenizer, PROMPTS, trie).T, strict=True):
        torch.testing.assert_close(column, scores[item])
    inputs = tokenizer(PROMPTS, return_tensors="pt")
    length = inputs["input_ids"].shape[1]
    torch.manual_seed(0)
    generated = model.generate(
        **inputs, do_sample=True, num_return_sequences=20, max_new_tokens=trie.depth + 1, pad_token_id=0,
        eos_token_id=tokenizer.eos_token_id,
        logits_processor=LogitsProcessorList([ItemTrieLogitsProcessor(trie, length, tokenizer.eos_token_id)]),
    )  # fmt: skip
    found = {item for row in generated[:, length:].tolist() for item in trie.match(row)[0]}
    assert found == {"drum", "lute"}


def test_new_items_of_known_tokens_work_at_once(both, model_and_tokenizer):
    model, tokenizer = model_and_tokenizer
    tokens = len(tokenizer)
    first = both.without_items(["gong"])
    new = ItemCatalog(["horn", "bell"], ["Horn", "Bell"], [["<a_1>", "<b_1>"], ["<a_0>", "<b_0>"]], both.kind)
    larger = first.with_items(new)
    trie = larger.trie(tokenizer)
    assert (len(tokenizer), len(larger), len(first)) == (tokens, 5, 3)
    assert trie.items(trie.sequence("bell")) == ["harp", "bell"]  # they share a semantic ID
    found = recommend(model, tokenizer, PROMPTS, trie, top_k=5, num_beams=5)
    assert all({item for item, _ in row} == set(larger.item_ids) for row in found)
    titles = first.as_kind("titles").with_items(new)
    assert (titles.kind, titles.text("horn")) == ("titles", "Horn")


def test_new_items_that_the_model_cannot_know_are_refused(both):
    def item(name, tokens, title="Horn"):
        return ItemCatalog([name], [title], [tokens], both.kind)

    with pytest.raises(ValueError, match=r"1 items are in the catalogue already: \['lute'\]"):
        both.with_items(item("lute", ["<a_0>", "<b_0>"]))
    with pytest.raises(ValueError, match=r"\['horn'\] of \['<b_7>'\].*new_tokens=True.*add_tokens") as error:
        both.with_items(item("horn", ["<a_0>", "<b_7>"]))
    assert "tokens that the catalogue lacks" in str(error.value)
    assert both.with_items(item("horn", ["<a_0>", "<b_7>"]), new_tokens=True).tokens[-1] == "<b_7>"
    with pytest.raises(ValueError, match=r"have 2 tokens, those of 1 new items have other lengths: \['horn'\]"):
        both.with_items(item("horn", ["<a_0>", "<b_0>", "<a_1>"]), new_tokens=True)
    with pytest.raises(ValueError, match="hold titles, but not the new items"):
        both.with_items(ItemCatalog.from_semantic_ids({"horn": ["<a_0>", "<b_0>"]}))
    with pytest.raises(ValueError, match="hold semantic_ids, but not the catalogue"):
        ItemCatalog.from_titles({"x": "X"}).with_items(item("horn", ["<a_0>", "<b_0>"]))


def test_what_cannot_be_removed_is_refused(both):
    with pytest.raises(ValueError, match=r"1 items are not in the catalogue of 4: \['horn'\]"):
        both.without_items(["lute", "horn"])
    with pytest.raises(ValueError, match="all 4 items of the catalogue to remove"):
        both.without_items(both.item_ids)
    with pytest.raises(TypeError, match=r"Pass \['lute'\]"):
        both.without_items("lute")
    assert vars(both.without_items([])) == vars(both)


def test_an_evaluation_whose_target_was_removed_is_refused(both, text_tokenizer):
    both.add_tokens(text_tokenizer)
    rows = Dataset.from_list([{"prompt": PROMPTS[0], "item": "drum"}, {"prompt": PROMPTS[1], "item": "gong"}])
    trie = both.without_items(["gong"]).trie(text_tokenizer)
    with pytest.raises(ValueError, match=r"1 of 2 item ids are not in the catalogue of 3 items: \['gong'\]"):
        RecommendationEvaluator(rows, trie, k=(1,), num_beams=2)


def test_rewards_leave_out_removed_items_and_refuse_new_ones(both, text_tokenizer):
    both.add_tokens(text_tokenizer)
    sasrec = SASRecModel(SASRecConfig(item_ids=both.item_ids, hidden_size=8))
    smaller = both.without_items(["gong"]).trie(text_tokenizer)
    larger = both.with_items(ItemCatalog(["horn"], ["Horn"], [["<a_0>", "<b_0>"]], both.kind)).trie(text_tokenizer)
    reward = SASRecReward(sasrec, smaller)
    logits = sasrec.score([["gong", "lute"]])[0]  # a removed item may still stand in a history
    kept = logits[[both.item_ids.index(item) for item in smaller.item_ids]].softmax(-1)
    torch.testing.assert_close(reward([["gong", "lute"]])[0], kept)
    matrix = torch.rand(1, 4)
    scores = ScoreMatrixReward(matrix, ["ann"], both.item_ids, smaller)([["lute"]], user=["ann"])[0]
    torch.testing.assert_close(scores, matrix[0][[both.item_ids.index(item) for item in smaller.item_ids]])
    for make in (
        lambda: SASRecReward(sasrec, larger),
        lambda: ScoreMatrixReward(matrix, ["ann"], both.item_ids, larger),
    ):
        with pytest.raises(ValueError, match="does not know 1 of the 5 items of the trie, the first is 'horn'"):
            make()


ids = st.dictionaries(
    st.text(st.characters(codec="utf-8", exclude_categories=["C"]), min_size=1, max_size=4),
    st.tuples(st.integers(0, 2), st.integers(0, 2)),
    min_size=2,
    max_size=9,
)


@settings(max_examples=60, deadline=None)
@given(ids, st.data())
def test_removing_and_adding_again_is_the_same_catalogue(codes, data):
    semantic_ids = {item: [f"<a_{a}>", f"<b_{b}>"] for item, (a, b) in codes.items()}
    catalog = ItemCatalog.from_semantic_ids(semantic_ids)
    tokenizer = catalog.build_tokenizer()
    removed = data.draw(st.lists(st.sampled_from(catalog.item_ids), unique=True, max_size=len(codes) - 1))
    rest = catalog.without_items(removed)
    trie = rest.trie(tokenizer)
    assert not set(removed) & set(trie.item_ids)
    for item in rest.item_ids:
        sharing = [other for other in rest.item_ids if codes[other] == codes[item]]
        assert trie.match(trie.sequence(item)) == (sharing, 2)
    if removed:
        again = rest.with_items(ItemCatalog.from_semantic_ids({i: semantic_ids[i] for i in removed}), new_tokens=True)
        assert dict(zip(again.item_ids, again.semantic_ids, strict=True)) == semantic_ids
        assert set(again.trie(tokenizer).item_ids) == set(semantic_ids)


@settings(max_examples=40, deadline=None)
@given(ids, st.booleans())
def test_a_catalogue_comes_back_from_disk(codes, with_titles):
    titles = [f"Title {item}" for item in codes] if with_titles else None
    catalog = ItemCatalog(list(codes), titles, [[f"<a_{a}>", f"<b_{b}>"] for a, b in codes.values()], "semantic_ids")
    with tempfile.TemporaryDirectory() as folder:
        catalog.save(folder)
        assert vars(ItemCatalog.load(folder)) == vars(catalog)
