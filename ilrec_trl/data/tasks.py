"""Data sets of several tasks: the next item, and the relation between titles and semantic IDs."""

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
    """In which words the prompt shows a history (or one item), and in which words the completion is."""

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
    A data set of several tasks, shuffled together, by which a model learns what semantic IDs stand for, as in LC-Rec.

    | task | prompt shows | completion | `item` | `history` |
    | --- | --- | --- | --- | --- |
    | `next_item` | history of semantic IDs | the next item's semantic ID | its id | ids shown |
    | `next_item_from_titles` | history of titles | the next item's semantic ID | its id | ids shown |
    | `title_to_item` | a title | its semantic ID | its id | `None` |
    | `next_title` | history of semantic IDs | the next item's title | `None` | ids shown |
    | `item_to_title` | a semantic ID | its title | `None` | `None` |

    If `item` is `None`, [`ILRecTrainer`] takes the completion for plain text: cross-entropy and no negatives. If
    `history` is `None`, there are no rewards. Tasks about one item have one row for each item of the catalogue, and
    no user.

    Args:
        sequences (`Iterable` of [`UserSequence`]): For example `splits.train`.
        catalog ([`ItemCatalog`] or [`PromptRenderer`]): A catalogue of kind `"semantic_ids"` with titles, or the
            renderer of `next_item`. Other tasks have the same options but for template, separator and `max_history`.
        tasks (`list[str]` or `dict[str, float]`, *optional*): Tasks, or how often the rows of each task are taken: 1
            is once, 0.5 a random half, 2 twice.
        counts (`bool`, *optional*, defaults to `False`): Whether the numbers of `tasks` are numbers of rows.
        templates (`dict`, *optional*): Templates of tasks other than `next_item`. Defaults to the shipped ones.
        whole_sequences (`bool`, *optional*, defaults to `False`): Make the rows of `next_item` with
            [`sequence_dataset`]; its number then counts users. `item` is a list in all rows that have one.
        seed (`int`, *optional*, defaults to `0`): Seed for rows, templates and order.
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
        # The item is the history and the target
        return [NextItemExample("-", [item], item) for item in renderer.catalog.item_ids]  # type: ignore[attr-defined]
    return [
        NextItemExample(user, list(items[:place]), items[place])
        for user, items in sequences
        for place in range(1, len(items))
    ]


def _draw(source: Sequence[Any], amount: float, counts: bool, seed: int, name: str) -> list[Any]:
    """Take the source as often as the number allows, then draw the remainder at random, in the source's order."""
    if not source:
        raise ValueError(f"There is no row for the task {name}: no sequence of at least 2 items was given.")
    number = int(amount) if counts else max(1, round(amount * len(source)))
    times, rest = divmod(number, len(source))
    drawn = np.sort(np.random.default_rng(seed).permutation(len(source))[:rest]).tolist()
    return [*source] * times + [source[row] for row in drawn]


def _finish(columns: dict[str, list[Any]], name: str, as_lists: bool) -> dict[str, list[Any]]:
    """Set `item`, `history` and `user` to `None` where the task has none, and add the column `task`."""
    number = len(columns["prompt"])
    if TASKS[name].asks == "titles":
        columns["item"] = [None] * number
    elif as_lists:
        columns["item"] = [item if isinstance(item, list) else [item] for item in columns["item"]]
    if TASKS[name].one_item:
        columns["history"] = columns["user"] = [None] * number
    return columns | {"task": [name] * number}
