"""[`Recommender`]: item ids in, item ids out, and back from disk."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from ilrec_trl import ItemCatalog, ItemTrie, PromptRenderer, recommend
from ilrec_trl.evaluation.recommender import Recommendation, Recommender

from .small_store import SEMANTIC_IDS, make_catalog, make_model


TITLES = {"a": "Lute", "b": "Lute strings", "c": "Harp", "d": "Drum", "e": "Drum", "f": "Flûte & bow"}
HISTORIES = [["a", "b"], ["f"], ["c", "c", "d", "a"]]


def semantic():
    catalog = ItemCatalog(list(TITLES), list(TITLES.values()), list(SEMANTIC_IDS.values()), kind="semantic_ids")
    tokenizer = catalog.build_tokenizer()
    renderer = PromptRenderer(catalog, tokenizer=tokenizer, max_history=2)
    return Recommender(make_model(tokenizer), tokenizer, catalog.trie(tokenizer), renderer, num_beams=6)


def titled():
    catalog = ItemCatalog.from_titles(TITLES)
    tokenizer = catalog.build_tokenizer(300)
    template = "{% for item in history %}Had {{ item }}{{ separator }}{% endfor %}"
    renderer = PromptRenderer(catalog, template=template, separator="<eos>", tokenizer=tokenizer, max_history=3)
    torch.manual_seed(0)
    model = make_model(tokenizer)
    model.config.max_position_embeddings = 128
    return Recommender(model, tokenizer, catalog.trie(tokenizer), renderer, num_beams=6)


@pytest.fixture(scope="module", params=[semantic, titled], ids=["semantic IDs", "titles"])
def recommender(request):
    return request.param()


def test_lists_are_those_of_recommend_with_titles(recommender):
    prompts = recommender.renderer.prompts(HISTORIES)
    expected = recommend(
        recommender.model, recommender.tokenizer, prompts, recommender.item_trie, top_k=4, num_beams=6
    )
    got = recommender.recommend(HISTORIES, top_k=4)
    assert got == [[Recommendation(item, TITLES[item], score) for item, score in row] for row in expected]


def test_excluded_and_allowed_items(recommender):
    every = {row[0] for row in recommender.recommend([["a"]], top_k=6)[0]}
    assert every == set(TITLES)
    lists = recommender.recommend(HISTORIES, top_k=6, exclude_history=True)
    for history, row in zip(HISTORIES, lists, strict=True):
        assert {item for item, *_ in row} == set(TITLES) - set(history)
    lists = recommender.recommend(HISTORIES, top_k=6, exclude_history=True, exclude=[["c"], [], ["e", "f"]])
    assert [{item for item, *_ in row} for row in lists] == [{"d", "e", "f"}, set("abcde"), {"b"}]
    lists = recommender.recommend(HISTORIES, top_k=6, allow=["a", "f"], exclude=[["a"], [], ["a", "f"]])
    assert [{item for item, *_ in row} for row in lists] == [{"f"}, {"a", "f"}, set()]


def test_where_nothing_is_left_the_list_is_empty():
    """With three levels the prompt has no prefix to go on from after the first."""
    semantic_ids = {item: [*tokens, f"<z_{number}>"] for number, (item, tokens) in enumerate(SEMANTIC_IDS.items())}
    catalog = ItemCatalog.from_semantic_ids(semantic_ids)
    tokenizer = catalog.build_tokenizer()
    recommender = Recommender(make_model(tokenizer), tokenizer, catalog.trie(tokenizer), PromptRenderer(catalog))
    assert recommender.recommend([["a"]], top_k=3, allow=["a"], exclude_history=True) == [[]]


def test_a_long_history_is_cut_in_the_prompt_and_excluded_whole(recommender):
    shown = recommender.renderer.max_history
    history = list("abcdef")[: shown + 1]
    long, short = (recommender.recommend([items], top_k=6)[0] for items in (history, history[-shown:]))
    assert long == short
    assert history[0] not in {item for item, *_ in recommender.recommend([history], exclude_history=True, top_k=6)[0]}


@pytest.mark.parametrize(
    ("histories", "options", "message"),
    [
        ([["a"], []], {}, "History 1 has an empty history"),
        ([["a", "zither"]], {}, "zither"),
        ([["a"]], {"top_k": 7}, "top_k=7, expected 1 to 6"),
        ([["a"]], {"exclude": [["a"], ["b"]]}, "Got 2 lists of items to exclude for 1 users"),
        ([["a"]], {"exclude": [["zither"]]}, "zither"),
        ([["a"]], {"allow": ["zither"]}, "zither"),
    ],
)
def test_refusals(recommender, histories, options, message):
    with pytest.raises(ValueError, match=message):
        recommender.recommend(histories, **({"top_k": 3} | options))


def test_the_folder_gives_the_same_lists(recommender, tmp_path):
    recommender.save_pretrained(tmp_path)
    loaded = Recommender.from_pretrained(tmp_path)
    assert loaded.recommend(HISTORIES, top_k=6) == recommender.recommend(HISTORIES, top_k=6)
    assert loaded.renderer.prompts(HISTORIES) == recommender.renderer.prompts(HISTORIES)
    again = tmp_path / "again"
    loaded.save_pretrained(again)
    for name in ("recommender.json", "item_map.json", "catalog.json", "trie.json"):
        assert (again / name).read_text() == (tmp_path / name).read_text()


def test_the_folder_serves_other_programs(recommender, tmp_path):
    """Plain transformers reads model and tokenizer, and the item map says what each item's tokens are."""
    recommender.save_pretrained(tmp_path)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    items = json.loads((tmp_path / "item_map.json").read_text())
    assert set(items) == set(TITLES)
    end = recommender.item_trie.end_token_id
    for item, about in items.items():
        assert about["title"] == TITLES[item]
        assert about["text"] == recommender.catalog.text(item)
        assert about["token_ids"] + ([] if end is None else [end]) == recommender.item_trie.sequence(item)
        assert tokenizer.decode(about["token_ids"]) == about["text"]
    prompt = tokenizer(recommender.renderer.prompts([["a"]]), return_tensors="pt")["input_ids"]
    with torch.no_grad():
        assert torch.equal(model(prompt).logits, recommender.model.eval()(prompt).logits)


def test_targets_may_be_named_otherwise_than_histories(tmp_path):
    both = ItemCatalog(list(TITLES), list(TITLES.values()), list(SEMANTIC_IDS.values()), kind="semantic_ids")
    tokenizer = both.as_kind("titles").build_tokenizer(300)
    model = make_model(tokenizer)
    both.add_tokens(tokenizer, model)
    renderer = PromptRenderer(both.as_kind("titles"), targets=both, tokenizer=tokenizer, max_length=64)
    recommender = Recommender(model, tokenizer, both.trie(tokenizer), renderer, num_beams=6)
    recommender.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "item_map.json").read_text())["a"]["text"] == "<x_0><y_0>"
    loaded = Recommender.from_pretrained(tmp_path)
    assert loaded.renderer.prompts(HISTORIES) == renderer.prompts(HISTORIES)
    assert loaded.recommend(HISTORIES, top_k=6) == recommender.recommend(HISTORIES, top_k=6)


def test_folders_that_cannot_be_read_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no recommender.json; write it with `ilrec export`"):
        Recommender.from_pretrained(tmp_path)
    recommender = semantic()
    recommender.save_pretrained(tmp_path)
    sequences = {item: recommender.item_trie.sequence(item) for item in TITLES}
    ItemTrie.from_sequences({**sequences, "zither": sequences["a"]}).save(tmp_path)
    with pytest.raises(ValueError, match="1 items that the catalogue beside it lacks, such as 'zither'"):
        Recommender.from_pretrained(tmp_path)
    about = json.loads((tmp_path / "recommender.json").read_text())
    (tmp_path / "recommender.json").write_text(json.dumps(about | {"format": 2}))
    with pytest.raises(ValueError, match="of format 2, expected 1"):
        Recommender.from_pretrained(tmp_path)


def test_prompts_need_a_catalogue():
    class Texts:
        def text(self, item_id):
            return item_id

    tokenizer = make_catalog().build_tokenizer()
    with pytest.raises(TypeError, match="prompts over a Texts, expected an ItemCatalog"):
        Recommender(None, tokenizer, make_catalog().trie(tokenizer), PromptRenderer(Texts()))
