"""Lengths of rows in tokens, added up from their items where a template allows it, and histories that fit a limit."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from os.path import commonprefix
from typing import TYPE_CHECKING, Any

import numpy as np


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from .prompt_renderer import Prompt, PromptRenderer

# Rows that are tokenized whole to see whether sums of item lengths are right, and rows tokenized at once.
TRIED_ROWS, BATCH_ROWS = 256, 4096


def tokenize_rows(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    completions: Sequence[Prompt] | None = None,
    chat_template_kwargs: dict[str, Any] | None = None,
) -> list[list[int]]:
    """
    Token ids as [`~trl.SFTTrainer`] makes them: of prompts alone, with the generation prompt of a conversation; or of
    prompts with their completions, with the end-of-sequence token after a text.
    """
    end = tokenizer.eos_token or ""
    rows: list[list[int]] = []
    for start in range(0, len(prompts), BATCH_ROWS):
        batch: list[Any] = list(prompts[start : start + BATCH_ROWS])
        if completions is not None:
            after = completions[start : start + BATCH_ROWS]
            batch = [prompt + completion for prompt, completion in zip(batch, after, strict=True)]
        if batch and not isinstance(batch[0], str):
            options = {"add_generation_prompt": completions is None, **(chat_template_kwargs or {})}
            output: Any = tokenizer.apply_chat_template(batch, tokenize=True, return_dict=True, **options)
        else:
            whole = [text if completions is None or text.endswith(end) else text + end for text in batch]
            output = tokenizer(text=whole)
        rows += output["input_ids"]
    return rows


class PromptLengths:
    """
    Lengths in tokens of the rows that one template gives.

    A row is as long as its parts, an item's share being what it adds between two others. Whether that is so depends
    on template and tokenizer: it is tried on rows tokenized whole, the longest among them, and where one differs every
    row is tokenized whole instead, which is slower and always right.

    Args:
        renderer ([`PromptRenderer`]): With a tokenizer, and catalogues that list their items.
        variant (`int`): Which of its templates.
    """

    def __init__(self, renderer: PromptRenderer, variant: int) -> None:
        assert renderer.tokenizer is not None
        self.renderer = renderer
        self.variant = variant
        self.tokenizer = renderer.tokenizer
        self.items: list[str] = renderer.catalog.item_ids  # type: ignore[attr-defined]
        self.targets: list[str] = (renderer.targets or renderer.catalog).item_ids  # type: ignore[attr-defined]
        self.is_sum = True
        # What each item adds, and what a row with the longest target has besides
        self._added: dict[str, int] = {}
        self._around = 0

    def fitting(self, histories: Sequence[Sequence[str]], max_length: int) -> list[int]:
        """How many of the newest items of each history fit with the longest target; at least one."""
        if all(len(history) == 1 for history in histories):
            return [1] * len(histories)
        counts = self._fitting_by_sum(histories, max_length) if self.is_sum else None
        if counts is None or not self._is_right(histories, counts):
            self.is_sum = False
            counts = self._fitting_by_measure(histories, max_length)
        return counts

    def refuse_longer(self, rows: Sequence[tuple[str, list[str], str]], max_length: int) -> None:
        """Refuse a row of a single item of history that is too long with its own target; (row, history, target)."""
        room = max_length - self._around
        sure = {item for item, added in self._added.items() if added <= room} if self.is_sum else set()
        suspects = [row for row in rows if len(row[1]) == 1 and row[1][0] not in sure]
        lengths = self._measure([history for _, history, _ in suspects], [target for _, _, target in suspects])
        for (name, history, target), length in zip(suspects, lengths, strict=True):
            if length > max_length:
                raise ValueError(
                    f"{name}: item {target!r} after a history of one item ({history[0]!r}) takes {length} "
                    f"tokens, more than max_length={max_length}, and neither is ever cut. Set max_length to at least "
                    f"{length}, shorten the texts, or remove the item."
                )

    def check_end(self) -> None:
        """
        Try with every item that can be asked whether the tokens of a prompt, and of its chat template, are those that
        stand before the item in a row to train on.

        Raises:
            ValueError: If tokens join across the border, or the chat template puts more between prompt and item.
        """
        renderer = self.renderer
        prompt: Any = renderer.as_prompt(renderer.render(self._short[:1], self.variant))
        if renderer.conversational:
            completion = renderer.as_completion(renderer.target_texts[self.targets[0]])
            _check_chat_template(self.tokenizer, prompt, completion, renderer.chat_template_kwargs or {})
        [before] = tokenize_rows(self.tokenizer, [prompt], None, renderer.chat_template_kwargs)
        for target, row in zip(self.targets, self._target_rows, strict=True):
            if row[: len(before)] != before:
                joined = len(commonprefix([before, row]))
                raise ValueError(
                    f"{renderer.templates[self.variant].name} ends a prompt with {str(prompt)[-20:]!r}, which the "
                    f"tokenizer joins with the start of {renderer.target_texts[target][:40]!r} (item {target!r}) as "
                    f"{self.tokenizer.decode(row[joined : joined + 1])!r}: the model would be asked after other "
                    "tokens than it was trained on. End the template with a new line."
                )

    @cached_property
    def longest(self) -> str:
        """The item of most tokens among all that can be asked, which every prompt leaves room for."""
        if self.variant:
            return self.renderer.lengths[0].longest
        return self.targets[max(range(len(self.targets)), key=lambda row: len(self._target_rows[row]))]

    @cached_property
    def _short(self) -> list[str]:
        """An item of few tokens, to measure others between."""
        return [min(self.items, key=lambda item: len(self.renderer.texts[item]))] * 2

    @cached_property
    def _target_rows(self) -> list[list[int]]:
        """Token ids of each target after one short history."""
        return self._tokenize([self._short[:1]] * len(self.targets), self.targets)

    def _tokenize(self, histories: Sequence[Sequence[str]], targets: Sequence[str]) -> list[list[int]]:
        renderer = self.renderer
        prompts = [renderer.as_prompt(renderer.render(history, self.variant)) for history in histories]
        completions = [renderer.as_completion(renderer.target_texts[target]) for target in targets]
        return tokenize_rows(self.tokenizer, prompts, completions, renderer.chat_template_kwargs)

    def _measure(self, histories: Sequence[Sequence[str]], targets: Sequence[str]) -> list[int]:
        """Lengths of whole rows, tokenized: histories, and the item asked after each."""
        return list(map(len, self._tokenize(histories, targets)))

    def _fitting_by_sum(self, histories: Sequence[Sequence[str]], max_length: int) -> list[int]:
        self._measure_items({item for history in histories for item in history})
        counts = []
        for history in histories:
            lengths = [self._added[item] for item in history]
            left, first = max_length - self._around - sum(lengths), 0
            while left < 0 and first < len(lengths) - 1:
                left += lengths[first]
                first += 1
            counts.append(len(lengths) - first)
        return counts

    def _measure_items(self, items: set[str]) -> None:
        first, last = self._short
        new = sorted((items | {first}) - self._added.keys())
        target = min(self.targets, key=lambda item: len(self.renderer.target_texts[item]))
        pair, *lengths = self._measure(
            [self._short, *([first, item, last] for item in new)], [target] * (len(new) + 1)
        )
        self._added |= {item: length - pair for item, length in zip(new, lengths, strict=True)}
        self._around = self._measure([self._short], [self.longest])[0] - 2 * self._added[first]

    def _is_right(self, histories: Sequence[Sequence[str]], counts: list[int]) -> bool:
        """Whether sums are right for the longest rows and others at even distances, also if one item longer."""
        longer = [list(h[max(0, len(h) - count - 1) :]) for h, count in zip(histories, counts, strict=True)]
        sums = np.array([sum(self._added[item] for item in history) for history in longer], dtype=np.int64)
        even = range(0, len(sums), max(1, len(sums) // TRIED_ROWS))
        rows = sorted({*np.argsort(-sums)[:TRIED_ROWS].tolist(), *even})
        tried = [history for row in rows for history in (longer[row], longer[row][-counts[row] :])]
        expected = [self._around + sum(self._added[item] for item in history) for history in tried]
        return self._measure(tried, [self.longest] * len(tried)) == expected

    def _fitting_by_measure(self, histories: Sequence[Sequence[str]], max_length: int) -> list[int]:
        counts = [len(history) for history in histories]
        unsettled = list(range(len(counts)))
        while unsettled:
            shown = [histories[row][len(histories[row]) - counts[row] :] for row in unsettled]
            lengths = self._measure(shown, [self.longest] * len(unsettled))
            too_long = [row for row, length in zip(unsettled, lengths, strict=True) if length > max_length]
            unsettled = [row for row in too_long if counts[row] > 1]
            for row in unsettled:
                counts[row] -= 1
        return counts


def _check_chat_template(
    tokenizer: PreTrainedTokenizerBase, prompt: Any, completion: Any, kwargs: dict[str, Any]
) -> None:
    options = {"tokenize": False, **kwargs}
    asked = str(tokenizer.apply_chat_template(prompt, add_generation_prompt=True, **options))
    trained = str(tokenizer.apply_chat_template(prompt + completion, **options))
    if not trained.startswith(asked + completion[0]["content"]):
        shared = len(commonprefix([asked, trained]))
        raise ValueError(
            f"The chat template ends a prompt to recommend for with {asked[-60:]!r}, but in training goes on after "
            f"{trained[:shared][-20:]!r} with {trained[shared : shared + 60]!r}: the model would be asked after "
            "another text than it was trained on. Templates of thinking models do that unless told not to: give "
            "`chat_template_kwargs`, for Qwen3 {'enable_thinking': False}, here and to `recommend`."
        )
