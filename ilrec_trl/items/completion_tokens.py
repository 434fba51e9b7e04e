"""Tokens of an item's text where it stands as completion, right after a prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Prompt: TypeAlias = str | list[dict[str, str]]


def completion_tokens(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    prompt: Prompt,
    chat_template_kwargs: dict[str, Any] | None = None,
) -> list[list[int]]:
    """
    Token ids of each text as `SFTTrainer` tokenizes prompt and completion together: the tokens after those of the
    prompt, without the end-of-sequence token.

    Raises:
        ValueError: where a token would stand across the border of prompt and text, or a chat template does not end a
            turn with the end-of-sequence token.
    """
    start: list[int]
    encoded: Any
    if isinstance(prompt, str):
        start = tokenizer(text=prompt)["input_ids"]
        encoded = tokenizer(text=[prompt + text for text in texts])["input_ids"]
    else:
        options: Any = {"tokenize": True, "return_dict": True} | (chat_template_kwargs or {})
        rendered: Any = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, **options)
        start = rendered["input_ids"]
        turns = [[*prompt, {"role": "assistant", "content": text}] for text in texts]
        rendered = tokenizer.apply_chat_template(turns, **options)  # type: ignore[arg-type]
        encoded = rendered["input_ids"]
    joined = [text for text, tokens in zip(texts, encoded, strict=True) if tokens[: len(start)] != start]
    if joined:
        raise ValueError(
            f"The tokenizer joins the end of the prompt {_end_of(prompt)!r} with the start of {len(joined)} items, "
            f"such as {joined[0]!r}, so that no token starts where the item does. End prompts with a line break, or "
            "with other text after which a new token starts."
        )
    tokens = [sequence[len(start) :] for sequence in encoded]
    return tokens if isinstance(prompt, str) else [_without_closing(tokenizer, sequence) for sequence in tokens]


def _without_closing(tokenizer: PreTrainedTokenizerBase, tokens: list[int]) -> list[int]:
    if tokenizer.eos_token_id not in tokens:
        raise ValueError(
            f"The chat template closes an item with {tokenizer.decode(tokens)[-40:]!r}, which does not hold the "
            f"end-of-sequence token {tokenizer.eos_token!r}. Set `tokenizer.eos_token` to what ends a turn."
        )
    return tokens[: tokens.index(tokenizer.eos_token_id)]


def _end_of(prompt: Prompt) -> str:
    return prompt[-40:] if isinstance(prompt, str) else prompt[-1]["content"][-40:]


def check_semantic_ids(
    tokenizer: PreTrainedTokenizerBase, sequences: Mapping[str, list[int]], semantic_ids: Sequence[Sequence[str]]
) -> None:
    """Refuse a tokenizer that does not read each token of a semantic ID as one entry."""
    vocabulary = tokenizer.get_vocab()
    for (item_id, token_ids), tokens in zip(sequences.items(), semantic_ids, strict=True):
        if token_ids != [vocabulary.get(token) for token in tokens] or tokenizer.unk_token_id in token_ids:
            raise ValueError(
                f"The tokenizer reads the semantic ID {list(tokens)} of item {item_id!r} as "
                f"{tokenizer.convert_ids_to_tokens(token_ids)}, expected one entry for each token. Call "
                "`catalog.add_tokens(tokenizer, model)` first."
            )
