"""Catalogues of semantic IDs and of titles, each with tokenizer, trie, model of random weights and prompts."""

from functools import cache

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from ilrec_trl import ItemCatalog
from tests.references import naive_ranking, naive_token_scores


# Items 0 and 20, 1 and 21, ... share their semantic IDs.
IDS = {f"item{n}": [f"<a_{n % 20 % 3}>", f"<b_{n % 20 % 7}>", f"<c_{n % 20 % 2}>"] for n in range(26)}
WORDS = ["Oak", "Oak table", "Oak table, round", "Pine table", "Pine", "Lamp", "Desk lamp", "Desk", "Lamp", "Oak desk"]
TITLES = {f"item{n}": title for n, title in enumerate(WORDS)}


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


@cache
def semantic_shop():
    return Shop(ItemCatalog.from_semantic_ids(IDS), ["<a_0><b_1><c_1>" * 4, "<a_2><b_2><c_0>", "<a_1><b_0><c_0>" * 2])


@cache
def titles_shop():
    return Shop(
        ItemCatalog.from_titles(TITLES), ["Bought: Oak\nNext:\n", "Next:\n", "Bought: Lamp, Desk lamp\nNext:\n"]
    )


def naive_pairs(shop, prompt, normalise="vocabulary"):
    """All pairs of item and score, best first, by one whole forward pass an item."""
    with torch.no_grad():
        scores = naive_token_scores(shop.model, shop.tokenizer(prompt)["input_ids"], shop.sequences, normalise)
    ranking = naive_ranking(scores, shop.sequences)
    return [(item, s) for tokens, s in ranking for item in shop.sequences if tuple(shop.sequences[item]) == tokens]


def assert_equal_pairs(found, expected):
    assert [item for item, _ in found] == [item for item, _ in expected]
    torch.testing.assert_close([s for _, s in found], [s for _, s in expected], rtol=1e-4, atol=1e-4)
