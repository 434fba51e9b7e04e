"""A tiny catalogue, its tokenizer, its trie and rows to train on, all made here."""

import random

import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from ilrec_trl.items.item_trie import ItemTrie


CODES = [f"<{level}_{code}>" for level in "abc" for code in range(4)]
CHAT_TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}<end>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def semantic_ids():
    """Thirty items of three codes, two of which share their codes."""
    generator = random.Random(0)
    items = {
        f"i{n}": [f"<a_{n % 4}>", f"<b_{generator.randrange(4)}>", f"<c_{generator.randrange(4)}>"] for n in range(30)
    }
    items["i29"] = items["i28"]
    return items


@pytest.fixture(scope="session")
def items():
    return semantic_ids()


@pytest.fixture
def tokenizer():
    specials = ["<pad>", "<eos>", "<unk>", "<user>", "<assistant>", "<end>"]
    tokenizer = Tokenizer(models.WordLevel({t: i for i, t in enumerate(specials + CODES)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")
    fast.add_tokens(specials[3:] + CODES)
    fast.chat_template = CHAT_TEMPLATE
    return fast


@pytest.fixture
def sequences(items, tokenizer):
    return {item: tokenizer.convert_tokens_to_ids(codes) for item, codes in items.items()}


@pytest.fixture
def trie(sequences):
    return ItemTrie.from_sequences(sequences)


def text(items, ids):
    return "".join("".join(items[item]) for item in ids)


@pytest.fixture
def rows(items):
    """Users who walk through the catalogue, so that there is something to learn."""
    generator = random.Random(1)
    rows = []
    for user in range(32):
        start, length = generator.randrange(30), generator.randrange(1, 5)
        ids = [f"i{(start + step) % 30}" for step in range(length + 1)]
        rows.append(
            {
                "prompt": text(items, ids[:-1]),
                "completion": text(items, ids[-1:]),
                "history": ids[:-1],
                "item": ids[-1],
                "user": f"u{user}",
            }
        )
    return rows


@pytest.fixture
def dataset(rows):
    return Dataset.from_list(rows)


@pytest.fixture
def make_model(tokenizer):
    def make(**options):
        torch.manual_seed(0)
        settings = {
            "vocab_size": len(tokenizer) + 2,  # wider than the tokenizer, as padded vocabularies are
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 4,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "pad_token_id": tokenizer.pad_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "bos_token_id": None,
        }
        return LlamaForCausalLM(LlamaConfig(**{**settings, **options}))

    return make


@pytest.fixture
def settings(tmp_path):
    """Arguments that every trainer of these tests shares."""
    return {
        "output_dir": str(tmp_path / "out"),
        "per_device_train_batch_size": 8,
        "per_device_eval_batch_size": 8,
        "max_steps": 4,
        "logging_steps": 1,
        "learning_rate": 1e-2,
        "report_to": "none",
        "save_strategy": "no",
        "use_cpu": True,
        "bf16": False,
        "disable_tqdm": True,
        "activation_checkpointing": False,
    }
