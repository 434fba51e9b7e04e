import copy
import math

import peft
import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from ilrec_trl import ItemCatalog


# PEFT reads a name that transformers deprecates: https://github.com/huggingface/peft/blob/main/src/peft/peft_model.py
pytestmark = pytest.mark.filterwarnings("ignore:.*is deprecated and will be removed in v6:FutureWarning")


def naive_text_row(weight, tokenizer, catalog, token):
    """Mean of the items' mean rows, moved away from that of all items by the usual distance from the mean row."""
    old = [i for text, i in tokenizer.get_vocab().items() if text not in catalog.tokens]
    rows = {i: [float(x) for x in weight[i]] for i in old}
    width = range(weight.shape[1])
    centre = [sum(rows[i][h] for i in old) / len(old) for h in width]
    spread = math.sqrt(sum((rows[i][h] - centre[h]) ** 2 for i in old for h in width) / len(old))

    def mean_of(items):
        total = [0.0 for _ in width]
        for item in items:
            ids = tokenizer(catalog.as_kind("titles").text(item))["input_ids"]
            for h in width:
                total[h] += sum(rows[i][h] for i in ids) / len(ids) / len(items)
        return total

    holders = [item for item, ids in zip(catalog.item_ids, catalog.semantic_ids, strict=True) if token in ids]
    own = [a - b for a, b in zip(mean_of(holders), mean_of(catalog.item_ids), strict=True)]
    length = math.sqrt(sum(x * x for x in own))
    return [c + spread * x / length for c, x in zip(centre, own, strict=True)], spread


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("nf4", [False, True])
def test_new_rows_start_from_the_titles_of_their_items(tied, nf4, both, text_tokenizer, load_llama):
    model = load_llama(tied, nf4)
    before = model.get_input_embeddings().weight.clone()
    token_ids = both.add_tokens(text_tokenizer, model)
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    assert (embedding is head) == tied
    assert torch.equal(embedding[: len(before)], before)
    for weight in (embedding, head):
        for token, token_id in zip(both.tokens, token_ids, strict=True):
            expected, spread = naive_text_row(weight.detach(), text_tokenizer, both, token)
            distance = (weight[token_id] - torch.tensor(expected)).norm()
            assert 0.015 * spread < distance < 0.025 * spread  # the noise and nothing else


@pytest.mark.parametrize(("method", "distance"), [("mean", 0.02), ("random", 1.0)])
def test_rows_without_titles_stand_around_the_mean(method, distance, both, text_tokenizer, load_llama):
    model = load_llama()
    old = model.get_input_embeddings().weight.detach().clone()
    spread = (old - old.mean(0)).norm(dim=1).square().mean().sqrt()
    token_ids = both.add_tokens(text_tokenizer, model, initialise=method)
    rows = model.get_input_embeddings().weight[token_ids]
    torch.testing.assert_close((rows - old.mean(0)).norm(dim=1), (distance * spread).expand(4), rtol=1e-4, atol=1e-6)


def test_the_default_is_titles_where_there_are_any(both, text_tokenizer, load_llama):
    def rows(catalog, **options):
        model, tokenizer = load_llama(), copy.deepcopy(text_tokenizer)
        return model.get_input_embeddings().weight[catalog.add_tokens(tokenizer, model, **options)]

    without = ItemCatalog(both.item_ids, semantic_ids=both.semantic_ids)
    torch.testing.assert_close(rows(both), rows(both, initialise="item_texts"))
    torch.testing.assert_close(rows(without), rows(without, initialise="random"))
    assert not torch.allclose(rows(both, seed=0), rows(both, seed=1))


def test_equal_codes_still_get_distinct_rows_in_bfloat16(text_tokenizer, load_llama):
    """Three codes that hold the same item: their texts cannot tell them apart."""
    catalog = ItemCatalog(["x", "y"], ["Red lute", "Harp"], [["<a>", "<b>", "<c>"], ["<a>", "<d>", "<e>"]])
    model = load_llama().bfloat16()
    rows = model.get_input_embeddings().weight[catalog.add_tokens(text_tokenizer, model)]
    assert len(rows.unique(dim=0)) == 5


def test_what_has_been_trained_stays(both, text_tokenizer, load_llama):
    model = load_llama()
    token_ids = both.add_tokens(text_tokenizer, model)
    trained = model.get_input_embeddings().weight.detach().clone()
    assert both.add_tokens(text_tokenizer, model, seed=1) == token_ids
    assert torch.equal(model.get_input_embeddings().weight, trained)
    larger = ItemCatalog(
        [*both.item_ids, "horn"], [*both.titles, "Small horn"], [*both.semantic_ids, ["<a_0>", "<b_2>"]], both.kind
    )
    new = larger.add_tokens(text_tokenizer, model)[-1]
    assert torch.equal(model.get_input_embeddings().weight[:new], trained)
    assert new == len(text_tokenizer) - 1 == len(trained)


def test_spare_rows_are_used_and_a_padded_vocabulary_stays_padded(both, text_tokenizer, load_llama):
    spare = load_llama(rows=320)  # 280 tokens: the vocabulary was padded to a multiple of 64
    before = spare.get_input_embeddings().weight.detach().clone()
    token_ids = both.add_tokens(text_tokenizer, spare)
    after = spare.get_input_embeddings().weight
    changed = (after != before).any(1).nonzero().flatten().tolist()
    assert (changed, len(after)) == (token_ids, 320)
    many = ItemCatalog([str(n) for n in range(50)], semantic_ids=[[f"<x_{n}>"] for n in range(50)])
    many.add_tokens(text_tokenizer, spare)
    assert len(text_tokenizer) > 320
    assert len(spare.lm_head.weight) == len(spare.get_input_embeddings().weight) == spare.config.vocab_size == 384


def test_a_head_with_a_bias(both, text_tokenizer):
    """As Phi has one."""
    config = GPT2Config(vocab_size=len(text_tokenizer), n_embd=8, n_layer=1, n_head=1, tie_word_embeddings=False)
    model = GPT2LMHeadModel(config)
    model.set_output_embeddings(nn.Linear(8, len(text_tokenizer)))
    bias = model.lm_head.bias.detach().clone()
    token_ids = both.add_tokens(text_tokenizer, model)
    torch.testing.assert_close(model.lm_head.bias[token_ids], bias.mean().expand(4))
    assert torch.equal(model.lm_head.bias[: len(bias)], bias)


def test_what_cannot_get_new_rows_is_refused_before_anything_changes(both, text_tokenizer, load_llama):
    entries = len(text_tokenizer)
    adapter = peft.get_peft_model(load_llama(), peft.LoraConfig(target_modules="all-linear"))
    with pytest.raises(ValueError, match="before PEFT"):
        both.add_tokens(text_tokenizer, adapter)
    with torch.device("meta"):
        empty = GPT2LMHeadModel(GPT2Config(vocab_size=entries, n_embd=8, n_layer=1, n_head=1))
    with pytest.raises(ValueError, match="on meta, expected all of its"):
        both.add_tokens(text_tokenizer, empty)
    with pytest.raises(ValueError, match="Got initialise='zeros', expected one of"):
        both.add_tokens(text_tokenizer, load_llama(), initialise="zeros")
    without = ItemCatalog(both.item_ids, semantic_ids=both.semantic_ids)
    with pytest.raises(ValueError, match="the catalogue has no titles"):
        without.add_tokens(text_tokenizer, load_llama(), initialise="item_texts")
    assert len(text_tokenizer) == entries
