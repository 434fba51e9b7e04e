"""From a history to a prompt, and how many items of it fit. Training, evaluation and serving all use this module."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from os.path import commonprefix
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from .prompt_templates import PromptTemplate, TemplateSource, load_templates
from .prompt_tokens import Prompt, tokenize_prompts, tokenize_rows


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TRIED_ROWS = 256  # rows that are tokenized whole to check that sums of item lengths are right


class ItemTexts(Protocol):
    """What the renderer needs of a catalogue, such as [`ItemCatalog`]. With `max_length` it needs `item_ids` too."""

    def text(self, item_id: str) -> str:
        """Text of an item, its title or its semantic-ID tokens in a row."""


@dataclass
class PromptRenderer:
    """
    Turns histories into prompts.

    A prompt depends on the history alone, never on the target, so that a model is asked the same in training and
    afterwards. Pass one renderer to [`next_item_dataset`] and [`sequence_dataset`], and its `prompts(histories)` to
    [`recommend`].

    Args:
        catalog ([`ItemCatalog`]): Gives the texts of the items in the history. Any object with `text(item_id)` does.
        targets ([`ItemCatalog`], *optional*): Gives the texts of the completions; `catalog` by default.
        template (`str`, `Path` or a list of these, *optional*): Jinja text, shipped name, file or folder, see
            [`load_templates`]. Where there are several, prompts to recommend for use the first. Defaults to the bare
            items for semantic IDs and to one introducing line for titles.
        separator (`str`, *optional*): Text after every item. Defaults to nothing for semantic IDs and a new line
            otherwise.
        max_history (`int`, *optional*, defaults to `20`): Maximum number of items in a prompt; the oldest are dropped.
        conversational (`bool`, *optional*, defaults to `False`): Give prompts as lists of chat messages.
        system_prompt (`str`, *optional*): First message of every conversation.
        chat_template_kwargs (`dict`, *optional*): For the chat template, for instance `{"enable_thinking": False}`.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`], *optional*): The language model's. With it, every item is
            tokenized after a prompt to check that no token crosses the end of the prompt. Without it, only the text of
            the template is checked.
        max_length (`int`, *optional*): Maximum number of tokens of a prompt with the longest item of the catalogue,
            chat template and end token included; the oldest items are dropped. Needs `tokenizer`.

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
        """Lengths in tokens of the rows of each template."""
        short_target = min(self._target_ids, key=lambda item: len(self.target_texts[item]))
        return [
            PromptLengths(partial(self._tokenize, variant), self._short_item, short_target, self._longest_target)
            for variant in range(len(self.templates))
        ]

    @cached_property
    def _short_item(self) -> str:
        return min(self.catalog.item_ids, key=lambda item: len(self.texts[item]))  # type: ignore[attr-defined]

    @property
    def _target_ids(self) -> list[str]:
        return (self.targets or self.catalog).item_ids  # type: ignore[attr-defined]

    def _tokenize(self, variant: int, histories: Sequence[Sequence[str]], targets: Sequence[str]) -> list[list[int]]:
        """Token ids of whole rows: each history as a prompt, and the item after it."""
        assert self.tokenizer is not None
        prompts = [self.as_prompt(self.render(history, variant)) for history in histories]
        completions = [self.as_completion(self.target_texts[target]) for target in targets]
        return tokenize_rows(self.tokenizer, prompts, completions, self.chat_template_kwargs)

    def _check_ends(self) -> None:
        """Refuse templates after which an item would have other tokens in training than when it is asked for."""
        ends: dict[str, int] = {}
        for variant, each in enumerate(self.templates):
            ends.setdefault(each.render(["item"], self.after_item)[-40:], variant)
        if self.tokenizer is not None and self._lists_items():
            # In a conversation all prompts end as the chat template does
            for variant in [0] if self.conversational else ends.values():
                self._check_end_with_every_target(variant)
        elif not self.conversational and _kind(self.targets or self.catalog) == "titles":
            for end, variant in ends.items():
                _check_end(self.templates[variant].name, end, self.after_item)

    def _check_end_with_every_target(self, variant: int) -> None:
        assert self.tokenizer is not None
        prompt: Any = self.as_prompt(self.render([self._short_item], variant))
        targets = self._target_ids
        if self.conversational:
            completion = self.as_completion(self.target_texts[targets[0]])
            _check_chat_template(self.tokenizer, prompt, completion, self.chat_template_kwargs or {})
        [before] = tokenize_prompts(self.tokenizer, [prompt], self.chat_template_kwargs)
        rows = self._tokenize(variant, [[self._short_item]] * len(targets), targets)
        for target, row in zip(targets, rows, strict=True):
            if row[: len(before)] != before:
                joined = len(commonprefix([before, row]))
                raise ValueError(
                    f"{self.templates[variant].name} ends a prompt with {str(prompt)[-20:]!r}, which the tokenizer "
                    f"joins with the start of {self.target_texts[target][:40]!r} (item {target!r}) as "
                    f"{self.tokenizer.decode(row[joined : joined + 1])!r}: the model would be asked after other "
                    "tokens than it was trained on. End the template with a new line."
                )
        if not variant:
            self._longest_target = targets[max(range(len(targets)), key=lambda place: len(rows[place]))]

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


class PromptLengths:
    """
    Lengths in tokens of the rows of one template, and how many items of a history fit.

    A row is taken to be as long as its parts together, where an item counts as many tokens as it adds between two
    others. Whether that is right depends on template and tokenizer, so it is checked on rows that are tokenized whole,
    the longest among them. If a single one differs, every row is tokenized whole instead, which is slower and always
    right.

    Args:
        tokenize (`Callable`): Gives the token ids of whole rows, from histories and the target after each.
        short_item (`str`): An item of few tokens; other items are measured between two of it.
        short_target (`str`): A target of few tokens; items are measured before it.
        longest_target (`str`): The target of most tokens, which every prompt leaves room for.
    """

    def __init__(
        self,
        tokenize: Callable[[Sequence[Sequence[str]], Sequence[str]], list[list[int]]],
        short_item: str,
        short_target: str,
        longest_target: str,
    ) -> None:
        self._tokenize = tokenize
        self._short_item, self._short_target, self._longest_target = short_item, short_target, longest_target
        self.is_sum = True
        # Tokens that each item adds, and tokens of a row with the longest target beside its items
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
        """
        Refuse rows that are too long with their own target although they show a single item.

        Args:
            rows (`list[tuple[str, list[str], str]]`): Name of each row for the message, history and target.
            max_length (`int`): Maximum number of tokens.
        """
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

    def _measure(self, histories: Sequence[Sequence[str]], targets: Sequence[str]) -> list[int]:
        return list(map(len, self._tokenize(histories, targets)))

    def _measure_items(self, items: set[str]) -> None:
        short = self._short_item
        new = sorted((items | {short}) - self._added.keys())
        between = [[short, short], *([short, item, short] for item in new)]
        pair, *lengths = self._measure(between, [self._short_target] * len(between))
        self._added |= {item: length - pair for item, length in zip(new, lengths, strict=True)}
        self._around = self._measure([[short, short]], [self._longest_target])[0] - 2 * self._added[short]

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

    def _is_right(self, histories: Sequence[Sequence[str]], counts: list[int]) -> bool:
        """Whether sums are right for the longest rows and others at even distances, also if one item longer."""
        longer = [list(h[max(0, len(h) - count - 1) :]) for h, count in zip(histories, counts, strict=True)]
        sums = np.array([sum(self._added[item] for item in history) for history in longer], dtype=np.int64)
        even = range(0, len(sums), max(1, len(sums) // TRIED_ROWS))
        rows = sorted({*np.argsort(-sums)[:TRIED_ROWS].tolist(), *even})
        tried = [history for row in rows for history in (longer[row], longer[row][-counts[row] :])]
        expected = [self._around + sum(self._added[item] for item in history) for history in tried]
        return self._measure(tried, [self._longest_target] * len(tried)) == expected

    def _fitting_by_measure(self, histories: Sequence[Sequence[str]], max_length: int) -> list[int]:
        counts = [len(history) for history in histories]
        unsettled = list(range(len(counts)))
        while unsettled:
            shown = [histories[row][len(histories[row]) - counts[row] :] for row in unsettled]
            lengths = self._measure(shown, [self._longest_target] * len(unsettled))
            too_long = [row for row, length in zip(unsettled, lengths, strict=True) if length > max_length]
            unsettled = [row for row in too_long if counts[row] > 1]
            for row in unsettled:
                counts[row] -= 1
        return counts


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
