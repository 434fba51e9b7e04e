"""Scores of all items against one whole forward pass an item."""

import pytest
import torch
from transformers import MistralConfig

from ilrec_trl import rank_items
from tests.evaluation.two_shops import build_model, naive_pairs, semantic_shop, titles_shop
from tests.references import naive_token_scores


@pytest.fixture(params=[semantic_shop, titles_shop], ids=["semantic", "titles"])
def shop(request):
    return request.param()


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


def test_rank_items_of_a_model_whose_beams_cannot_share_a_prompt():
    titles = titles_shop()
    model = build_model(len(titles.tokenizer), kind=MistralConfig, num_key_value_heads=1, sliding_window=4)
    scores = rank_items(model, titles.tokenizer, titles.prompts, titles.trie, chunk_size=4)
    with torch.no_grad():
        for prompt, row in zip(titles.prompts, scores, strict=True):
            expected = naive_token_scores(model, titles.tokenizer(prompt)["input_ids"], titles.sequences)
            totals = [sum(expected[item]) for item in titles.trie.item_ids]
            torch.testing.assert_close(row.tolist(), totals, rtol=1e-4, atol=1e-4)


def test_wrong_arguments_are_refused():
    shop = semantic_shop()
    with pytest.raises(ValueError, match="chunk_size=0"):
        rank_items(shop.model, shop.tokenizer, shop.prompts, shop.trie, chunk_size=0)
    with pytest.raises(ValueError, match="batch_size=0"):
        rank_items(shop.model, shop.tokenizer, shop.prompts, shop.trie, batch_size=0)
    with pytest.raises(ValueError, match="normalise='items'"):
        rank_items(shop.model, shop.tokenizer, shop.prompts, shop.trie, normalise="items")
    small = build_model(len(shop.tokenizer) - 4)
    with pytest.raises(ValueError, match="the vocabulary has"):
        rank_items(small, shop.tokenizer, ["<a_0>"], shop.trie)
    broken = build_model(len(shop.tokenizer))
    torch.nn.init.constant_(broken.lm_head.weight, float("nan"))
    with pytest.raises(ValueError, match="not numbers"):
        rank_items(broken, shop.tokenizer, shop.prompts, shop.trie)
