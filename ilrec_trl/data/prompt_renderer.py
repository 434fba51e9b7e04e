"""From a history to a prompt, and how many items of it fit. Training, evaluation and serving all use this module."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from os.path import commonprefix
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np

from .prompt_templates import PromptTemplate, TemplateSource, load_templates


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

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


Prompt: TypeAlias = str | list[dict[str, str]]


class ItemTexts(Protocol):
    """What a catalogue must offer here; [`ItemCatalog`] does. With `max_length` it has `item_ids` too."""

    def text(self, item_id: str) -> str:
        """Text of an item, its title or its semantic-ID tokens in a row."""


@dataclass
class PromptRenderer:
    """
    Turns histories into prompts.

    A prompt depends on the history alone, never on the target, so that what a model is asked in training is what it is
    asked afterwards. Pass one renderer to [`next_item_dataset`] and [`sequence_dataset`], and its `prompts(histories)`
    to [`recommend`].

    Args:
        catalog ([`ItemCatalog`]): Gives the texts of the items in the history. Any object with `text(item_id)` does.
        targets ([`ItemCatalog`], *optional*): Gives the texts of the completions; `catalog` by default.
        template (`str`, `Path` or a list of these, *optional*): Jinja text, shipped name, file or folder, see
            [`load_templates`]. Of several, prompts to recommend for use the first. Defaults to the bare items for
            semantic IDs and to one introducing line for titles.
        separator (`str`, *optional*): Text after every item. Defaults to nothing for semantic IDs and a new line
            otherwise.
        max_history (`int`, *optional*, defaults to `20`): Number of items a prompt shows at most; the oldest are
            dropped.
        conversational (`bool`, *optional*, defaults to `False`): Give prompts as lists of chat messages.
        system_prompt (`str`, *optional*): First message of every conversation.
        chat_template_kwargs (`dict`, *optional*): For the chat template, for instance `{"enable_thinking": False}`.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`], *optional*): The language model's. With it, that prompts
            end where a token ends is tried with every item instead of read off the template.
        max_length (`int`, *optional*): Tokens that a prompt with the longest item of the catalogue, chat template and
            end token included, has at most; the oldest items are dropped. Needs `tokenizer`.

    Raises:
        ValueError: If a template cannot be used, or does not end where a token ends; or for options that need others.

    Example:

    ```python
    >>> from ilrec_trl import ItemCatalog, PromptRenderer
    >>> catalog = ItemCatalog.from_titles({"g": "Guitar", "s": "Strings"})
    >>> renderer = PromptRenderer(catalog, template="Bought: {{ history | join(', ') }}\\n")
    >>> renderer.prompts([["g", "s"]])
    ['Bought: Guitar, Strings\\n']

    ```
    """

    catalog: ItemTexts
    targets: ItemTexts | None = None
    template: TemplateSource | None = None
    separator: str | None = None
    max_history: int = 20
    conversational: bool = False
    system_prompt: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    tokenizer: PreTrainedTokenizerBase | None = field(default=None, repr=False)
    max_length: int | None = None
    templates: list[PromptTemplate] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        semantic = _kind(self.catalog) == "semantic_ids"
        template = self.template if self.template is not None else "semantic_ids" if semantic else "titles"
        self.templates = load_templates(template)
        self._check_options()
        default = "" if semantic else "\n"
        self.after_item = default if self.separator is None else self.separator
        self.texts = ItemTextCache(self.catalog)
        self.target_texts = self.texts if self.targets is None else ItemTextCache(self.targets)
        self._check_ends()

    def render(self, history: Sequence[str], variant: int = 0) -> str:
        """Text of the prompt that shows the whole of `history` (item ids, oldest first)."""
        return self.templates[variant].render([self.texts[item] for item in history], self.after_item)

    def shown(self, histories: Sequence[Sequence[str]], variants: Sequence[int] | None = None) -> list[list[str]]:
        """The newest items of each history: as many as `max_history` and `max_length` allow, at least one."""
        newest = [list(history[-self.max_history :]) for history in histories]
        if self.max_length is None:
            return newest
        chosen = [0] * len(newest) if variants is None else variants
        for variant in set(chosen):
            rows = [row for row, each in enumerate(chosen) if each == variant]
            counts = self.lengths[variant].fitting([newest[row] for row in rows], self.max_length)
            for row, count in zip(rows, counts, strict=True):
                newest[row] = newest[row][len(newest[row]) - count :]
        return newest

    def prompts(self, histories: Sequence[Sequence[str]]) -> list[Prompt]:
        """
        Prompts to recommend for, as [`next_item_dataset`] makes them for the same histories.

        Raises:
            ValueError: For an empty history or an item that the catalogue does not know.
        """
        for row, history in enumerate(histories):
            check_history(f"History {row}", history[-self.max_history :], self.texts)
        return [self.as_prompt(self.render(shown)) for shown in self.shown(histories)]

    def as_prompt(self, text: str) -> Prompt:
        """A text, or the conversation of which it is the user's message."""
        if not self.conversational:
            return text
        system = [] if self.system_prompt is None else [{"role": "system", "content": self.system_prompt}]
        return [*system, {"role": "user", "content": text}]

    def as_completion(self, text: str) -> Prompt:
        """A text, or the assistant's message."""
        return [{"role": "assistant", "content": text}] if self.conversational else text

    @cached_property
    def lengths(self) -> list[PromptLengths]:
        """Lengths of the prompts of each template, in tokens."""
        return [PromptLengths(self, variant) for variant in range(len(self.templates))]

    def _check_ends(self) -> None:
        ends: dict[str, int] = {}
        for variant, each in enumerate(self.templates):
            ends.setdefault(each.render(["item"], self.after_item)[-40:], variant)
        if self.tokenizer is not None and self._lists_items():
            # In a conversation all prompts end as the chat template does
            for variant in [0] if self.conversational else ends.values():
                self.lengths[variant].check_end()
        elif not self.conversational and _kind(self.targets or self.catalog) == "titles":
            for end, variant in ends.items():
                _check_end(self.templates[variant].name, end, self.after_item)

    def _lists_items(self) -> bool:
        return all(hasattr(catalog, "item_ids") for catalog in (self.catalog, self.targets or self.catalog))

    def _check_options(self) -> None:
        if self.max_history < 1:
            raise ValueError(f"Got max_history={self.max_history}; a prompt must show at least 1 item.")
        if self.separator is not None and not any(each.uses_separator for each in self.templates):
            raise ValueError(f"Got separator={self.separator!r}, but no template writes {{{{ separator }}}}.")
        if self.max_history > 1 and (alone := [each.name for each in self.templates if each.shows_one]):
            raise ValueError(f"{alone[0]} shows one `item`, not the `history`; set max_history=1 if that is meant.")
        for name in ("system_prompt", "chat_template_kwargs"):
            if getattr(self, name) is not None and not self.conversational:
                raise ValueError(f"Got {name} for prompts that are plain text; set conversational=True.")
        if self.max_length is not None and self.tokenizer is None:
            raise ValueError(
                f"Got max_length={self.max_length} without a tokenizer to count tokens with; pass it too."
            )
        if self.max_length is not None and not self._lists_items():
            raise ValueError("With max_length the catalogue must list its items as `item_ids`; use `ItemCatalog`.")
        if self.conversational and self.tokenizer is not None and not self.tokenizer.chat_template:
            raise ValueError(
                "The tokenizer has no chat template, which conversations need. Set it, or use plain text."
            )


class ItemTextCache(dict[str, str]):
    """Texts of a catalogue's items, each looked up once."""

    def __init__(self, catalog: ItemTexts) -> None:
        super().__init__()
        self.catalog = catalog

    def __missing__(self, item: str) -> str:
        text = self[item] = self.catalog.text(item)
        return text


def check_history(row: str, items: Sequence[str], texts: ItemTextCache) -> None:
    """Refuse an empty history and unknown items; `row` says where they are."""
    if not items:
        raise ValueError(f"{row} has an empty history; leave such questions out.")
    for item in items:
        try:
            texts[item]
        except (KeyError, ValueError) as error:
            raise ValueError(
                f"{row}: item {item!r} is not in the catalogue; add it there or remove its interactions with "
                "`Interactions.filter(items=catalog.item_ids)`."
            ) from error


def _kind(catalog: ItemTexts) -> str:
    return getattr(catalog, "kind", "titles")


def _check_end(name: str, prompt: str, separator: str) -> None:
    """Without a tokenizer: a new line joins with no title, nor does an end token, known by its last character."""
    last = prompt[-1:]
    is_end_token = separator != "" and prompt.endswith(separator) and last in ">]"
    if last != "\n" and not is_end_token:
        raise ValueError(
            f"{name} ends a prompt with {prompt[-20:]!r}, where a tokenizer may join the last characters with the "
            "first of a title. End it with a new line; or use a separator that does, or that is the tokenizer's end "
            "token; or pass the `tokenizer`, and the end is tried with every title."
        )
