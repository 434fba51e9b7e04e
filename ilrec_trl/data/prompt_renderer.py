"""From a history to a prompt: the one place where training, evaluation and recommending agree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from .prompt_lengths import PromptLengths
from .prompt_templates import PromptTemplate, TemplateSource, load_templates


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

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
