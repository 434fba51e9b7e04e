"""What every row of the matrix works on: one catalogue, its tokenizer, users to learn from, tiny models."""

import functools
import random
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from datasets import Dataset
from transformers import LlamaConfig, LlamaForCausalLM
from trl import SFTConfig, SFTTrainer

from ilrec_trl.items.item_catalog import ItemCatalog
from ilrec_trl.trainer.ilrec_config import ILRecConfig
from ilrec_trl.trainer.ilrec_trainer import ILRecTrainer


SETTINGS = {
    "per_device_train_batch_size": 8,
    "per_device_eval_batch_size": 8,
    "max_steps": 4,
    "logging_steps": 1,
    "learning_rate": 2e-2,
    "lr_scheduler_type": "constant",
    "report_to": "none",
    "save_strategy": "no",
    "use_cpu": True,
    "bf16": False,
    "disable_tqdm": True,
    "dataloader_pin_memory": False,
    "activation_checkpointing": False,
}
ZERO = {"cpo_beta": 0.0, "cpd_weight": 0.0, "crr_weight": 0.0}
#: Sends the batch through ILRec's own forward, and adds nothing that could be seen.
ALMOST_ZERO = {**ZERO, "cpd_weight": 1e-12}
CHAT_TEMPLATE = (
    "{% for tool in tools or [] %}<end>{% endfor %}"
    "{% for m in messages %}{% if m['role'] == 'assistant' %}<assistant>{% generation %}{{ m['content'] }}<end>"
    "{% endgeneration %}{% else %}<{{ m['role'] }}>{{ m['content'] }}<end>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@functools.cache
def catalog() -> ItemCatalog:
    """Thirty items of three codes, two of which share their codes."""
    generator = random.Random(0)
    items = {f"i{n}": [f"<a_{n % 4}>", *(f"<{c}_{generator.randrange(4)}>" for c in "bc")] for n in range(30)}
    items["i29"] = items["i28"]
    return ItemCatalog.from_semantic_ids(items)


def make_tokenizer():
    tokenizer = catalog().build_tokenizer()
    tokenizer.add_tokens(["<user>", "<assistant>", "<end>"])
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


@functools.cache
def shared_tokenizer():
    """For reading alone: trainers write to the tokenizer they are given."""
    return make_tokenizer()


@functools.cache
def trie():
    return catalog().trie(shared_tokenizer())


@functools.cache
def users() -> list[dict]:
    """Users who walk through the catalogue, so that there is something to learn."""
    generator = random.Random(1)
    rows = []
    for user in range(16):
        start, length = generator.randrange(30), generator.randrange(1, 4)
        ids = [f"i{(start + step) % 30}" for step in range(length + 1)]
        prompt = "".join(catalog().text(item) for item in ids[:-1])
        row = {"prompt": prompt, "completion": catalog().text(ids[-1])}
        rows.append({**row, "history": ids[:-1], "item": ids[-1], "user": f"u{user}"})
    return rows


def dataset(make_row=dict) -> Dataset:
    return Dataset.from_list([make_row(row) for row in users()])


def reward_func(histories, **columns):
    """Scores that depend on the history."""
    table = torch.rand(len(trie()), len(trie()), generator=torch.Generator().manual_seed(3))
    return torch.stack([table[trie().index_of(history)].mean(0) for history in histories])


def with_catalogue() -> dict:
    return {"item_trie": trie()}


def with_rewards() -> dict:
    return {"item_trie": trie(), "reward_func": reward_func}


def make_model(seed=0, **options):
    tokenizer = shared_tokenizer()
    torch.manual_seed(seed)
    settings = {
        "vocab_size": len(tokenizer) + 2,  # wider than the tokenizer, as padded vocabularies are
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": None,
    }
    return LlamaForCausalLM(LlamaConfig(**{**settings, **options}))


@contextmanager
def make_trainer(trainer_class, options: dict, arguments: dict) -> Iterator[SFTTrainer]:
    """A trainer on the workbench's model, data and tokenizer where `arguments` bring none of their own."""
    config_class = ILRecConfig if trainer_class is ILRecTrainer else SFTConfig
    with tempfile.TemporaryDirectory() as folder:
        config = config_class(**{"output_dir": folder, **SETTINGS, **options})
        settings = {"model": make_model, "train_dataset": dataset, "processing_class": make_tokenizer}
        settings = {name: make() for name, make in settings.items() if name not in arguments}
        yield trainer_class(args=config, **settings, **arguments)
