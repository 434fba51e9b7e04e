"""Prompts as the trainer tokenizes them, in left-padded batches, and a model put in evaluation mode for a while."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase


Prompt: TypeAlias = str | list[dict[str, Any]]


def tokenize_prompts(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    chat_template_kwargs: dict[str, Any] | None = None,
) -> list[list[int]]:
    """
    Token ids of each prompt, as `SFTTrainer` tokenizes the `prompt` column: a conversation with the chat template, its
    options and its generation prompt, a text with the special tokens the tokenizer adds.
    """
    options: dict[str, Any] = {"tokenize": True, "return_dict": True, "add_generation_prompt": True}
    options |= chat_template_kwargs or {}
    if isinstance(prompts, str):
        raise TypeError("Got one text as prompts, expected a list of prompts. Pass [prompt].")
    encoded = []
    for prompt in prompts:
        output: Any
        if isinstance(prompt, str):
            output = tokenizer(text=prompt)
        else:
            output = tokenizer.apply_chat_template(prompt, **options)
        encoded.append(list(output["input_ids"]))
    empty = [row for row, token_ids in enumerate(encoded) if not token_ids]
    if empty:
        raise ValueError(
            f"{len(empty)} prompts have no tokens, the first at row {empty[0]}. Each user needs at least one past "
            "item, or a prompt template with some words."
        )
    return encoded


def prompt_batches(
    encoded: Sequence[Sequence[int]],
    pad_token_id: int | None,
    batch_size: int,
    fitting: Callable[[int], int] | None = None,
) -> Iterator[tuple[list[int], Tensor, Tensor]]:
    """
    Batches of prompts of similar length, longest first, so that little is padding and memory runs out early or never.

    Args:
        encoded (`list[list[int]]`):
            Token ids of each prompt.
        pad_token_id (`int` or `None`):
            Token to pad with.
        batch_size (`int`):
            Most prompts of a batch.
        fitting (`Callable[[int], int]`, *optional*):
            Most prompts of so many tokens.

    Yields:
        `tuple[list[int], torch.Tensor, torch.Tensor]`: rows of `encoded`, input ids and attention mask, both
        `(B, S)` and padded on the left.
    """
    if batch_size < 1:
        raise ValueError(f"Got batch_size={batch_size}, expected at least 1.")
    order = sorted(range(len(encoded)), key=lambda row: -len(encoded[row]))
    start = 0
    while start < len(order):
        width = len(encoded[order[start]])
        rows = order[start : start + (batch_size if fitting is None else min(batch_size, fitting(width)))]
        start += len(rows)
        # What padding holds is never seen: without a padding token any will do.
        input_ids = torch.full((len(rows), width), pad_token_id or 0)  # (B, S)
        attention_mask = torch.zeros_like(input_ids)  # (B, S)
        for place, row in enumerate(rows):
            input_ids[place, width - len(encoded[row]) :] = torch.tensor(encoded[row])
            attention_mask[place, width - len(encoded[row]) :] = 1
        yield rows, input_ids, attention_mask


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Switch dropout off, and give every module its own mode back afterwards."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
