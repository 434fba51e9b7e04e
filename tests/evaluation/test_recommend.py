import gzip
import json
from functools import partial
from pathlib import Path

import pytest
import torch
from trl.data_utils import _tokenize

from ilrec_trl import ItemCatalog, rank_items, recommend
from ilrec_trl.data.prompt_tokens import tokenize_prompts
from ilrec_trl.evaluation.prompt_batches import MIB, evaluation_mode, prompt_batches, search_bytes
from tests.evaluation.two_shops import assert_equal_pairs, build_model, naive_pairs, semantic_shop, titles_shop


DATA = Path(__file__).parents[3] / "shared" / "data"
CHAT_TEMPLATE = (
    "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture
def semantic():
    return semantic_shop()


@pytest.fixture
def titles():
    return titles_shop()


@pytest.fixture(params=[semantic_shop, titles_shop], ids=["semantic", "titles"])
def shop(request):
    return request.param()


def test_with_enough_beams_recommend_is_the_exact_ranking(shop):
    """Items that share a leaf stand next to each other; the list is cut at `top_k` items."""
    for top_k in (1, 4, len(shop.trie)):
        results = recommend(
            shop.model, shop.tokenizer, shop.prompts, shop.trie, top_k=top_k, num_beams=len(shop.trie), batch_size=2
        )
        for prompt, found in zip(shop.prompts, results, strict=True):
            assert_equal_pairs(found, naive_pairs(shop, prompt)[:top_k])


def test_a_batch_is_as_good_as_one_at_a_time(shop):
    whole, single = (
        recommend(shop.model, shop.tokenizer, shop.prompts, shop.trie, top_k=5, num_beams=6, batch_size=batch_size)
        for batch_size in (16, 1)
    )
    for one, other in zip(whole, single, strict=True):
        assert_equal_pairs(one, other)


def test_excluded_items_are_left_out_one_by_one(shop):
    pairs = naive_pairs(shop, shop.prompts[0])
    exclude = [[pairs[0][0], pairs[3][0]], [], list(shop.sequences)[1:]]
    results = recommend(
        shop.model, shop.tokenizer, shop.prompts, shop.trie, top_k=10, num_beams=30, exclude=exclude, batch_size=2
    )
    assert_equal_pairs(results[0], [pair for pair in pairs if pair[0] not in exclude[0]][:10])
    assert_equal_pairs(results[1], naive_pairs(shop, shop.prompts[1])[:10])
    assert [item for item, _ in results[2]] == list(shop.sequences)[:1]


def test_allowed_items_are_kept_item_by_item(shop):
    """Of items that share a token sequence one may be allowed."""
    allow = sorted(shop.sequences)[::2]
    options = {"top_k": len(shop.trie), "num_beams": len(shop.trie)}
    run = partial(recommend, shop.model, shop.tokenizer, shop.prompts, shop.trie, **options)
    for results in (run(allow=allow), run(allow=[allow] * 3), run(exclude=sorted(shop.sequences)[1::2])):
        for prompt, found in zip(shop.prompts, results, strict=True):
            assert_equal_pairs(found, [pair for pair in naive_pairs(shop, prompt) if pair[0] in allow])


def test_a_memory_budget_decides_the_batch_and_nothing_else(semantic, monkeypatch):
    shop = semantic
    encoded = tokenize_prompts(shop.tokenizer, shop.prompts)
    each = [search_bytes(shop.model, shop.trie, len(tokens), 8) / MIB for tokens in encoded]
    assert each[0] > each[2] > each[1]  # by length
    sizes = []
    batches = prompt_batches

    def record(*args):
        for batch in batches(*args):
            sizes.append(len(batch[0]))
            yield batch

    monkeypatch.setattr("ilrec_trl.evaluation.recommend.prompt_batches", record)
    run = partial(recommend, shop.model, shop.tokenizer, shop.prompts, shop.trie, top_k=8, num_beams=8)
    whole = run()
    for budget, batch_size, expected in (
        (each[0] * 1.01, None, [1, 1, 1]),
        (each[0] * 2.01, None, [2, 1]),
        (each[0] * 100, None, [3]),
        (each[0] * 100, 2, [2, 1]),
    ):
        sizes.clear()
        found = run(memory_budget_mib=budget, batch_size=batch_size)
        assert sizes == expected
        for one, other in zip(found, whole, strict=True):
            assert_equal_pairs(one, other)
    with pytest.raises(ValueError, match="of 12 tokens needs about [0-9.]+ MiB, more than memory_budget_mib"):
        run(memory_budget_mib=each[0] * 0.99)


def test_prompts_are_tokenized_as_the_trainer_does(titles):
    tokenizer = titles.catalog.build_tokenizer(vocab_size=300)
    tokenizer.chat_template = CHAT_TEMPLATE
    conversation = [{"role": "system", "content": "Recommend."}, {"role": "user", "content": "Oak, Lamp"}]
    found = tokenize_prompts(tokenizer, [conversation, "Oak, Lamp"])
    assert found[0] == _tokenize(tokenizer, conversation, add_generation_prompt=True)["input_ids"]
    assert found[1] == _tokenize(tokenizer, "Oak, Lamp")["input_ids"]
    assert tokenizer.decode(found[0]).endswith("<assistant>")
    results = recommend(titles.model, tokenizer, [conversation], titles.trie, top_k=3)
    text = tokenizer.decode(found[0])
    assert_equal_pairs(results[0], recommend(titles.model, tokenizer, [text], titles.trie, top_k=3)[0])


def test_model_and_tokenizer_are_left_as_they_were(semantic):
    model = build_model(len(semantic.tokenizer), dropout=0.5).train()
    model.model.layers[1].eval()
    before = {name: module.training for name, module in model.named_modules()}
    semantic.tokenizer.padding_side = "right"
    results = [recommend(model, semantic.tokenizer, semantic.prompts, semantic.trie, top_k=4) for _ in range(2)]
    assert results[0] == results[1]  # no dropout
    assert {name: module.training for name, module in model.named_modules()} == before
    assert semantic.tokenizer.padding_side == "right"
    with pytest.raises(ZeroDivisionError), evaluation_mode(model):
        _ = 1 / model.training  # fails because it is False, and what fails inside is no reason to stay there
    assert model.training


def test_batches_hold_prompts_of_similar_length():
    batches = list(prompt_batches([[1], [2, 3, 4], [5, 6], [7]], pad_token_id=0, batch_size=2))
    assert [rows for rows, _, _ in batches] == [[1, 2], [0, 3]]
    assert batches[0][1].tolist() == [[2, 3, 4], [0, 5, 6]]
    assert batches[0][2].tolist() == [[1, 1, 1], [0, 1, 1]]
    assert batches[1][1].tolist() == [[1], [7]]
    with pytest.raises(ValueError, match="batch_size=0"):
        next(prompt_batches([[1]], 0, 0))


def test_wrong_arguments_are_refused(semantic):
    def run(prompts=("<a_0>",), **options):
        return recommend(semantic.model, semantic.tokenizer, prompts, semantic.trie, **options)

    assert run(prompts=[]) == []
    with pytest.raises(ValueError, match="top_k=27, expected 1 to 26"):
        run(top_k=27, num_beams=30)
    with pytest.raises(ValueError, match="top_k=0"):
        run(top_k=0)
    with pytest.raises(ValueError, match="num_beams=4 for top_k=5"):
        run(top_k=5, num_beams=4)
    with pytest.raises(ValueError, match="2 lists of items to exclude for 1 prompts"):
        run(exclude=[[], []])
    with pytest.raises(ValueError, match=r"not in the catalogue of 26 items: \['tuba'\]"):
        run(exclude=[["tuba"]])
    with pytest.raises(ValueError, match="1 prompts have no tokens, the first at row 1"):
        run(prompts=["<a_0>", ""])
    with pytest.raises(TypeError, match="expected a list of prompts"):
        run(prompts="<a_0>")


def test_real_semantic_ids_against_brute_force():
    path = DATA / "industrial"
    if not path.exists():
        pytest.skip(f"real data not found: {path}")
    catalog = ItemCatalog.from_lc_rec(path)
    tokenizer = catalog.build_tokenizer()
    trie = catalog.trie(tokenizer)
    model = build_model(len(tokenizer))
    histories = list(json.loads(gzip.open(path / "inter.json.gz").read()).values())[:3]
    prompts = ["".join(catalog.text(str(item)) for item in history) for history in histories]
    exact = rank_items(model, tokenizer, prompts, trie)
    results = recommend(model, tokenizer, prompts, trie, top_k=10, num_beams=1000)
    for row, found in enumerate(results):
        columns = trie.index_of([item for item, _ in found])
        torch.testing.assert_close(exact[row, columns].tolist(), [s for _, s in found], rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(exact[row].topk(10).values.tolist(), [s for _, s in found], rtol=1e-4, atol=1e-3)
