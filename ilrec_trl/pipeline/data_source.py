"""Where interactions and items come from: the user's files, the Hub, or a generated store."""

from __future__ import annotations

from pathlib import Path

from ..data.interactions import Interactions
from ..data.synthetic import generate_store
from ..items.catalog_files import find_title_file, read_titles
from ..items.item_catalog import ItemCatalog
from .options import DataOptions, mapping


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
