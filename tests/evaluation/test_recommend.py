import gzip
import json
from collections import Counter
from functools import partial
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig
from trl.data_utils import _tokenize

from ilrec_trl import ItemCatalog, ItemTrie, ItemTrieLogitsProcessor, rank_items, recommend
from ilrec_trl.evaluation.memory_budget import MIB, search_bytes
from ilrec_trl.evaluation.prompt_batches import evaluation_mode, prompt_batches, tokenize_prompts
from tests.references import naive_ranking, naive_token_scores


DATA = Path(__file__).parents[3] / "shared" / "data"
# Items 0 and 20, 1 and 21, ... share their semantic IDs.
IDS = {f"item{n}": [f"<a_{n % 20 % 3}>", f"<b_{n % 20 % 7}>", f"<c_{n % 20 % 2}>"] for n in range(26)}
WORDS = ["Oak", "Oak table", "Oak table, round", "Pine table", "Pine", "Lamp", "Desk lamp", "Desk", "Lamp", "Oak desk"]
TITLES = {f"item{n}": title for n, title in enumerate(WORDS)}
CHAT_TEMPLATE = (
    "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def build_model(vocab_size, dropout=0.0, kind=LlamaConfig, **options):
    torch.manual_seed(0)
    config = kind(
        vocab_size=vocab_size,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        initializer_range=0.6,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=1,
        attention_dropout=dropout,
        **options,
    )
    return AutoModelForCausalLM.from_config(config).eval()


class Shop:
    """A catalogue with all that goes with it, and three prompts of different length."""

    def __init__(self, catalog, prompts):
        self.catalog, self.prompts = catalog, prompts
        self.tokenizer = catalog.build_tokenizer(vocab_size=300)
        self.trie = catalog.trie(self.tokenizer)
        self.model = build_model(len(self.tokenizer), dropout=0.5)
        self.sequences = {item: self.trie.sequence(item) for item in self.trie.item_ids}


@pytest.fixture(scope="module")
def semantic():
    return Shop(ItemCatalog.from_semantic_ids(IDS), ["<a_0><b_1><c_1>" * 4, "<a_2><b_2><c_0>", "<a_1><b_0><c_0>" * 2])


@pytest.fixture(scope="module")
def titles():
    return Shop(
        ItemCatalog.from_titles(TITLES), ["Bought: Oak\nNext:\n", "Next:\n", "Bought: Lamp, Desk lamp\nNext:\n"]
    )


@pytest.fixture(params=["semantic", "titles"])
def shop(request):
    return request.getfixturevalue(request.param)


def naive_pairs(shop, prompt, normalise="vocabulary"):
    """All pairs of item and score, best first, by one whole forward pass an item."""
    with torch.no_grad():
        scores = naive_token_scores(shop.model, shop.tokenizer(prompt)["input_ids"], shop.sequences, normalise)
    ranking = naive_ranking(scores, shop.sequences)
    return [(item, s) for tokens, s in ranking for item in shop.sequences if tuple(shop.sequences[item]) == tokens]


def assert_equal_pairs(found, expected):
    assert [item for item, _ in found] == [item for item, _ in expected]
    torch.testing.assert_close([s for _, s in found], [s for _, s in expected], rtol=1e-4, atol=1e-4)


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


@pytest.mark.parametrize("normalise", ["vocabulary", "continuations"])
def test_rank_items_is_brute_force(shop, normalise):
    for batch_size, chunk_size in ((1, 1), (2, 3), (8, 512)):
        scores = rank_items(
            shop.model,
            shop.tokenizer,
            shop.prompts,
            shop.trie,
            normalise=normalise,
            batch_size=batch_size,
            chunk_size=chunk_size,
        )
        assert scores.shape == (3, len(shop.trie))
        for prompt, row in zip(shop.prompts, scores, strict=True):
            expected = dict(naive_pairs(shop, prompt, normalise))
            torch.testing.assert_close(
                row.tolist(), [expected[item] for item in shop.trie.item_ids], rtol=1e-4, atol=1e-4
            )
    assert rank_items(shop.model, shop.tokenizer, [], shop.trie).shape == (0, len(shop.trie))


def test_rank_items_of_a_model_whose_beams_cannot_share_a_prompt(titles):
    model = build_model(len(titles.tokenizer), kind=MistralConfig, num_key_value_heads=1, sliding_window=4)
    scores = rank_items(model, titles.tokenizer, titles.prompts, titles.trie, chunk_size=4)
    with torch.no_grad():
        for prompt, row in zip(titles.prompts, scores, strict=True):
            expected = naive_token_scores(model, titles.tokenizer(prompt)["input_ids"], titles.sequences)
            totals = [sum(expected[item]) for item in titles.trie.item_ids]
            torch.testing.assert_close(row.tolist(), totals, rtol=1e-4, atol=1e-4)


def test_allowed_items_and_groups_are_kept_item_by_item(shop):
    """Of items that share a token sequence one may be allowed, and the limit of a first token counts each."""
    allow = sorted(shop.sequences)[::2]
    options = {"top_k": len(shop.trie), "num_beams": len(shop.trie)}
    run = partial(recommend, shop.model, shop.tokenizer, shop.prompts, shop.trie, **options)
    for results in (run(allow=allow), run(allow=[allow] * 3), run(exclude=sorted(shop.sequences)[1::2])):
        for prompt, found in zip(shop.prompts, results, strict=True):
            assert_equal_pairs(found, [pair for pair in naive_pairs(shop, prompt) if pair[0] in allow])
    # With room for all items of every first token the list is the exact ranking without those beyond the limit.
    beams = len(shop.trie) * len(shop.trie.next_tokens([]))
    for most in (1, 2, 5):
        for prompt, found in zip(shop.prompts, run(max_per_first_token=most, num_beams=beams), strict=True):
            given, expected = Counter(), []
            for item, score in naive_pairs(shop, prompt):
                given[shop.sequences[item][0]] += 1
                if given[shop.sequences[item][0]] <= most:
                    expected.append((item, score))
            assert_equal_pairs(found, expected)


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
    with pytest.raises(ValueError, match=r"One prompt of 12 tokens needs about \d+ MiB, more than memory_budget_mib"):
        run(memory_budget_mib=each[0] * 0.99)


def run_generate(shop, num_beams):
    """For each prompt, sequences that `generate` finds with the logits processor, and their scores."""
    rows, input_ids, attention_mask = next(prompt_batches(tokenize_prompts(shop.tokenizer, shop.prompts), 0, 3))
    outputs = shop.model.generate(
        input_ids=input_ids,
        attention_mask=attention_mask,
        logits_processor=[ItemTrieLogitsProcessor(shop.trie, input_ids.shape[1], end_token_id=1)],
        num_beams=num_beams,
        num_return_sequences=num_beams,
        max_new_tokens=shop.trie.depth,
        length_penalty=0.0,
        do_sample=False,
        return_dict_in_generate=True,
        output_scores=True,
    )
    generated = outputs.sequences[:, input_ids.shape[1] :].view(3, num_beams, -1).tolist()
    scores = outputs.sequences_scores.view(3, num_beams).tolist()
    return {row: list(zip(*found, strict=True)) for row, *found in zip(rows, generated, scores, strict=True)}


@pytest.mark.parametrize("num_beams", [2, 3, 8])
def test_generate_finds_the_same_semantic_ids(semantic, num_beams):
    """Same items, order and scores."""
    expected = run_generate(semantic, num_beams)
    shop = semantic
    results = recommend(shop.model, shop.tokenizer, shop.prompts, shop.trie, top_k=num_beams, num_beams=num_beams)
    for row, found in enumerate(results):
        pairs = [(item, score) for tokens, score in expected[row] for item in shop.trie.match(tokens)[0]]
        assert_equal_pairs(found, pairs[:num_beams])


@pytest.mark.parametrize("num_beams", [2, 3, 6])
def test_generate_finds_no_better_titles(titles, num_beams):
    """
    `generate` drops a complete title unless it is among the `num_beams` best continuations of its step, even where it
    turns out to be among the best titles; ours never does.
    """
    shop = titles
    results = recommend(shop.model, shop.tokenizer, shop.prompts, shop.trie, top_k=len(shop.trie), num_beams=20)
    ours = recommend(shop.model, shop.tokenizer, shop.prompts, shop.trie, top_k=num_beams, num_beams=num_beams)
    for row, found in run_generate(shop, num_beams).items():
        exact = dict(results[row])
        for tokens, score in found:
            assert score == pytest.approx(exact[shop.trie.match(tokens)[0][0]], abs=1e-3)
        pairs = [(item, score) for tokens, score in found for item in shop.trie.match(tokens)[0]]
        for (_, our_score), (_, their_score) in zip(ours[row], pairs, strict=False):
            assert our_score >= their_score - 1e-3


def test_the_logits_processor_allows_what_continues_an_item():
    trie = ItemTrie.from_sequences({"a": [3, 4], "b": [3, 5], "c": [6, 4]})
    processor = ItemTrieLogitsProcessor(trie, prompt_length=2, end_token_id=1)
    scores = torch.arange(8.0).repeat(3, 1)
    first = processor(torch.tensor([[9, 9], [0, 9], [9, 3]]), scores)
    assert first.isfinite().nonzero()[:, 1].tolist() == [3, 6] * 3
    later = processor(torch.tensor([[9, 9, 3, 5, 1, 0], [0, 9, 3, 4, 1, 1], [9, 3, 6, 4, 1, 0]]), scores)
    assert later.isfinite().nonzero().tolist() == [[0, 1], [1, 1], [2, 1]]
    step = processor(torch.tensor([[9, 9, 3], [0, 9, 6], [9, 3, 3]]), scores)
    assert step[0].tolist() == [-torch.inf] * 4 + [4.0, 5.0] + [-torch.inf] * 2
    with pytest.raises(ValueError, match=r"Row 1 has generated \[4\], which starts no item"):
        processor(torch.tensor([[9, 9, 3], [0, 9, 4], [9, 3, 3]]), scores)
    with pytest.raises(ValueError, match="the vocabulary has 6 entries"):
        processor(torch.tensor([[9, 9]]), scores[:1, :6])


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
