"""A store of few items, questions to its users, and a model of random weights: the same in every process."""

import torch
from datasets import Dataset
from transformers import LlamaConfig, LlamaForCausalLM

from ilrec_trl.items.item_catalog import ItemCatalog


# "d" and "e" share a semantic ID.
SEMANTIC_IDS = {
    "a": ["<x_0>", "<y_0>"],
    "b": ["<x_0>", "<y_1>"],
    "c": ["<x_1>", "<y_0>"],
    "d": ["<x_1>", "<y_1>"],
    "e": ["<x_1>", "<y_1>"],
    "f": ["<x_2>", "<y_2>"],
}


def make_catalog():
    return ItemCatalog.from_semantic_ids(SEMANTIC_IDS)


def make_model(tokenizer):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=32,
        initializer_range=0.5,  # probabilities that differ well, so that ranks are no matter of rounding
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    return LlamaForCausalLM(config)


def questions(catalog, histories, targets):
    prompts = ["".join(catalog.text(item) for item in history) for history in histories]
    return Dataset.from_dict(
        {
            "prompt": prompts,
            "completion": [catalog.text(target) for target in targets],
            "history": histories,
            "item": targets,
            "user": [f"user {row}" for row in range(len(targets))],
        }
    )


def make_dataset(catalog, users):
    items = list(SEMANTIC_IDS)
    histories = [[items[row % 6]] * (1 + row % 3) + [items[(row * 5 + 1) % 6]] for row in range(users)]
    return questions(catalog, histories, [items[(row * 7 + 2) % 6] for row in range(users)])
