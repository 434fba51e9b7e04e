"""A catalogue with titles and semantic IDs, a tokenizer that knows the titles alone, and a tiny Llama on disk."""

import pytest
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

from ilrec_trl import ItemCatalog


TITLES = {"lute": "Red lute", "harp": "Small harp", "drum": "Loud red drum", "gong": "Loud gong"}
IDS = {"lute": ["<a_0>", "<b_1>"], "harp": ["<a_0>", "<b_0>"], "drum": ["<a_1>", "<b_0>"], "gong": ["<a_1>", "<b_1>"]}


@pytest.fixture
def both():
    return ItemCatalog(list(TITLES), list(TITLES.values()), list(IDS.values()), "semantic_ids")


@pytest.fixture
def text_tokenizer():
    return ItemCatalog.from_titles(TITLES).build_tokenizer(vocab_size=280)


@pytest.fixture
def load_llama(tmp_path, text_tokenizer):
    """Tiny Llama as a Hub model would come: with its own tokenizer, tied or not, in nf4 or not, with spare rows."""

    def load(tied=False, nf4=False, rows=None):
        folder = tmp_path / f"base-{tied}-{rows}"
        if not folder.exists():
            torch.manual_seed(0)
            sizes = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
            config = LlamaConfig(vocab_size=rows or len(text_tokenizer), tie_word_embeddings=tied, **sizes)
            LlamaForCausalLM(config).save_pretrained(folder)
            text_tokenizer.save_pretrained(folder)
        quantization = {
            "quantization_config": BitsAndBytesConfig(
                load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32
            )
        }
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **(quantization if nf4 else {}))

    return load
