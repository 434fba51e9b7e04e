"""Catalogues made from another: with more items or without some, with distinct or short titles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import compress
from typing import TYPE_CHECKING

from .completion_tokens import completion_tokens
from .titles import distinct_titles, shortened_titles


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from .item_catalog import ItemCatalog


def with_items(self: ItemCatalog, items: ItemCatalog, new_tokens: bool = False) -> ItemCatalog:
    """
    This catalogue and more items. A model that knows their tokens recommends them without being trained again: build
    the trie anew, `catalog.with_items(items).trie(tokenizer)`.

    Args:
        items ([`ItemCatalog`]):
            Holds titles and semantic IDs as this catalogue does.
        new_tokens (`bool`, *optional*, defaults to `False`):
            Allow semantic IDs with tokens that this catalogue lacks; `add_tokens` and training must follow.

    Raises:
        ValueError: for items that are in the catalogue, lack what it holds, or have semantic IDs of new tokens or of
            another length than all others; names the items.
    """
    if known := [item_id for item_id in items.item_ids if item_id in self]:
        raise ValueError(
            f"{len(known)} items are in the catalogue already: {known[:5]}. To change them, take them out with "
            "`without_items` first."
        )
    for name in ("titles", "semantic_ids"):
        has = {"catalogue": getattr(self, name) is not None, "new items": getattr(items, name) is not None}
        if len(set(has.values())) > 1:
            lacking = min(has, key=lambda side: has[side])
            raise ValueError(f"Catalogue or new items hold {name}, but not the {lacking}. Give both the same.")
    if self.semantic_ids is not None:
        _check_semantic_ids(self, items, new_tokens)
    return type(self)(
        [*self.item_ids, *items.item_ids],
        None if self.titles is None else [*self.titles, *(items.titles or [])],
        None if self.semantic_ids is None else [*self.semantic_ids, *(items.semantic_ids or [])],
        self.kind,
    )


def _check_semantic_ids(catalog: ItemCatalog, items: ItemCatalog, new_tokens: bool) -> None:
    lengths = {len(tokens) for tokens in catalog.semantic_ids or []}
    named = list(zip(items.item_ids, items.semantic_ids or [], strict=True))
    if len(lengths) == 1 and (other := [item_id for item_id, tokens in named if len(tokens) not in lengths]):
        raise ValueError(
            f"The semantic IDs of the catalogue have {lengths.pop()} tokens, those of {len(other)} new items have "
            f"other lengths: {other[:5]}. A model that was trained on IDs of one length has not learnt to end others."
        )
    known = set(catalog.tokens)
    unknown = sorted({token for _, tokens in named for token in tokens} - known)
    if unknown and not new_tokens:
        holders = [item_id for item_id, tokens in named if not known.issuperset(tokens)]
        raise ValueError(
            f"{len(holders)} new items have semantic IDs of tokens that the catalogue lacks and a trained model has "
            f"not learnt: {holders[:5]} of {unknown[:5]}. Give them IDs of known tokens; or pass `new_tokens=True`, "
            "then call `add_tokens(tokenizer, model)` and train."
        )


def without_items(self: ItemCatalog, item_ids: Sequence[str]) -> ItemCatalog:
    """
    This catalogue but for some items. Build the trie anew, `catalog.without_items(item_ids).trie(tokenizer)`: what is
    not in it can never be recommended.

    Raises:
        ValueError: for items that are not in the catalogue, or where none is left.
    """
    if isinstance(item_ids, str):
        raise TypeError(f"Got the text {item_ids!r}, expected a list of item ids. Pass [{item_ids!r}].")
    if unknown := [item_id for item_id in item_ids if item_id not in self]:
        raise ValueError(f"{len(unknown)} items are not in the catalogue of {len(self)}: {unknown[:5]}.")
    removed = set(item_ids)
    kept = [item_id not in removed for item_id in self.item_ids]
    if not any(kept):
        raise ValueError(f"Got all {len(self)} items of the catalogue to remove, expected at least one to stay.")
    return type(self)(
        list(compress(self.item_ids, kept)),
        None if self.titles is None else list(compress(self.titles, kept)),
        None if self.semantic_ids is None else list(compress(self.semantic_ids, kept)),
        self.kind,
    )


def with_distinct_titles(self: ItemCatalog, brands: Mapping[str, str] | None = None) -> ItemCatalog:
    """
    The same items, equal titles told apart by brand or number. Without it such items share one place of a ranking.

    Args:
        brands (`dict[str, str]`, *optional*):
            Brand of each item, where it is known; appended to titles that several items have. Where that does not
            tell them apart, and where no brand is known, the second item gets the number 2, and so on.
    """
    titles = distinct_titles(_titles(self), brands)
    return type(self)(self.item_ids, list(titles.values()), self.semantic_ids, self.kind)


def with_short_titles(self: ItemCatalog, tokenizer: PreTrainedTokenizerBase, max_title_tokens: int) -> ItemCatalog:
    """
    The same items, titles of more than `max_title_tokens` tokens cut after a word. Titles that differed still differ:
    where the cut ones would not, they get a number.

    Raises:
        ValueError: where not even a title's first word fits; names the items.
    """

    def count_tokens(texts: list[str]) -> list[int]:
        return list(map(len, completion_tokens(tokenizer, texts, "\n"))) if texts else []

    titles = shortened_titles(_titles(self), count_tokens, max_title_tokens)
    return type(self)(self.item_ids, list(titles.values()), self.semantic_ids, self.kind)


def _titles(catalog: ItemCatalog) -> dict[str, str]:
    if catalog.titles is None:
        raise ValueError("The catalogue holds no titles. Pass `texts` as well.")
    return dict(zip(catalog.item_ids, catalog.titles, strict=True))
