"""First stage: read interactions and catalogue, split, and build tokenizer, trie, prompts and training rows."""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..data.interactions import Interactions
from ..data.prompt_renderer import PromptRenderer
from ..data.prompt_tokens import Prompt, tokenize_prompts, tokenize_rows
from ..data.prompts import next_item_dataset, sequence_dataset
from ..data.splits import NextItemExample, Splits
from ..data.synthetic import generate_store
from ..data.tasks import task_dataset
from ..items.item_catalog import ItemCatalog
from ..items.item_trie import ItemTrie
from ..items.title_files import find_title_file, read_titles
from .options import DataOptions, InputError, mapping


if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

    from ..data.splits import Splits
    from ..items.item_catalog import ItemCatalog
    from ..items.item_trie import ItemTrie

# Options that say nothing about a generated store.
_OF_A_SOURCE = (
    "data_format", "items", "items_columns", "user_column", "item_column", "time_column", "rating_column", "time_unit",
    "in_order", "min_rating",
)  # fmt: skip


def read_source(options: DataOptions) -> tuple[str, Interactions, ItemCatalog]:
    """
    Read or generate the interactions and the items.

    Returns:
        `tuple`: Name of the data, `Interactions` before any cleaning but that by rating, and `ItemCatalog`.

    Raises:
        ValueError: For options that contradict each other, and what [`Interactions.load`] and [`read_titles`] refuse.
    """
    if options.data is None:
        if given := [name for name in _OF_A_SOURCE if getattr(options, name) not in (None, False)]:
            raise ValueError(f"--{given[0]} is about data of your own; give --data too")
        store = generate_store(options.store_seed, num_users=options.store_users, num_items=options.store_items)
        names = list(store.titles.values()), list(store.semantic_ids.values())
        catalog = ItemCatalog(list(store.titles), *names, kind=options.item_format)
        return "generated store", store.interactions, catalog
    catalog = _catalog(options)
    columns = {name: getattr(options, f"{name}_column") for name in ("user", "item", "time", "rating")}
    interactions = Interactions.load(
        options.data,
        format=options.data_format,
        columns={role: name for role, name in columns.items() if name is not None},
        time_unit=options.time_unit,
        in_order=options.in_order,
        min_rating=options.min_rating,
        items=catalog.item_ids,
        bad_rows=options.bad_rows,
    )
    return Path(options.data).resolve().name, interactions, catalog


def _catalog(options: DataOptions) -> ItemCatalog:
    """The items, from `--items` or from beside the interactions."""
    data = Path(options.data or "")
    if options.data_format != "hub" and not data.exists():
        raise FileNotFoundError(f"there is no file or folder {data}; give --data one, or --data_format hub too")
    source = Path(options.items) if options.items else data if data.is_dir() else data.parent
    columns = items_columns(options.items_columns)
    if options.item_format == "titles" and source.is_dir():
        source = find_title_file(source) or source
    if not source.exists() and options.items:
        raise FileNotFoundError(f"there is no file or folder {source}; give --items one")
    if not source.is_file():
        if columns:
            raise ValueError(f"--items_columns names columns of a table, and {source} is a folder of LC-Rec's files")
        return ItemCatalog.from_lc_rec(source, kind=options.item_format)
    if options.item_format != "titles":
        raise ValueError(f"{source} is one file, so it holds titles alone; add --item_format titles or give a folder")
    return ItemCatalog.from_titles(read_titles(source, columns=columns, bad_rows=options.bad_rows).titles)


def items_columns(given: str | None) -> dict[str, str]:
    """The option of that name: `{"item": ..., "title": ..., "brand": ...}` or some of them."""
    example = '{"item": "sku", "title": "product"}'
    columns = mapping("items_columns", given, example)
    if not all(isinstance(name, str) for name in columns.values()):
        raise ValueError(f"--items_columns is {columns}, expected names of columns, such as {example}")
    return columns


TASKS_EXAMPLE = '{"next_item": 1, "item_to_title": 0.5}'


def prompt_renderer(
    options: DataOptions, catalog: ItemCatalog, tokenizer: PreTrainedTokenizerBase, item_trie: ItemTrie
) -> PromptRenderer:
    """The prompts of training rows and of questions."""
    whole = options.rows == "sequences"
    if whole and options.conversational:
        raise ValueError(
            "a conversation asks one item, a row of --rows sequences many; give --rows targets with --conversational"
        )
    kwargs = mapping("chat_template_kwargs", options.chat_template_kwargs, '{"enable_thinking": false}')
    return PromptRenderer(
        catalog,
        template=options.template,
        # In a row of several titles each must end as the trie's items do.
        separator=tokenizer.eos_token if whole and item_trie.end_token_id is not None else None,
        max_history=options.max_history,
        conversational=options.conversational,
        system_prompt=options.system_prompt,
        chat_template_kwargs=kwargs or None,
        tokenizer=tokenizer,
        max_length=options.max_length,
    )


def training_rows(options: DataOptions, renderer: PromptRenderer, splits: Splits) -> Dataset:
    """Rows to train on."""
    whole, seed = options.rows == "sequences", options.prompt_seed
    if options.tasks:
        tasks = mapping("tasks", options.tasks, TASKS_EXAMPLE)
        return task_dataset(splits.train, renderer, tasks, whole_sequences=whole, seed=seed)
    if whole:
        return sequence_dataset(splits.train, renderer, seed=seed)
    return next_item_dataset(splits.train_examples(), renderer, seed=seed)


def longest_row(options: DataOptions, renderer: PromptRenderer, item_trie: ItemTrie, splits: Splits) -> int:
    """A length in tokens that no row and no prompt with its target exceeds."""
    if options.max_length is not None:
        return options.max_length
    catalog, tokenizer, kwargs = renderer.catalog, renderer.tokenizer, renderer.chat_template_kwargs
    assert tokenizer is not None
    # Candidates for the item of most tokens as it stands in a prompt
    items = [str(item) for item in item_trie.item_ids]
    by_text = max(items, key=lambda item: len(catalog.text(item)))
    by_tokens = max(items, key=lambda item: len(item_trie.sequence(item)))
    prompts = [
        renderer.as_prompt(renderer.render([item] * options.max_history, variant))
        for variant in range(len(renderer.templates))
        for item in (by_text, by_tokens)
    ]
    longest = max(map(len, tokenize_prompts(tokenizer, prompts, kwargs))) + item_trie.depth
    if options.conversational:
        completions = [renderer.as_completion(catalog.text(by_tokens))] * len(prompts)
        longest = max(map(len, tokenize_rows(tokenizer, prompts, completions, kwargs)))
    if options.tasks:
        rows = training_rows(options, renderer, splits)
        longest = max(longest, *map(len, tokenize_rows(tokenizer, rows["prompt"][:], rows["completion"][:], kwargs)))
    return longest + 2


FORMAT = 2  # of prepared folders


@dataclass
class PreparedData:
    """
    Everything later stages need.

    Args:
        name (`str`): Name of the data.
        options (`DataOptions`): How it was prepared.
        interactions (`Interactions`): Sequences of the users.
        splits (`Splits`): Their splits.
        catalog (`ItemCatalog`): The items.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): The language model's tokenizer, item tokens included.
        item_trie (`ItemTrie`): The items as token sequences.
        notes (`list[str]`): What a reader of the report has to know about the data.
        model (`str`, *optional*): The pretrained model whose tokenizer this is.
    """

    name: str
    options: DataOptions
    interactions: Interactions
    splits: Splits
    catalog: ItemCatalog
    tokenizer: PreTrainedTokenizerBase
    item_trie: ItemTrie
    notes: list[str] = field(default_factory=list)
    model: str | None = None

    @cached_property
    def renderer(self) -> PromptRenderer:
        """Turns histories into prompts, the same in training and afterwards."""
        return prompt_renderer(self.options, self.catalog, self.tokenizer, self.item_trie)

    def training_rows(self) -> Dataset:
        """Rows to train on."""
        return training_rows(self.options, self.renderer, self.splits)

    def questions(self, examples: Sequence[NextItemExample]) -> Dataset:
        """Prompts and targets of questions, such as `splits.test`."""
        return next_item_dataset(examples, self.renderer)

    def prompts(self, histories: Sequence[list[str]]) -> list[Prompt]:
        """Prompts after histories of item ids."""
        return self.renderer.prompts(histories)

    def max_length(self) -> int:
        """A length in tokens that no row and no prompt with its target exceeds."""
        return longest_row(self.options, self.renderer, self.item_trie, self.splits)

    def summary(self) -> dict[str, Any]:
        """The `data` entry of `results.json`."""
        return {
            "name": self.name,
            "users": len(self.interactions),
            "items": len(self.catalog),
            "interactions": self.interactions.num_interactions,
            "test_users": len({example.user for example in self.splits.test}),
            "notes": self.notes,
        }

    def save(self, directory: str | Path) -> None:
        """Write everything to `directory`."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        self.interactions.save(directory / "interactions")
        about = {"format": FORMAT, "name": self.name, "notes": self.notes, "model": self.model}
        about["options"] = dataclasses.asdict(self.options)
        (directory / "prepare.json").write_text(json.dumps(about, indent=2) + "\n")
        self.catalog.save(directory)
        self.item_trie.save(directory)
        self.tokenizer.save_pretrained(directory / "tokenizer")

    @classmethod
    def load(cls, directory: str | Path) -> PreparedData:
        """Read what [`PreparedData.save`] wrote."""
        from transformers import AutoTokenizer

        directory = Path(directory)
        with input_errors():
            if not (directory / "prepare.json").is_file():
                raise FileNotFoundError(f"{directory} holds no prepare.json; write it with `ilrec prepare` first")
            about = json.loads((directory / "prepare.json").read_text())
            if about["format"] != FORMAT:
                raise ValueError(f"{directory} was written by another version; run `ilrec prepare` again")
            options = DataOptions(**about["options"])
            interactions = Interactions.load(directory / "interactions")
            return cls(
                about["name"],
                options,
                interactions,
                split(interactions, options),
                ItemCatalog.load(directory),
                AutoTokenizer.from_pretrained(directory / "tokenizer"),
                ItemTrie.load(directory),
                about["notes"],
                about["model"],
            )


@contextmanager
def input_errors() -> Iterator[None]:
    """Show what is wrong with the user's files as one line instead of a traceback."""
    try:
        yield
    except (ValueError, OSError, KeyError, AttributeError, TypeError) as error:
        message = " ".join(str(error).split()) or type(error).__name__
        if not isinstance(error, ValueError | OSError):
            message = f"the data has not the expected form ({type(error).__name__}: {message})"
        raise InputError(message) from error


def prepare(options: DataOptions, model: str | None = None) -> PreparedData:
    """
    Read or generate the data and name the items for a language model.

    Args:
        options (`DataOptions`): Where the data is and how to use it.
        model (`str`, *optional*): Pretrained model whose tokenizer names the items; without it one is made from the
            catalogue.

    Raises:
        `InputError`: with one line on what is wrong with the data.
    """
    with input_errors():
        name, interactions, catalog = read_source(options)
        notes = [f"Left out {interactions.bad_rows}."] if len(interactions.bad_rows) else []
        interactions = clean(interactions, options)
        catalog, unused = _of_interactions(catalog, interactions, options.unused_items)
        if options.max_users is not None and options.max_users < len(interactions):
            notes.append(f"Smoke run: {options.max_users} of {len(interactions)} users, drawn by chance.")
            users = random.Random(0).sample(interactions.users, options.max_users)
            interactions = interactions.filter(users=set(users))
        splits = split(interactions, options)
        notes += _about(splits, options) + unused
        if options.train_users_share != 1:
            share = f"{len(splits.train):,} users ({options.train_users_share:.0%})"
            notes.append(f"Trained on {share}, drawn by chance; all users are asked.")
        if options.train_on_validation:
            notes.append("Validation items were trained on, for a fixed number of epochs; test items never.")
        if not splits.test:
            raise ValueError("no user has 3 items or more, so there is nothing to test on; give longer sequences")
        tokenizer = _tokenizer(catalog, options, model)
        item_trie = catalog.trie(tokenizer)
        shared = len(catalog) - len({tuple(item_trie.sequence(item)) for item in catalog.item_ids})
        if shared:
            notes.append(f"{shared} items share all their tokens with an earlier item; ranks are expected ranks.")
        notes += _no_repeats(interactions)
        prepared = PreparedData(name, options, interactions, splits, catalog, tokenizer, item_trie, notes, model)
        return _with_prompts(prepared)


def _with_prompts(prepared: PreparedData) -> PreparedData:
    """Refuse now what prompts would be refused for later, and keep the text of templates instead of their files."""
    options, templates = prepared.options, prepared.renderer.templates
    if options.tasks or options.template or options.max_length is not None:
        prepared.training_rows()
    if options.template:
        prepared.options = dataclasses.replace(options, template=[template.source for template in templates])
    return prepared


def _of_interactions(catalog: ItemCatalog, interactions: Interactions, rule: str) -> tuple[ItemCatalog, list[str]]:
    """The catalogue with or without the items that nobody has, and what a reader has to know of them."""
    unused = sorted(set(catalog.item_ids) - set(interactions.items))
    number = f"{len(unused):,} of {len(catalog):,} items"
    if unused and rule == "drop":
        return catalog.without_items(unused), [f"{number} occur in no interaction and were left out."]
    note = f"{number} occur in no interaction; they are ranked too (--unused_items drop leaves them out)."
    return catalog, [note] if unused else []


def clean(interactions: Interactions, options: DataOptions) -> Interactions:
    """What the options keep."""
    interactions = interactions.filter(
        drop_repeats=options.drop_repeats or False,  # type: ignore[arg-type]
        start=_moment(options.start),
        end=_moment(options.end),
        max_items=options.max_items,
    )
    if not len(interactions):
        raise ValueError("no interactions are left after cleaning; choose other options")
    return interactions if options.k_core is None else interactions.k_core(options.k_core)


def split(interactions: Interactions, options: DataOptions) -> Splits:
    """Splits by the options' rule, with the validation items in training where the options say so."""
    moments = options.validation_start, options.test_start
    shares = options.validation_share, options.test_share
    if options.split == "global_time":
        splits = interactions.global_time(*map(_moment, moments), validation_share=shares[0], test_share=shares[1])
    elif any(value is not None for value in (*moments, *shares)):
        raise ValueError("dates and shares of validation and test are for --split global_time; leave-one-out has none")
    else:
        splits = interactions.leave_one_out(short_users="train")
    if options.train_on_validation:
        splits = splits.with_validation_in_training()
    share, seed = options.train_users_share, options.train_users_seed
    return splits if share == 1 else splits.with_train_users(share, seed)


def _moment(text: str | None) -> float | str | None:
    """A date as it is, a number as one."""
    try:
        return text if text is None or "-" in text[1:] else float(text)
    except ValueError:
        return text


def _about(splits: Splits, options: DataOptions) -> list[str]:
    """What a split leaves aside."""
    if options.split == "leave_one_out":
        short = len(splits.users_without_test)
        return [f"{short} users with fewer than 3 items are trained on, not tested."] if short else []
    notes = [
        f"Split by time: {len(splits.test)} interactions from one moment on are test, for all users alike; "
        f"{len(splits.users_without_test)} users have none."
    ]
    if splits.without_history:
        number = len(splits.without_history)
        notes.append(f"{number} items of validation and test are a user's first, with no history, and are not asked.")
    return notes


def _no_repeats(interactions: Interactions) -> list[str]:
    """Whether a ranking that offers users their own items again can only lose by it."""
    columns = interactions.columns
    pairs = columns.user_rows().astype(np.int64) * len(columns.items) + columns.item_codes
    if len(np.unique(pairs)) < len(pairs):
        return []
    return ["No user has an item twice, so leaving the history out of the ranking (--exclude_history) can only help."]


def _tokenizer(catalog: ItemCatalog, options: DataOptions, model: str | None) -> PreTrainedTokenizerBase:
    if model is None and options.tasks and catalog.kind == "semantic_ids" and catalog.titles is not None:
        # Tasks speak of titles too
        both = catalog.as_kind("titles").build_tokenizer(options.vocab_size)
        catalog.add_tokens(both)
        return both
    if model is None:
        return catalog.build_tokenizer(options.vocab_size)
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    if catalog.kind == "semantic_ids":
        catalog.add_tokens(tokenizer)
    return tokenizer
