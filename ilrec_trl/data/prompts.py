"""Prompt-completion data sets: how a history becomes text, and which items become targets."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from .splits import NextItemExample, UserSequence


if TYPE_CHECKING:
    from datasets import Dataset

# Semantic-ID tokens say where an item ends, so that a history needs no words between them.
SEMANTIC_ID_TEMPLATE = "{% for item in history %}{{ item }}{{ separator }}{% endfor %}"

# Every item, the last one too, is followed by the separator: the prompt then ends with it and no token can merge
# across the border to the completion, and a longer history only ever appends, as `sequence_dataset` requires.
TITLE_TEMPLATE = "The user bought, in order:\n" + SEMANTIC_ID_TEMPLATE


class ItemTexts(Protocol):
    """What a catalogue must offer here; [`ItemCatalog`] does."""

    def text(self, item_id: str) -> str:
        """Text of an item, its title or its semantic-ID tokens in a row."""


def prompt_renderer(
    catalog: ItemTexts, template: str | None = None, separator: str | None = None
) -> Callable[[Sequence[str]], str]:
    """
    Compile a template into a function from a history to the prompt.

    Args:
        catalog ([`ItemCatalog`]): Gives the items' texts. Any object with `text(item_id)` will do.
        template (`str`, *optional*): Jinja template with the variables `history` (list of item texts, oldest first)
            and `separator`. Defaults to the bare items for semantic IDs and to one introducing line for titles.
        separator (`str`, *optional*): Text after every item. Defaults to nothing for semantic IDs and a new line
            otherwise.
    """
    from jinja2 import StrictUndefined
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    semantic = getattr(catalog, "kind", "titles") == "semantic_ids"
    if template is None:
        template = SEMANTIC_ID_TEMPLATE if semantic else TITLE_TEMPLATE
    if separator is None:
        separator = "" if semantic else "\n"
    environment = ImmutableSandboxedEnvironment(keep_trailing_newline=True, undefined=StrictUndefined)
    compiled = environment.from_string(template)

    def render(history: Sequence[str]) -> str:
        return compiled.render(history=[catalog.text(item) for item in history], separator=separator)

    return render


def next_item_dataset(
    examples: Iterable[NextItemExample],
    catalog: ItemTexts,
    *,
    template: str | None = None,
    separator: str | None = None,
    max_history: int = 20,
    conversational: bool = False,
) -> Dataset:
    """
    One row a target: the history is the prompt, the next item the completion.

    Args:
        examples (`Iterable` of [`NextItemExample`]): For example `splits.test` or `splits.train_examples()`.
        catalog ([`ItemCatalog`]): Gives the items' texts. Any object with `text(item_id)` will do.
        template (`str`, *optional*): Jinja template of the prompt, see [`prompt_renderer`].
        separator (`str`, *optional*): Text after every item of the history, see [`prompt_renderer`].
        max_history (`int`, *optional*, defaults to `20`): Number of items a prompt shows at most; the oldest are
            dropped.
        conversational (`bool`, *optional*, defaults to `False`): Give prompt and completion as lists of chat messages.

    Returns:
        `datasets.Dataset` with the columns `prompt`, `completion`, `history` (list of the item ids that the prompt
        shows), `item` (target id) and `user`.

    Raises:
        ValueError: For an item the catalogue does not know or an empty history, with row and user.

    Example:

    ```python
    >>> class Titles:
    ...     def text(self, item_id):
    ...         return {"g": "Guitar", "s": "Strings", "t": "Tuner"}[item_id]
    >>> row = next_item_dataset([NextItemExample("ann", ["g", "s"], "t")], Titles())[0]
    >>> row["prompt"], row["completion"], row["history"], row["item"]
    ('The user bought, in order:\\nGuitar\\nStrings\\n', 'Tuner', ['g', 's'], 't')

    ```
    """
    _check_max_history(max_history)
    render = prompt_renderer(catalog, template, separator)
    rows = []
    for number, (user, history, item) in enumerate(examples):
        shown = list(history[-max_history:])
        _check_row(number, user, [*shown, item], catalog)
        prompt, completion = render(shown), catalog.text(item)
        rows.append(_row(prompt, completion, shown, item, user, conversational))
    return _dataset(rows)


def sequence_dataset(
    sequences: Iterable[UserSequence],
    catalog: ItemTexts,
    *,
    template: str | None = None,
    separator: str | None = None,
    max_history: int = 20,
    conversational: bool = False,
) -> Dataset:
    """
    One row a user sequence, in which every item after the user's first is a target exactly once.

    The text of a row up to a target is the very text that [`next_item_dataset`] would give as prompt for the same
    history, so that training on whole sequences, many times cheaper, fits prompts of one question each.

    A sequence of more than `max_history + 1` items becomes several rows. The first shows the user's first item and
    asks the `max_history` items that follow. Every later row shows the `max_history // 2` items before its targets (at
    least one) as context and asks the next ones, so that no row holds more than `max_history + 1` items.

    Args:
        sequences (`Iterable` of [`UserSequence`]): For example `splits.train`.
        catalog ([`ItemCatalog`]): Gives the items' texts. Any object with `text(item_id)` will do.
        template (`str`, *optional*): Jinja template of the prompt, see [`prompt_renderer`]. A longer history may only
            append to the text of a shorter one.
        separator (`str`, *optional*): Text after every item but the last, see [`prompt_renderer`]. For titles pass
            `tokenizer.eos_token`, here and in `next_item_dataset`, so that every title in the row ends with that
            token.
        max_history (`int`, *optional*, defaults to `20`): Largest number of items before a target.
        conversational (`bool`, *optional*, defaults to `False`): Give prompt and completion as lists of chat messages.

    Returns:
        `datasets.Dataset` with the columns `prompt`, `completion`, `history` (list of the item ids in the prompt),
        `item` (list of target ids; the history of the j-th is `history + item[:j]`) and `user`. Users of a single item
        have no target and no row.

    Raises:
        ValueError: For an item the catalogue does not know, with row and user, or a template that does more than
            append.
    """
    _check_max_history(max_history)
    render = prompt_renderer(catalog, template, separator)
    rows: list[dict[str, Any]] = []
    for user, items in sequences:
        for history, targets in _windows(list(items), max_history):
            _check_row(len(rows), user, [*history, *targets], catalog)
            prompt, completion = _prompt_and_targets(render, history, targets, catalog)
            rows.append(_row(prompt, completion, history, targets, user, conversational))
    return _dataset(rows)


def _windows(items: list[str], max_history: int) -> Iterator[tuple[list[str], list[str]]]:
    """Context and targets of each row of one user."""
    context, start = 1, 1
    while start < len(items):
        end = start + max_history + 1 - context
        yield items[start - context : start], items[start:end]
        context, start = max(1, max_history // 2), end


def _prompt_and_targets(
    render: Callable[[Sequence[str]], str], history: list[str], targets: list[str], catalog: ItemTexts
) -> tuple[str, str]:
    """The prompt of `history` and the text that must follow so that each target sees its own prompt before it."""
    prompt = text = render(history)
    for position, target in enumerate(targets[:-1], start=1):
        longer = render(history + targets[:position])
        if not longer.startswith(text + catalog.text(target)):
            raise ValueError(
                f"The template turns a history of {len(history) + position} items into {longer!r}, which does not "
                f"start with the text of one item less, {text!r}, and the item {catalog.text(target)!r}. Rows of "
                "several targets need a template that only appends: put no text before an item or after the loop over "
                "`history`, or use `next_item_dataset`."
            )
        text = longer
    return prompt, (text + catalog.text(targets[-1]))[len(prompt) :]


def _row(
    prompt: str, completion: str, history: list[str], item: str | list[str], user: str, conversational: bool
) -> dict[str, Any]:
    return {
        "prompt": [{"role": "user", "content": prompt}] if conversational else prompt,
        "completion": [{"role": "assistant", "content": completion}] if conversational else completion,
        "history": history,
        "item": item,
        "user": user,
    }


def _check_max_history(max_history: int) -> None:
    if max_history < 1:
        raise ValueError(f"Got max_history={max_history}; a prompt must show at least 1 item.")


def _check_row(number: int, user: str, items: list[str], catalog: ItemTexts) -> None:
    if len(items) < 2:
        raise ValueError(f"Row {number} (user {user!r}) has an empty history; leave such questions out.")
    for item in items:
        try:
            catalog.text(item)
        except (KeyError, ValueError) as error:
            raise ValueError(
                f"Row {number} (user {user!r}): item {item!r} is not in the catalogue; add it there or remove its "
                "interactions with `Interactions.filter(items=catalog.item_ids)`."
            ) from error


def _dataset(rows: list[dict[str, Any]]) -> Dataset:
    from datasets import Dataset

    if not rows:
        raise ValueError("There is no row: no example or no sequence of at least 2 items was given.")
    return Dataset.from_list(rows)
