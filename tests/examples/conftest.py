"""What the examples on an existing language model start from."""

import json

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from ilrec_trl import ItemCatalog, generate_store


@pytest.fixture(scope="session")
def make_folder(tmp_path_factory):
    """Write a small Llama that knows no item yet, and a data folder in LC-Rec's format; gives the folder."""

    def make(num_users, with_titles=False):
        folder = tmp_path_factory.mktemp("qlora")
        store = generate_store(num_users=num_users, num_items=60)
        sequences = dict(zip(store.interactions.users, store.interactions.sequences, strict=True))
        (folder / "inter.json").write_text(json.dumps(sequences))
        (folder / "index.json").write_text(json.dumps(store.semantic_ids))
        if with_titles:
            about = {item: {"title": title} for item, title in store.titles.items()}
            (folder / "item.json").write_text(json.dumps(about))
        tokenizer = ItemCatalog.from_titles(store.titles).build_tokenizer(300)
        tokenizer.save_pretrained(folder / "model")
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=64,
            num_hidden_layers=3,
            num_attention_heads=2,
            pad_token_id=0,
            eos_token_id=1,
            bos_token_id=None,
            initializer_range=0.1,  # frozen layers of the usual 0.02 would hardly carry one token to the next
        )
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder / "model")
        return folder

    return make
