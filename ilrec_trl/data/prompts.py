"""Prompt-completion data sets: one row for each target, or one row for each user sequence."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .prompt_renderer import ItemTexts, PromptRenderer, check_history
from .splits import NextItemExample, UserSequence


if TYPE_CHECKING:
    from datasets import Dataset


def next_item_dataset(
    examples: Iterable[NextItemExample],
    catalog: ItemTexts | PromptRenderer,
    *,
    seed: int | None = None,
    **options: Any,
) -> Dataset:
    """
    A data set with one row for each target: the history is the prompt, the next item the completion.

    Args:
        examples (`Iterable` of [`NextItemExample`]): For example `splits.test` or `splits.train_examples()`.
        catalog ([`ItemCatalog`] or [`PromptRenderer`]): Texts of the items: any object with `text(item_id)`, or a
            renderer, which has its own options.
        seed (`int`, *optional*): Seed by which one of several templates is drawn for each row. By default, as in
            evaluation, all rows use the first template.
        **options: `template`, `separator`, `max_history`, `conversational`, `tokenizer`, `max_length` and the other
            arguments of [`PromptRenderer`].

    Returns:
        `datasets.Dataset` with the columns `prompt`, `completion`, `history` (list of the item ids that the prompt
        shows), `item` (target id) and `user`; and `chat_template_kwargs` if the renderer has some.

    Raises:
        ValueError: For an unknown item, an empty history, or a target that is too long for `max_length` even after one
            item of history; names row and user.

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
    return dataset_of(next_item_rows(examples, renderer_of(catalog, options), seed))


def sequence_dataset(
    sequences: Iterable[UserSequence], catalog: ItemTexts | PromptRenderer, *, seed: int | None = None, **options: Any
) -> Dataset:
    """
    A data set of whole user sequences, in which every item after the user's first is a target exactly once.

    The text of a row up to a target equals the prompt of [`next_item_dataset`] for the same history. A model that is
    trained on whole sequences, which is many times cheaper, is therefore asked by prompts that it knows. (In
    conversations this does not hold: items after the first target are in the assistant's message.)

    A sequence becomes several rows if `max_history` or `max_length` would hide the start of the row from its last
    target. The first row shows the user's first item, and its targets are all that can see this item. Each later row
    shows half of the items that its first target can see, at least one. No row has more than `max_history + 1` items.

    Args:
        sequences (`Iterable` of [`UserSequence`]): For example `splits.train`.
        catalog ([`ItemCatalog`] or [`PromptRenderer`]): As in [`next_item_dataset`].
        seed (`int`, *optional*): As in [`next_item_dataset`].
        **options: Arguments of [`PromptRenderer`]. The template must only append text as the history grows. For titles
            pass `separator=tokenizer.eos_token`, here and in [`next_item_dataset`], so that every title in the row
            ends with that token.

    Returns:
        `datasets.Dataset` with the columns of [`next_item_dataset`], where `history` lists the item ids in the prompt
        and `item` the target ids; the history of the j-th target is `history + item[:j]`. Users of a single item have
        no row.

    Raises:
        ValueError: As [`next_item_dataset`]; or for a template that does more than append.
    """
    return dataset_of(sequence_rows(sequences, renderer_of(catalog, options), seed))


def next_item_rows(
    examples: Iterable[NextItemExample], renderer: PromptRenderer, seed: int | None
) -> dict[str, list[Any]]:
    """Columns of [`next_item_dataset`]."""
    users, histories, items = [], [], []
    for number, (user, history, item) in enumerate(examples):
        newest = list(history[-renderer.max_history :])
        check_history(f"Row {number} (user {user!r})", newest, renderer.texts)
        check_history(f"Row {number} (user {user!r})", [item], renderer.target_texts)
        users.append(user)
        histories.append(newest)
        items.append(item)
    variants = draw(len(users), renderer, seed)
    shown = _shown(renderer, histories, items, [f"Row {n} (user {user!r})" for n, user in enumerate(users)], variants)
    prompts = [renderer.render(history, variant) for history, variant in zip(shown, variants, strict=True)]
    return columns_of(renderer, prompts, [renderer.target_texts[item] for item in items], shown, items, users)


def sequence_rows(
    sequences: Iterable[UserSequence], renderer: PromptRenderer, seed: int | None
) -> dict[str, list[Any]]:
    """Columns of [`sequence_dataset`]."""
    _refuse_for_sequences(renderer)
    asked = [(user, list(items)) for user, items in sequences if len(items) > 1]
    for user, items in asked:
        check_history(f"The sequence of user {user!r}", items, renderer.texts)
    columns: dict[str, list[Any]] = {name: [] for name in ("prompts", "completions", "histories", "targets", "users")}
    variants = draw(len(asked), renderer, seed)
    for (user, items), variant, visible in zip(asked, variants, _visible(asked, renderer, variants), strict=True):
        for start, first, end in _windows(visible):
            history, targets = items[start:first], items[first:end]
            prompt, completion = _prompt_and_targets(renderer, history, targets, variant)
            for column, value in zip(columns.values(), (prompt, completion, history, targets, user), strict=True):
                column.append(value)
    return columns_of(renderer, *columns.values())


def renderer_of(catalog: ItemTexts | PromptRenderer, options: dict[str, Any]) -> PromptRenderer:
    """The renderer that was given, or one of a catalogue with these options."""
    if not isinstance(catalog, PromptRenderer):
        return PromptRenderer(catalog, **options)
    if options:
        raise TypeError(f"Got a PromptRenderer and {sorted(options)}; give these to the renderer.")
    return catalog


def draw(number: int, renderer: PromptRenderer, seed: int | None) -> list[int]:
    """Draw a template for each row."""
    if seed is None or len(renderer.templates) == 1:
        return [0] * number
    return np.random.default_rng(seed).integers(len(renderer.templates), size=number).tolist()


def columns_of(
    renderer: PromptRenderer,
    prompts: Sequence[str],
    completions: Sequence[str],
    histories: Sequence[list[str] | None],
    items: Sequence[str | list[str] | None],
    users: Sequence[str | None],
) -> dict[str, list[Any]]:
    """Columns of a data set."""
    columns: dict[str, list[Any]] = {
        "prompt": [renderer.as_prompt(prompt) for prompt in prompts],
        "completion": [renderer.as_completion(completion) for completion in completions],
        "history": list(histories),
        "item": list(items),
        "user": list(users),
    }
    if renderer.chat_template_kwargs is not None:
        columns["chat_template_kwargs"] = [renderer.chat_template_kwargs] * len(prompts)
    return columns


def dataset_of(columns: dict[str, list[Any]]) -> Dataset:
    """The data set of these columns."""
    from datasets import Dataset

    if not columns["prompt"]:
        raise ValueError("There is no row: no example or no sequence of at least 2 items was given.")
    return Dataset.from_dict(columns)


def _shown(
    renderer: PromptRenderer, histories: list[list[str]], items: list[str], names: list[str], variants: list[int]
) -> list[list[str]]:
    """Items that each prompt shows. A target that is too long after a single item is refused by its row's name."""
    shown = renderer.shown(histories, variants)
    if renderer.max_length is not None:
        for variant in set(variants):
            chosen = [number for number, each in enumerate(variants) if each == variant]
            rows = [(names[number], shown[number], items[number]) for number in chosen]
            renderer.lengths[variant].refuse_longer(rows, renderer.max_length)
    return shown


def _visible(asked: list[tuple[str, list[str]]], renderer: PromptRenderer, variants: list[int]) -> list[list[int]]:
    """For each position of each sequence, how many of the items before it the prompt for its item shows."""
    longest = renderer.max_history
    if renderer.max_length is None:
        return [[min(place, longest) for place in range(len(items))] for _, items in asked]
    places = [(row, place) for row, (_, items) in enumerate(asked) for place in range(1, len(items))]
    shown = _shown(
        renderer,
        [asked[row][1][max(0, place - longest) : place] for row, place in places],
        [asked[row][1][place] for row, place in places],
        [f"The sequence of user {asked[row][0]!r}, place {place}" for row, place in places],
        [variants[row] for row, _ in places],
    )
    counts: list[list[int]] = [[0] for _ in asked]
    for (row, _), history in zip(places, shown, strict=True):
        counts[row].append(len(history))
    return counts


def _windows(visible: list[int]) -> Iterable[tuple[int, int, int]]:
    """Start of the context, start and end of the targets, for each row of one sequence."""
    first = 1
    while first < len(visible):
        start = first - max(1, visible[first] // 2)
        end = first + 1
        while end < len(visible) and end - visible[end] <= start:
            end += 1
        yield start, first, end
        first = end


def _prompt_and_targets(
    renderer: PromptRenderer, history: list[str], targets: list[str], variant: int
) -> tuple[str, str]:
    """Prompt of `history`, and the completion in which each target follows its own prompt."""
    prompt = renderer.render(history, variant)
    whole = renderer.render(history + targets[:-1], variant)
    if not whole.startswith(prompt):
        _refuse_template(renderer, variant)
    return prompt, whole[len(prompt) :] + renderer.texts[targets[-1]]


def _refuse_for_sequences(renderer: PromptRenderer) -> None:
    if renderer.targets is not None:
        raise ValueError("In a row of several targets they are history too. Use `next_item_dataset` with `targets`.")
    if renderer.conversational and renderer.max_length is not None:
        raise ValueError(
            "Rows of several targets in a conversation put items into the assistant's message, which `max_length` "
            "does not count. Use `next_item_dataset`, or plain text."
        )
    for variant, template in enumerate(renderer.templates):
        if not template.appends:
            _refuse_template(renderer, variant)


def _refuse_template(renderer: PromptRenderer, variant: int) -> None:
    raise ValueError(
        f"{renderer.templates[variant].name} does more than append as the history grows. Rows of several targets need "
        "a template that only appends: put no text before an item or after the loop over `history`, or use "
        "`next_item_dataset`."
    )
