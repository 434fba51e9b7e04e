"""Rows of several tasks in one data set: the next item, and what an item's title and semantic ID have to do."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .prompt_renderer import ItemTexts, PromptRenderer
from .prompt_templates import TemplateSource
from .prompts import dataset_of, next_item_rows, renderer_of, sequence_rows
from .splits import NextItemExample, UserSequence


if TYPE_CHECKING:
    from datasets import Dataset


@dataclasses.dataclass(frozen=True)
class _Task:
    """What the prompt shows, a history or one item, in which words; and in which words it asks."""

    shows: str
    asks: str
    one_item: bool = False


TASKS = {
    "next_item": _Task("semantic_ids", "semantic_ids"),
    "next_title": _Task("semantic_ids", "titles"),
    "next_item_from_titles": _Task("titles", "semantic_ids"),
    "item_to_title": _Task("semantic_ids", "titles", one_item=True),
    "title_to_item": _Task("titles", "semantic_ids", one_item=True),
}


def task_dataset(
    sequences: Iterable[UserSequence],
    catalog: ItemTexts | PromptRenderer,
    tasks: Sequence[str] | Mapping[str, float] = ("next_item", "item_to_title", "title_to_item"),
    *,
    counts: bool = False,
    templates: Mapping[str, TemplateSource] | None = None,
    whole_sequences: bool = False,
    seed: int = 0,
    **options: Any,
) -> Dataset:
    """
    Rows of several tasks, shuffled together, that tie semantic IDs to what the items are, as LC-Rec does.

    | task | prompt shows | completion | `item` | `history` |
    | --- | --- | --- | --- | --- |
    | `next_item` | history of semantic IDs | the next item's semantic ID | its id | ids shown |
    | `next_item_from_titles` | history of titles | the next item's semantic ID | its id | ids shown |
    | `title_to_item` | a title | its semantic ID | its id | `None` |
    | `next_title` | history of semantic IDs | the next item's title | `None` | ids shown |
    | `item_to_title` | a semantic ID | its title | `None` | `None` |

    Where `item` is `None` the completion is plain text to [`ILRecTrainer`]: cross-entropy, no negatives. Where
    `history` is `None` there are no rewards. Tasks about one item have a row for each item of the catalogue, which
    tells a model nothing about who bought it.

    Args:
        sequences (`Iterable` of [`UserSequence`]): For example `splits.train`.
        catalog ([`ItemCatalog`] or [`PromptRenderer`]): Of kind `"semantic_ids"`, with titles. A renderer, or the
            options, are those of `next_item`; the other tasks share all but template, separator and number of items.
        tasks (`list[str]` or `dict[str, float]`, *optional*): Tasks; and how many times each takes its own rows: 1 all
            of them, 0.5 a half drawn by chance, 2 all of them twice.
        counts (`bool`, *optional*, defaults to `False`): Read the numbers of `tasks` as numbers of rows.
        templates (`dict`, *optional*): Templates of tasks other than `next_item`, instead of the shipped ones.
        whole_sequences (`bool`, *optional*, defaults to `False`): Make the rows of `next_item` as [`sequence_dataset`]
            does; its number then counts users. `item` is a list in all rows that have one.
        seed (`int`, *optional*, defaults to `0`): Draws rows, templates and order.
        **options: Arguments of [`PromptRenderer`].

    Returns:
        `datasets.Dataset` with the columns of [`next_item_dataset`] and `task`. `user` is `None` for tasks about one
        item.

    Raises:
        ValueError: For an unknown task or number, a catalogue without titles or semantic IDs, or what
            [`next_item_dataset`] refuses.
    """
    renderer = renderer_of(catalog, options)
    amounts = _amounts(tasks, counts)
    if unknown := set(templates or {}) - (amounts.keys() - {"next_item"}):
        raise ValueError(f"Got templates for {sorted(unknown)}; expected tasks among {sorted(amounts)} but next_item.")
    sequences = list(sequences)
    parts = []
    for name, amount in amounts.items():
        seeds = np.random.SeedSequence([seed, list(TASKS).index(name)]).generate_state(2).tolist()
        asks = _renderer_for(name, renderer, (templates or {}).get(name))
        whole = whole_sequences and name == "next_item"
        source: Sequence[Any] = sequences if whole else _examples(name, sequences, asks)
        chosen = _draw(source, amount, counts, seeds[0], name)
        try:
            columns = (sequence_rows if whole else next_item_rows)(chosen, asks, seeds[1])
        except ValueError as error:
            raise ValueError(f"Task {name}: {error}") from error
        parts.append(_finish(columns, name, whole_sequences))
    order = np.random.default_rng(seed).permutation(sum(len(part["prompt"]) for part in parts)).tolist()
    joined = {name: [value for part in parts for value in part[name]] for name in parts[0]}
    return dataset_of({name: [values[row] for row in order] for name, values in joined.items()})


def _amounts(tasks: Sequence[str] | Mapping[str, float], counts: bool) -> dict[str, float]:
    amounts = {name: tasks[name] if isinstance(tasks, Mapping) else 1.0 for name in tasks}
    if unknown := [name for name in amounts if name not in TASKS]:
        raise ValueError(f"Got the task {unknown[0]!r}; expected some of {', '.join(TASKS)}.")
    if counts and not isinstance(tasks, Mapping):
        raise ValueError("With counts=True `tasks` must say how many rows each has: {'next_item': 1000, ...}.")
    for name, amount in amounts.items():
        if not math.isfinite(amount) or amount <= 0 or (counts and not float(amount).is_integer()):
            expected = "a positive whole number of rows" if counts else "how many times its rows are taken, above 0"
            raise ValueError(f"Got {amount!r} for the task {name}; expected {expected}.")
    if not amounts:
        raise ValueError(f"Got no task; expected some of {', '.join(TASKS)}.")
    return amounts


def _renderer_for(name: str, renderer: PromptRenderer, template: TemplateSource | None) -> PromptRenderer:
    """The renderer of one task, with what it shares with the one for the next item."""
    if name == "next_item":
        return renderer
    catalog: Any = renderer.catalog
    if getattr(catalog, "kind", None) != "semantic_ids" or catalog.titles is None:
        raise ValueError(
            f"The task {name} needs a catalogue of kind 'semantic_ids' that knows titles too; give `ItemCatalog` "
            "both, or train on next_item alone."
        )
    task = TASKS[name]
    return dataclasses.replace(
        renderer,
        catalog=catalog.as_kind(task.shows),
        targets=catalog.as_kind(task.asks),
        template=template if template is not None else name,
        separator=None,
        max_history=1 if task.one_item else renderer.max_history,
    )


def _examples(name: str, sequences: Sequence[UserSequence], renderer: PromptRenderer) -> list[NextItemExample]:
    if TASKS[name].one_item:
        # One item as a history of itself
        return [NextItemExample("-", [item], item) for item in renderer.catalog.item_ids]  # type: ignore[attr-defined]
    return [
        NextItemExample(user, list(items[:place]), items[place])
        for user, items in sequences
        for place in range(1, len(items))
    ]


def _draw(source: Sequence[Any], amount: float, counts: bool, seed: int, name: str) -> list[Any]:
    """So many of the source: all of it as often as it goes in, then some drawn by chance; in the source's order."""
    if not source:
        raise ValueError(f"There is no row for the task {name}: no sequence of at least 2 items was given.")
    number = int(amount) if counts else max(1, round(amount * len(source)))
    times, rest = divmod(number, len(source))
    drawn = np.sort(np.random.default_rng(seed).permutation(len(source))[:rest]).tolist()
    return [*source] * times + [source[row] for row in drawn]


def _finish(columns: dict[str, list[Any]], name: str, as_lists: bool) -> dict[str, list[Any]]:
    """Mark what is no item, has no history or no user."""
    number = len(columns["prompt"])
    if TASKS[name].asks == "titles":
        columns["item"] = [None] * number
    elif as_lists:
        columns["item"] = [item if isinstance(item, list) else [item] for item in columns["item"]]
    if TASKS[name].one_item:
        columns["history"] = columns["user"] = [None] * number
    return columns | {"task": [name] * number}
