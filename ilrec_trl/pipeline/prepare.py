"""First stage: read interactions and catalogue, clean and split them, and build tokenizer and trie."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..data.interactions import Interactions
from ..data.splits import Splits
from ..data.synthetic import generate_store
from ..items.item_catalog import ItemCatalog
from ..items.title_files import find_title_file, read_titles
from .option_checks import check_data
from .options import DataOptions, ModelOptions, input_errors, mapping
from .prepared_data import PreparedData, moment, split


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def read_source(options: DataOptions) -> tuple[str, Interactions, ItemCatalog]:
    """
    Read or generate the interactions and the items.

    Returns:
        `tuple`: Name of the data, `Interactions` before any cleaning but that by rating, and `ItemCatalog`.

    Raises:
        ValueError: For what [`Interactions.load`] and [`read_titles`] refuse.
    """
    if options.data is None:
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
    check_data(options, ModelOptions(model=model))
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
        notes += _about(splits, options) + unused + _about_training(splits, options)
        if not splits.test:
            raise ValueError("no user has 3 items or more, so there is nothing to test on; give longer sequences")
        tokenizer = _tokenizer(catalog, options, model)
        item_trie = catalog.trie(tokenizer)
        shared = len(catalog) - len({tuple(item_trie.sequence(item)) for item in catalog.item_ids})
        if shared:
            notes.append(f"{shared} items share all their tokens with an earlier item; ranks are expected ranks.")
        notes += _no_repeats(interactions)
        prepared = PreparedData(name, options, interactions, catalog, tokenizer, item_trie, notes, model)
        prepared.splits = splits  # made already
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
        start=moment(options.start),
        end=moment(options.end),
        max_items=options.max_items,
    )
    if not len(interactions):
        raise ValueError("no interactions are left after cleaning; choose other options")
    return interactions if options.k_core is None else interactions.k_core(options.k_core)


def _about(splits: Splits, options: DataOptions) -> list[str]:
    """What a split leaves aside, and whom it trains on."""
    notes = []
    if short := len(splits.users_without_test) if options.split == "leave_one_out" else 0:
        notes.append(f"{short} users with fewer than 3 items are trained on, not tested.")
    if options.split == "global_time":
        notes.append(
            f"Split by time: {len(splits.test)} interactions from one moment on are test, for all users alike; "
            f"{len(splits.users_without_test)} users have none."
        )
    if number := len(splits.without_history):
        notes.append(f"{number} items of validation and test are a user's first, with no history, and are not asked.")
    return notes


def _about_training(splits: Splits, options: DataOptions) -> list[str]:
    """Whom and what the methods are trained on."""
    notes = []
    if options.train_users_share != 1:
        share = f"{len(splits.train):,} users ({options.train_users_share:.0%})"
        notes.append(f"Trained on {share}, drawn by chance; all users are asked.")
    if options.train_on_validation:
        notes.append("Validation items were trained on, for a fixed number of epochs; test items never.")
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
