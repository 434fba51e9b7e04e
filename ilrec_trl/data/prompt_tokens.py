"""Token ids of prompts and completions: one way for training, evaluation and serving, the way of `SFTTrainer`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby, islice
from typing import TYPE_CHECKING, Any, TypeAlias


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

#: A text, or a conversation as a list of messages.
Prompt: TypeAlias = str | list[dict[str, str]]
BATCH_ROWS = 4096  # rows that the tokenizer gets in one call


def tokenize_prompts(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt], chat_template_kwargs: dict[str, Any] | None = None
) -> list[list[int]]:
    """
    Token ids of prompts alone: of a text with the special tokens that the tokenizer adds, of a conversation with the
    chat template and its generation prompt. Texts and conversations may be mixed.

    Raises:
        TypeError: for one text in place of a list.
        ValueError: for a prompt without tokens.
    """
    if isinstance(prompts, str):
        raise TypeError("Got one text as prompts, expected a list of prompts. Pass [prompt].")
    encoded = _encode(tokenizer, prompts, {"add_generation_prompt": True, **(chat_template_kwargs or {})})
    if empty := [row for row, token_ids in enumerate(encoded) if not token_ids]:
        raise ValueError(
            f"{len(empty)} prompts have no tokens, the first at row {empty[0]}. Each user needs at least one past "
            "item, or a prompt template with some words."
        )
    return encoded


def tokenize_rows(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    completions: Sequence[Prompt],
    chat_template_kwargs: dict[str, Any] | None = None,
) -> list[list[int]]:
    """Token ids of prompts with their completions, as they are trained on. A text ends with the end token."""
    end = tokenizer.eos_token or ""
    rows = (prompt + completion for prompt, completion in zip(prompts, completions, strict=True))  # type: ignore[operator]
    ended = (row + end if isinstance(row, str) and not row.endswith(end) else row for row in rows)
    return _encode(tokenizer, ended, chat_template_kwargs)


def tokenize_completions(
    tokenizer: PreTrainedTokenizerBase,
    completions: Sequence[str],
    prompt: Prompt,
    chat_template_kwargs: dict[str, Any] | None = None,
) -> list[list[int]]:
    """
    Token ids of each completion after one prompt: those of the whole row after those of the prompt, without the
    end-of-sequence token.

    Raises:
        ValueError: where a token would stand across the border of prompt and completion, or a chat template does not
            end a turn with the end-of-sequence token.
    """
    [start] = _encode(tokenizer, [prompt], {"add_generation_prompt": True, **(chat_template_kwargs or {})})
    if isinstance(prompt, str):
        rows: list[Any] = [prompt + text for text in completions]
    else:
        rows = [[*prompt, {"role": "assistant", "content": text}] for text in completions]
    encoded = _encode(tokenizer, rows, chat_template_kwargs)
    joined = [text for text, tokens in zip(completions, encoded, strict=True) if tokens[: len(start)] != start]
    if joined:
        end = (prompt if isinstance(prompt, str) else prompt[-1]["content"])[-40:]
        raise ValueError(
            f"The tokenizer joins the end of the prompt {end!r} with the start of {len(joined)} items, such as "
            f"{joined[0]!r}, so that no token starts where the item does. End prompts with a line break, or with "
            "other text after which a new token starts."
        )
    tokens = [row[len(start) :] for row in encoded]
    return tokens if isinstance(prompt, str) else [_without_closing(tokenizer, row) for row in tokens]


def _encode(
    tokenizer: PreTrainedTokenizerBase, rows: Iterable[Any], chat_template_kwargs: dict[str, Any] | None
) -> list[list[int]]:
    """Token ids of texts and conversations, which may be mixed."""
    options: dict[str, Any] = {"tokenize": True, "return_dict": True, **(chat_template_kwargs or {})}
    encoded: list[list[int]] = []
    for is_text, alike in groupby(rows, lambda row: isinstance(row, str)):
        while batch := list(islice(alike, BATCH_ROWS)):
            output: Any = tokenizer(text=batch) if is_text else tokenizer.apply_chat_template(batch, **options)
            encoded += output["input_ids"]
    return encoded


def _without_closing(tokenizer: PreTrainedTokenizerBase, tokens: list[int]) -> list[int]:
    if tokenizer.eos_token_id not in tokens:
        raise ValueError(
            f"The chat template closes an item with {tokenizer.decode(tokens)[-40:]!r}, which does not hold the "
            f"end-of-sequence token {tokenizer.eos_token!r}. Set `tokenizer.eos_token` to what ends a turn."
        )
    return tokens[: tokens.index(tokenizer.eos_token_id)]
