"""Beam search against brute force and against a plain-list beam search, and the models it must work with."""

import math
import random

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    CohereConfig,
    FalconConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    Qwen3Config,
)

from ilrec_trl import ItemTrie
from ilrec_trl.evaluation import beam_search
from ilrec_trl.evaluation.beam_search import _sort_keys
from ilrec_trl.evaluation.item_filter import ItemFilter
from ilrec_trl.evaluation.prompt_decoder import PromptDecoder
from tests.references import naive_beam_search, naive_ranking, naive_token_scores


VOCAB_SIZE, END = 24, 1
PROMPTS = [[7], [3, 9, 12, 20, 5], [8, 8, 21]]
SIZES = {"vocab_size": VOCAB_SIZE, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
# Weights much larger than a fresh model's, so that probabilities differ from token to token.
ROUGH = {"initializer_range": 0.6, "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": END}


def build(config, attention="sdpa"):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()


@pytest.fixture(scope="module")
def model():
    return build(LlamaConfig(**SIZES, **ROUGH, intermediate_size=32, num_key_value_heads=1))


def batch_of(prompts):
    width = max(map(len, prompts))
    input_ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts])
    return input_ids, torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])


def fixed_sequences():
    """Forty items of three tokens, not evenly spread, some of which share their sequence."""
    generator = torch.Generator().manual_seed(1)
    draws = (torch.rand(40, 3, generator=generator) ** 2 * torch.tensor([4, 6, 5])).long()
    sequences = {f"item{row}": (draws[row] + torch.tensor([2, 6, 12])).tolist() for row in range(40)}
    assert len({tuple(tokens) for tokens in sequences.values()}) < 40
    return sequences


def titles():
    """Thirty titles of one to nine tokens and an end token; some are the start of others, some are equal."""
    generator = torch.Generator().manual_seed(2)
    sequences = {}
    for row in range(30):
        length = int(torch.randint(1, 9, (), generator=generator))
        sequences[f"title{row}"] = [*torch.randint(2, 4, (length,), generator=generator).tolist(), END]
    return {**sequences, "only": [2, END], "same": [2, END], "longest": [2] * 9 + [END]}


CATALOGUES = {"fixed": fixed_sequences(), "titles": titles()}


def trie_of(name):
    if name == "fixed":
        return ItemTrie.from_sequences(CATALOGUES[name])
    return ItemTrie.from_sequences({item: tokens[:-1] for item, tokens in CATALOGUES[name].items()}, end_token_id=END)


def scores_of_tokens(model, normalise):
    with torch.no_grad():
        return {
            name: [naive_token_scores(model, prompt, sequences, normalise) for prompt in PROMPTS]
            for name, sequences in CATALOGUES.items()
        }


@pytest.fixture(scope="module")
def token_scores(model):
    return scores_of_tokens(model, "vocabulary")


@pytest.fixture(scope="module")
def shares_of_continuations(model):
    return scores_of_tokens(model, "continuations")


def constrained_beam_search(model, input_ids, attention_mask, trie, *, allow=None, exclude=None, **options):
    """The search with the items that the lists leave."""
    item_filter = ItemFilter(trie, len(input_ids), allow, exclude)
    return beam_search.constrained_beam_search(model, input_ids, attention_mask, trie, item_filter, **options)


def found_by_search(model, trie, num_beams, prompts=PROMPTS, **options):
    """For each prompt, pairs of token sequence and score; checks what holds for any result."""
    leaves, scores = constrained_beam_search(model, *batch_of(prompts), trie, num_beams=num_beams, **options)
    assert leaves.shape == scores.shape == (len(prompts), num_beams)
    assert leaves.dtype == torch.int64
    assert scores.dtype == torch.float32
    assert torch.equal(leaves == -1, scores == -torch.inf)
    results = []
    for row, row_scores in zip(leaves.tolist(), scores.tolist(), strict=True):
        real = [leaf for leaf in row if leaf >= 0]
        assert row[: len(real)] == real  # what is missing is missing at the end
        assert len(set(real)) == len(real)
        assert row_scores == sorted(row_scores, reverse=True)
        sequences = [tuple(trie.sequence(trie.items_below(leaf)[0])) for leaf in real]
        results.append(list(zip(sequences, row_scores, strict=False)))
    return results


def assert_equal_rankings(found, expected):
    assert [sequence for sequence, _ in found] == [sequence for sequence, _ in expected]
    torch.testing.assert_close([s for _, s in found], [s for _, s in expected], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", CATALOGUES)
@pytest.mark.parametrize("num_beams", [1, 2, 3, 7, 20])
def test_it_is_the_plain_beam_search(name, num_beams, model, token_scores):
    found = found_by_search(model, trie_of(name), num_beams)
    for row in range(len(PROMPTS)):
        expected = naive_beam_search(token_scores[name][row], CATALOGUES[name], num_beams)
        assert_equal_rankings(found[row], expected)


@pytest.mark.parametrize("name", CATALOGUES)
def test_with_enough_beams_it_is_the_exact_ranking(name, model, token_scores):
    """And more beams than leaves are neither dead nor duplicate beams."""
    leaves = len({tuple(tokens) for tokens in CATALOGUES[name].values()})
    for num_beams in (leaves, leaves + 5):
        found = found_by_search(model, trie_of(name), num_beams)
        for row in range(len(PROMPTS)):
            expected = naive_ranking(token_scores[name][row], CATALOGUES[name])
            assert len(expected) == leaves
            assert_equal_rankings(found[row], expected)


@pytest.mark.parametrize("name", CATALOGUES)
@pytest.mark.parametrize("num_beams", [1, 3, 7, 50])
def test_probabilities_may_be_shares_of_the_continuations(name, num_beams, model, shares_of_continuations):
    """A prefix of one continuation then costs nothing, and all items together have probability 1."""
    found = found_by_search(model, trie_of(name), num_beams, normalise="continuations")
    for row, scores in enumerate(shares_of_continuations[name]):
        assert_equal_rankings(found[row], naive_beam_search(scores, CATALOGUES[name], num_beams))
        if num_beams == 50:
            assert sum(math.exp(score) for _, score in found[row]) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_only_the_item_tokens_rows_of_the_head_are_multiplied(dtype):
    """With a head of few item tokens, scale and soft-cap of the model included."""
    config = {**COMMON, "vocab_size": 100, "initializer_range": 0.3}
    configs = [
        LlamaConfig(**config),
        CohereConfig(**config, num_key_value_heads=1, logit_scale=0.25),
        Gemma2Config(**config, head_dim=8, num_key_value_heads=1, final_logit_softcapping=3.0, sliding_window=64),
    ]
    prompt = batch_of(PROMPTS)
    for each in configs:
        model = build(each, "eager").to(dtype)
        tokens = torch.tensor([2, 3, 12, 13, 99])
        narrow, whole = PromptDecoder(model, *prompt, tokens), PromptDecoder(model, *prompt)
        assert narrow._head is not None
        assert narrow.logits.shape == (3, 1, 5)
        assert narrow.token_indices(tokens).tolist() == [0, 1, 2, 3, 4]
        step = torch.tensor([[2, 99]] * 3), torch.zeros(3, 2, dtype=torch.long)
        tolerance = {"rtol": 1e-4, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 3e-2, "atol": 3e-2}
        with torch.no_grad():
            torch.testing.assert_close(narrow.logits, whole.logits[..., tokens].float(), **tolerance)
            torch.testing.assert_close(narrow.step(*step), whole.step(*step)[..., tokens].float(), **tolerance)
        assert PromptDecoder(model, *prompt, torch.arange(60))._head is None  # most of the vocabulary


def test_a_head_that_is_no_plain_layer_is_used_whole(model):
    """And so is that of a model whose own forward does something to the hidden states."""

    class Shifted(type(model)):
        def forward(self, *args, **kwargs):
            output = super().forward(*args, **kwargs)
            output.logits = output.logits + torch.arange(output.logits.shape[-1])
            return output

    prompt, tokens = batch_of(PROMPTS), torch.tensor([2, 3])
    assert PromptDecoder(model, *prompt, tokens)._head is not None
    torch.manual_seed(0)
    assert PromptDecoder(Shifted(model.config).eval(), *prompt, tokens)._head is None
    other = build(LlamaConfig(**COMMON))
    other.lm_head = torch.nn.Sequential(other.lm_head)
    other.lm_head.weight = other.lm_head[0].weight
    assert PromptDecoder(other, *prompt, tokens)._head is None


@pytest.mark.parametrize("name", CATALOGUES)
@pytest.mark.parametrize("num_beams", [2, 50])
def test_only_allowed_items_take_a_beam(name, num_beams, model, token_scores):
    """Lists, and masks, for all prompts and for each; with items excluded besides."""
    sequences, trie = CATALOGUES[name], trie_of(name)
    rng = random.Random(3)
    lists = [rng.sample(sorted(sequences), count) for count in (1, 12, 25)]
    shared, out = lists[1], [lists[1][:3], [], lists[1]]

    def mask(items):
        return torch.tensor([item in items for item in trie.item_ids])

    def expect(allowed_by_row, excluded_by_row):
        same = allowed_by_row == [shared] * 3
        for options in (
            {"allow": allowed_by_row, "exclude": excluded_by_row},
            {
                "allow": torch.stack([mask(items) for items in allowed_by_row]),
                "exclude": torch.stack([mask(items) for items in excluded_by_row]),
            },
            {
                "allow": np.array(shared) if allowed_by_row == [shared] * 3 else allowed_by_row,
                "exclude": excluded_by_row,
            },
            {
                "allow": mask(shared) if same else allowed_by_row,
                "exclude": mask(out[0]) if excluded_by_row == [out[0]] * 3 else excluded_by_row,
            },
        ):
            found = found_by_search(model, trie, num_beams, **options)
            for row in range(3):
                closed = set(sequences) - set(allowed_by_row[row]) | set(excluded_by_row[row])
                expected = naive_beam_search(token_scores[name][row], sequences, num_beams, excluded=closed)
                assert_equal_rankings(found[row], expected)

    expect([shared] * 3, [[]] * 3)
    expect([shared] * 3, out)
    expect([shared] * 3, [out[0]] * 3)
    expect(lists, out)
    expect(lists, [out[0]] * 3)
    expect([sorted(sequences)] * 3, out)


@pytest.mark.parametrize("name", CATALOGUES)
@pytest.mark.parametrize("num_beams", [2, 50])
def test_excluded_items_take_no_beam(name, num_beams, model, token_scores):
    sequences = CATALOGUES[name]
    trie = trie_of(name)
    best = [list(naive_ranking(scores, sequences)) for scores in token_scores[name]]
    by_sequence = {tokens: [i for i in sequences if tuple(sequences[i]) == tokens] for tokens, _ in best[0]}
    first_tokens = {tokens[0] for tokens, _ in best[0]}
    keep = next(iter(first_tokens))
    exclude = [
        [item for tokens, _ in best[0][:4] for item in by_sequence[tokens]] * 2,  # the best ones, each named twice
        [item for item, tokens in sequences.items() if tokens[0] != keep],  # whole branches
        [items[0] for items in by_sequence.values() if len(items) > 1],  # one of several that share a leaf: no effect
    ]
    found = found_by_search(model, trie, num_beams, exclude=exclude)
    for row in range(3):
        expected = naive_beam_search(token_scores[name][row], sequences, num_beams, excluded=set(exclude[row]))
        assert_equal_rankings(found[row], expected)
    assert not {tokens for tokens, _ in found[0]} & {tokens for tokens, _ in best[0][:4]}
    # To within rounding, which depends on how many beams the other rows have
    assert_equal_rankings(found[2], found_by_search(model, trie, num_beams)[2])
    everything = found_by_search(model, trie, num_beams, exclude=[list(sequences), [], []])
    assert everything[0] == []
    assert_equal_rankings(everything[1], found_by_search(model, trie, num_beams)[1])


def test_neither_the_batch_nor_its_padding_matters(model):
    trie = trie_of("titles")
    together = found_by_search(model, trie, 5)
    for row, prompt in enumerate(PROMPTS):
        assert_equal_rankings(found_by_search(model, trie, 5, [prompt])[0], together[row])
    input_ids, attention_mask = batch_of(PROMPTS)
    junk = torch.where(attention_mask == 0, 17, input_ids)
    changed = constrained_beam_search(model, junk, attention_mask, trie, num_beams=5)
    torch.testing.assert_close(
        changed[1], constrained_beam_search(model, input_ids, attention_mask, trie, num_beams=5)[1]
    )


COMMON = {**SIZES, **ROUGH, "intermediate_size": 32}
MODELS = {
    "llama, eager": (LlamaConfig(**COMMON), "eager", True),
    "qwen3": (Qwen3Config(**COMMON, head_dim=8, num_key_value_heads=1), "sdpa", True),
    "gpt2": (GPT2Config(vocab_size=VOCAB_SIZE, n_embd=16, n_layer=2, n_head=2, n_positions=32, **ROUGH), "sdpa", True),
    "gpt neox": (GPTNeoXConfig(**COMMON), "sdpa", True),
    "opt": (OPTConfig(**SIZES, ffn_dim=32, word_embed_proj_dim=16, init_std=0.6, pad_token_id=0), "sdpa", True),
    "falcon": (FalconConfig(**SIZES, **ROUGH), "sdpa", True),
    "falcon with alibi": (FalconConfig(**SIZES, **ROUGH, alibi=True), "sdpa", False),
    "bloom": (BloomConfig(vocab_size=VOCAB_SIZE, hidden_size=16, n_layer=2, n_head=2, **ROUGH), "eager", False),
    "mistral with a sliding window": (MistralConfig(**COMMON, num_key_value_heads=1, sliding_window=3), "sdpa", False),
    "gemma3": (
        Gemma3TextConfig(**COMMON, head_dim=8, num_key_value_heads=1, sliding_window=3, sliding_window_pattern=2),
        "sdpa",
        False,
    ),
}


@pytest.mark.parametrize("which", MODELS)
def test_models_of_many_kinds(which):
    """Those that take a mask of any shape share the prompt's row; the others have their cache repeated."""
    config, attention, shares_rows = MODELS[which]
    model = build(config, attention)
    decoder = PromptDecoder(model, *batch_of(PROMPTS))
    assert decoder._shares_rows is shares_rows
    sequences = CATALOGUES["titles"]
    found = found_by_search(model, trie_of("titles"), 3)
    with torch.no_grad():
        for row, prompt in enumerate(PROMPTS):
            scores = naive_token_scores(model, prompt, sequences)
            assert_equal_rankings(found[row], naive_beam_search(scores, sequences, 3))


def test_a_peft_model():
    lora = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules="all-linear", init_lora_weights=False)
    model = get_peft_model(build(LlamaConfig(**COMMON)), lora).eval()
    assert PromptDecoder(model, *batch_of(PROMPTS))._shares_rows
    found = found_by_search(model, trie_of("fixed"), 3)
    with torch.no_grad():
        for row, prompt in enumerate(PROMPTS):
            scores = naive_token_scores(model, prompt, CATALOGUES["fixed"])
            assert_equal_rankings(found[row], naive_beam_search(scores, CATALOGUES["fixed"], 3))


def test_both_ways_of_decoding_agree_in_bfloat16():
    config = LlamaConfig(**{**COMMON, "initializer_range": 0.2})
    for attention in ("sdpa", "eager"):
        model = build(config, attention).to(torch.bfloat16)
        decoders = [PromptDecoder(model, *batch_of(PROMPTS)) for _ in range(2)]
        decoders[1]._shares_rows = False
        torch.manual_seed(0)
        with torch.no_grad():
            for width in (4, 6, 2):  # the number of continuations changes from step to step
                tokens = torch.randint(0, VOCAB_SIZE, (3, width))
                parents = torch.randint(0, decoders[0].logits.shape[1], (3, width))
                logits = [decoder.step(tokens, parents) for decoder in decoders]
                assert logits[0].dtype == torch.bfloat16
                torch.testing.assert_close(logits[0], logits[1], rtol=0.05, atol=0.05)


def test_columns_that_no_beam_sees_are_forgotten(model):
    """Fifty beams that all go on from one parent leave the others' columns behind."""
    decoder = PromptDecoder(model, *batch_of(PROMPTS))
    width, steps = 5, 12
    with torch.no_grad():
        for step in range(steps):
            parents = torch.zeros(3, width, dtype=torch.long)
            logits = decoder.step(torch.full((3, width), 2 + step % 5), parents)
            behind = decoder._cache.layers[0].keys.shape[2] - 5  # prompts are 5 wide
            assert behind <= step + 2 * width
        whole = [PROMPTS[2] + [2 + step % 5 for step in range(steps)]]
        torch.testing.assert_close(logits[2, 0], model(torch.tensor(whole)).logits[0, -1], rtol=1e-4, atol=1e-4)


def test_equal_scores_are_in_the_order_of_the_nodes():
    even = build(LlamaConfig(**COMMON))
    torch.nn.init.zeros_(even.lm_head.weight)
    trie = trie_of("fixed")
    leaves, scores = constrained_beam_search(even, *batch_of(PROMPTS), trie, num_beams=9)
    assert scores.unique().numel() == 1
    assert leaves.tolist() == [leaves[0].sort().values.tolist()] * 3
    # Beams are cut in the order of the nodes as well, so that the first leaves of all are found.
    first = trie.arrays.item_leaf.unique()[:9]
    assert leaves[0].tolist() == first.tolist()


def test_sort_keys_order_scores_then_nodes():
    scores = torch.tensor([-1.0, 0.0, -0.0, -1e-30, -3e38, -torch.inf, 2.5, -1.0, -1.0000001])
    nodes = torch.tensor([3, 5, 4, 0, 0, -1, 7, 2, 9])
    order = _sort_keys(scores, nodes).argsort(descending=True).tolist()
    assert order == sorted(range(9), key=lambda i: (-scores[i].item(), nodes[i].item()))


def test_wrong_arguments_are_refused(model):
    trie = trie_of("fixed")
    input_ids, attention_mask = batch_of(PROMPTS)
    with pytest.raises(ValueError, match="num_beams=0"):
        constrained_beam_search(model, input_ids, attention_mask, trie, num_beams=0)
    with pytest.raises(ValueError, match="padded on the left"):
        constrained_beam_search(model, input_ids, attention_mask.flip(1), trie, num_beams=2)
    with pytest.raises(ValueError, match="padded on the left"):
        constrained_beam_search(model, input_ids, attention_mask * 0, trie, num_beams=2)
    with pytest.raises(ValueError, match=r"\(3, 5\) and attention_mask of shape \(3, 4\)"):
        constrained_beam_search(model, input_ids, attention_mask[:, 1:], trie, num_beams=2)
    with pytest.raises(ValueError, match="2 lists of items to exclude for 3 prompts"):
        constrained_beam_search(model, input_ids, attention_mask, trie, num_beams=2, exclude=[[], []])
    with pytest.raises(ValueError, match="not in the catalogue"):
        constrained_beam_search(model, input_ids, attention_mask, trie, num_beams=2, exclude=[[], ["tuba"], []])
    wrong = torch.ones(3, 7, dtype=torch.bool)
    for name in ("allow", "exclude"):
        with pytest.raises(TypeError, match=f"{name} that mixes"):
            constrained_beam_search(
                model, input_ids, attention_mask, trie, num_beams=2, **{name: ["item1", ["item2"]]}
            )
        with pytest.raises(TypeError, match=r"Pass \['item1'\]"):
            constrained_beam_search(model, input_ids, attention_mask, trie, num_beams=2, **{name: "item1"})
        with pytest.raises(ValueError, match=rf"shape \(3, 7\) as {name}, expected a mask .* \(40,\) or \(3, 40\)"):
            constrained_beam_search(model, input_ids, attention_mask, trie, num_beams=2, **{name: wrong})
    with pytest.raises(ValueError, match="normalise='items'"):
        constrained_beam_search(model, input_ids, attention_mask, trie, num_beams=2, normalise="items")
    wide = ItemTrie.from_sequences({"a": [99]})
    with pytest.raises(ValueError, match=f"uses token 99, but the vocabulary has {VOCAB_SIZE}"):
        constrained_beam_search(model, input_ids, attention_mask, wide, num_beams=2)
    broken = build(LlamaConfig(**COMMON))
    torch.nn.init.constant_(broken.lm_head.weight, float("nan"))
    with pytest.raises(ValueError, match="not numbers"):
        constrained_beam_search(broken, input_ids, attention_mask, trie, num_beams=2)
