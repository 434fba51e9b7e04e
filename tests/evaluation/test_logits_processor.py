"""`generate` with the catalogue's logits processor against brute force, sampling, and the mask itself."""

import math
from collections import Counter

import pytest
import torch

from ilrec_trl import ItemTrie, ItemTrieLogitsProcessor, recommend
from ilrec_trl.data.prompt_tokens import tokenize_prompts
from ilrec_trl.evaluation.prompt_batches import prompt_batches
from tests.evaluation.two_shops import naive_pairs, semantic_shop, titles_shop
from tests.references import naive_beam_search, naive_token_scores


FILLER = -1e8  # `generate` carries on with beams of such scores when there are fewer prefixes than beams


def generate(shop, num_return_sequences, **options):
    """The rows of the prompts in a left-padded batch, and for each the tokens generated; and the whole output."""
    rows, input_ids, attention_mask = next(prompt_batches(tokenize_prompts(shop.tokenizer, shop.prompts), 0, 3))
    assert 0 < attention_mask.float().mean() < 1
    outputs = shop.model.generate(
        input_ids=input_ids,
        attention_mask=attention_mask,
        logits_processor=[ItemTrieLogitsProcessor(shop.trie, input_ids.shape[1], end_token_id=1)],
        num_return_sequences=num_return_sequences,
        return_dict_in_generate=True,
        output_scores=True,
        **({"max_new_tokens": shop.trie.depth} | options),
    )
    return rows, outputs.sequences[:, input_ids.shape[1] :].view(3, num_return_sequences, -1).tolist(), outputs


def beams_of_generate(shop, num_beams):
    """For each prompt, pairs of token sequence and score, best first, without fillers."""
    options = {"num_beams": num_beams, "length_penalty": 0.0, "do_sample": False}
    rows, generated, outputs = generate(shop, num_beams, **options)
    scores = outputs.sequences_scores.view(3, num_beams).tolist()
    found = {}
    for row, sequences, own in zip(rows, generated, scores, strict=True):
        pairs = [(tokens, score) for tokens, score in zip(sequences, own, strict=True) if score > FILLER]
        found[row] = [(tuple(tokens[: shop.trie.match(tokens)[1]]), score) for tokens, score in pairs]
    return found


def token_scores(shop, row):
    with torch.no_grad():
        return naive_token_scores(shop.model, shop.tokenizer(shop.prompts[row])["input_ids"], shop.sequences)


def assert_equal_rankings(found, expected):
    assert [tokens for tokens, _ in found] == [tokens for tokens, _ in expected]
    torch.testing.assert_close([s for _, s in found], [s for _, s in expected], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("num_beams", [2, 3, 5, 8, 13, 20, 24])
def test_semantic_ids_by_brute_force_for_every_width(num_beams):
    """20 distinct sequences, so that there are more beams than items, too."""
    shop = semantic_shop()
    for row, found in beams_of_generate(shop, num_beams).items():
        expected = naive_beam_search(token_scores(shop, row), shop.sequences, num_beams)
        assert len(expected) == min(num_beams, 20)
        assert_equal_rankings(found, expected)


@pytest.mark.parametrize("num_beams", [9, 12])
def test_titles_by_brute_force_with_beams_for_all(num_beams):
    shop = titles_shop()
    assert len({tuple(tokens) for tokens in shop.sequences.values()}) == 9
    for row, found in beams_of_generate(shop, num_beams).items():
        expected = naive_beam_search(token_scores(shop, row), shop.sequences, num_beams)
        assert_equal_rankings(found, expected)


@pytest.mark.parametrize("num_beams", [2, 3, 6])
def test_generate_finds_no_better_titles(num_beams):
    """
    `generate` drops a complete title unless it is among the `num_beams` best continuations of its step, even where it
    turns out to be among the best titles; ours never does.
    """
    shop = titles_shop()
    ours = recommend(shop.model, shop.tokenizer, shop.prompts, shop.trie, top_k=num_beams, num_beams=num_beams)
    for row, found in beams_of_generate(shop, num_beams).items():
        exact = dict(naive_pairs(shop, shop.prompts[row]))
        for tokens, score in found:
            assert score == pytest.approx(exact[shop.trie.match(tokens)[0][0]], abs=1e-3)
        theirs = [score for tokens, score in found for _ in shop.trie.match(tokens)[0]]
        for (_, our_score), their_score in zip(ours[row], theirs, strict=False):
            assert our_score >= their_score - 1e-3


@pytest.mark.parametrize("make_shop", [semantic_shop, titles_shop])
def test_samples_are_items_in_proportion_to_their_probability(make_shop):
    """Left-padded prompts of different length, several sequences of each; a token's share is of what may follow."""
    shop = make_shop()
    draws = 400
    torch.manual_seed(0)
    rows, generated, _ = generate(shop, draws, do_sample=True, top_k=0, max_new_tokens=shop.trie.depth + 3)
    for row, sequences in zip(rows, generated, strict=True):
        counts = Counter()
        for tokens in sequences:
            items, length = shop.trie.match(tokens)
            assert set(tokens[length:]) <= {0, 1}  # the end, then padding
            counts[items[0]] += 1
        for item, score in naive_pairs(shop, shop.prompts[row], "continuations"):
            leaf_items = shop.trie.match([*shop.sequences[item], 1])[0]
            expected = math.exp(score)
            error = math.sqrt(expected * (1 - expected) / draws)
            assert abs(counts[leaf_items[0]] / draws - expected) < 5 * error + 1e-3


def test_a_greedy_path_is_one_beam():
    for shop in (semantic_shop(), titles_shop()):
        rows, generated, _ = generate(shop, 1, do_sample=False)
        for row, (tokens,) in zip(rows, generated, strict=True):
            expected = naive_beam_search(token_scores(shop, row), shop.sequences, 1)[0][0]
            if shop is semantic_shop():
                assert tuple(tokens[: len(expected)]) == expected
            assert shop.trie.match(tokens) is not None


def test_the_mask_allows_what_continues_an_item():
    trie = ItemTrie.from_sequences({"a": [3, 4], "b": [3, 5], "c": [6, 4]})
    processor = ItemTrieLogitsProcessor(trie, prompt_length=2, end_token_id=1)
    scores = torch.arange(8.0).repeat(3, 1)
    first = processor(torch.tensor([[9, 9], [0, 9], [9, 3]]), scores)
    assert first.isfinite().nonzero()[:, 1].tolist() == [3, 6] * 3
    later = processor(torch.tensor([[9, 9, 3, 5, 1, 0], [0, 9, 3, 4, 1, 1], [9, 3, 6, 4, 1, 0]]), scores)
    assert later.isfinite().nonzero().tolist() == [[0, 1], [1, 1], [2, 1]]
    step = processor(torch.tensor([[9, 9, 3], [0, 9, 6], [9, 3, 4]]), scores)
    assert step[0].tolist() == [-torch.inf] * 4 + [4.0, 5.0] + [-torch.inf] * 2
    assert step[2].isinf().all()  # a beam that starts no item
    assert scores.isfinite().all()
    with pytest.raises(ValueError, match=r"after its first 2 tokens; the first has \[4\] there"):
        processor(torch.tensor([[9, 9, 4], [0, 9, 4]]), scores[:2])
    with pytest.raises(ValueError, match="after its first 2 tokens"):
        processor(torch.tensor([[9]]), scores[:1])
    with pytest.raises(ValueError, match="the vocabulary has 6 entries"):
        processor(torch.tensor([[9, 9]]), scores[:1, :6])
