import json
import subprocess
import sys

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from ilrec_trl import item_token_settings, merge_adapter, recommend


# PEFT reads a name that transformers deprecates: https://github.com/huggingface/peft/blob/main/src/peft/peft_model.py
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is deprecated and will be removed in v6:FutureWarning"),
    # PEFT says that it saves an embedding that has grown, in the same repository's save_and_load.py
    pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers` to `True` as the embedding layer has been"),
]


PROMPTS = ["<a_0><b_1>", "<a_1><b_0><a_0><b_0>", "Red"]
METHODS = ["trainable_token_indices", "modules_to_save"]


@pytest.fixture
def train(both, text_tokenizer, load_llama):
    """A model with an adapter whose every trainable parameter has moved, as training would move it."""

    def make(method="trainable_token_indices", tied=False, nf4=False, rows=None, **options):
        model = load_llama(tied, nf4, rows)
        token_ids = both.add_tokens(text_tokenizer, model)
        if method is not None:
            options |= item_token_settings(model, token_ids, method)
        model = peft.get_peft_model(
            model, peft.LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", **options)
        )
        torch.manual_seed(1)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.3 * parameter.std().clamp(0.05, 1) * torch.randn_like(parameter))
        return model.eval()

    return make


def ranked(model, tokenizer, trie):
    return recommend(model, tokenizer, PROMPTS, trie, top_k=4, num_beams=4)


def assert_same(found, expected, tolerance=1e-4):
    assert [[item for item, _ in row] for row in found] == [[item for item, _ in row] for row in expected]
    scores = [torch.tensor([score for row in rows for _, score in row]) for rows in (found, expected)]
    torch.testing.assert_close(*scores, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("nf4", [False, True])
def test_plain_transformers_recommends_what_the_adapter_did(
    method, tied, nf4, both, text_tokenizer, train, load_llama, tmp_path
):
    model, trie = train(method, tied, nf4), both.trie(text_tokenizer)
    expected = ranked(model, text_tokenizer, trie)
    assert len({tuple(item for item, _ in row) for row in expected}) > 1  # the prompt matters
    model.save_pretrained(tmp_path / "adapter")
    merge_adapter(model, text_tokenizer, tmp_path / "memory")
    base = {"base_model": load_llama(tied, nf4)} if nf4 else {}
    merge_adapter(tmp_path / "adapter", text_tokenizer, tmp_path / "folder", **base)
    for folder in ("memory", "folder"):
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / folder)
        assert type(loaded).__name__ == "LlamaForCausalLM"
        assert loaded.config.tie_word_embeddings == tied
        assert not hasattr(loaded.config, "quantization_config")
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / folder)
        # The CPU's 4-bit kernels compute in bfloat16 where no gradient is asked for
        assert_same(ranked(loaded, tokenizer, both.trie(tokenizer)), expected, 0.02 if nf4 else 1e-4)


def test_the_merge_of_a_4_bit_model_is_what_was_trained(both, text_tokenizer, train, tmp_path):
    """With a gradient, as in training, the 4-bit kernels compute in float32."""
    model = train(nf4=True)
    input_ids = torch.tensor([text_tokenizer(PROMPTS[1])["input_ids"]])
    expected = model.train()(input_ids=input_ids).logits.detach()
    merged = merge_adapter(model, text_tokenizer, tmp_path / "merged")
    torch.testing.assert_close(merged.eval()(input_ids=input_ids).logits, expected, rtol=1e-4, atol=1e-5)


def test_a_fresh_process_gives_the_same(both, text_tokenizer, train, tmp_path):
    model, trie = train(), both.trie(text_tokenizer)
    expected = ranked(model, text_tokenizer, trie)
    merge_adapter(model, text_tokenizer, tmp_path / "merged")
    both.save(tmp_path / "merged")
    script = f"""
import sys, json
from transformers import AutoModelForCausalLM, AutoTokenizer
from ilrec_trl import ItemCatalog, recommend
folder = {str(tmp_path / "merged")!r}
tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
trie = ItemCatalog.load(folder).trie(tokenizer)
print(json.dumps(recommend(model, tokenizer, {PROMPTS!r}, trie, top_k=4, num_beams=4)))
assert "peft" not in sys.modules
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert_same(json.loads(result.stdout.splitlines()[-1]), expected)


def test_a_tied_head_that_training_untied_is_saved(both, text_tokenizer, train, tmp_path):
    """`modules_to_save` without `ensure_weight_tying` trains a copy of the embedding alone."""
    with pytest.warns(UserWarning, match="tie"):
        model = train(None, tied=True, modules_to_save=["embed_tokens"])
    expected = ranked(model, text_tokenizer, both.trie(text_tokenizer))
    with pytest.warns(UserWarning, match="no longer tied after merging"):
        merge_adapter(model, text_tokenizer, tmp_path / "merged")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert not loaded.config.tie_word_embeddings
    assert_same(ranked(loaded, text_tokenizer, both.trie(text_tokenizer)), expected)


def test_rows_that_only_the_trained_model_held_are_refused_from_a_folder(both, text_tokenizer, train, tmp_path):
    """New tokens in spare rows, started from item texts and frozen: the adapter's folder does not hold them."""
    model = train(None, rows=320)
    expected = ranked(model, text_tokenizer, both.trie(text_tokenizer))
    model.save_pretrained(tmp_path / "adapter")
    with pytest.raises(ValueError, match="4 tokens of the tokenizer, such as '<a_0>', have rows neither in the base"):
        merge_adapter(tmp_path / "adapter", text_tokenizer, tmp_path / "merged")
    merged = merge_adapter(model, text_tokenizer, tmp_path / "merged", dtype=torch.bfloat16)
    assert merged.dtype == AutoModelForCausalLM.from_pretrained(tmp_path / "merged").dtype == torch.bfloat16
    assert_same(ranked(merged.float(), text_tokenizer, both.trie(text_tokenizer)), expected, 0.02)


def test_what_cannot_be_merged_is_refused(both, text_tokenizer, train, load_llama, tmp_path):
    model = train()
    model.save_pretrained(tmp_path / "adapter")
    with pytest.raises(ValueError, match="holds an adapter, which transformers would load instead"):
        merge_adapter(model, text_tokenizer, tmp_path / "adapter")
    with pytest.raises(TypeError, match="Got a LlamaForCausalLM, expected a PeftModel"):
        merge_adapter(load_llama(), text_tokenizer, tmp_path / "merged")
    text_tokenizer.add_tokens(["<late>"])
    with pytest.raises(ValueError, match="has 285 tokens and the model 284 rows"):
        merge_adapter(model, text_tokenizer, tmp_path / "merged")
    with pytest.raises(ValueError, match="1 tokens of the tokenizer, such as '<late>'"):
        merge_adapter(tmp_path / "adapter", text_tokenizer, tmp_path / "merged")
    prefix = peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    with pytest.raises(ValueError, match="PREFIX_TUNING adapter, whose virtual tokens"):
        merge_adapter(peft.get_peft_model(load_llama(rows=300), prefix), text_tokenizer, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()
