"""The items an LLM can recommend: ids, and the texts or semantic IDs by which it names them."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from .titles import clean_title


if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

    from .item_tokens import Initialisation
    from .item_trie import ItemTrie

CatalogKind: TypeAlias = Literal["semantic_ids", "titles"]


class ItemCatalog:
    """
    Ids of items and the text that names each one to the LLM: its title, or its semantic ID.

    A catalogue may hold both titles and semantic IDs; `kind` says which of them `texts` are. Several items may have
    one title or one semantic ID.

    Args:
        item_ids (`list[str]`):
            Distinct ids.
        texts (`list[str]`, *optional*):
            Titles, one per item. Not needed with `semantic_ids`, whose tokens are joined.
        semantic_ids (`list[list[str]]`, *optional*):
            Tokens such as `["<a_12>", "<b_3>"]`, one list per item.
        kind (`"semantic_ids"` or `"titles"`, *optional*):
            What names an item. By default titles where `texts` are given and are not the joined semantic IDs.

    Example:

    ```python
    >>> from ilrec_trl.items.item_catalog import ItemCatalog

    >>> catalog = ItemCatalog.from_semantic_ids({"lute": ["<a_0>", "<b_1>"], "harp": ["<a_0>", "<b_0>"]})
    >>> catalog.text("lute")
    '<a_0><b_1>'
    >>> tokenizer = catalog.build_tokenizer()
    >>> catalog.trie(tokenizer).item_ids
    ['harp', 'lute']

    ```
    """

    def __init__(
        self,
        item_ids: Sequence[str],
        texts: Sequence[str] | None = None,
        semantic_ids: Sequence[Sequence[str]] | None = None,
        kind: CatalogKind | None = None,
    ) -> None:
        if len(item_ids) == 0:
            raise ValueError("Got an empty catalogue, expected at least one item.")
        if texts is None and semantic_ids is None:
            raise ValueError("Got neither texts nor semantic IDs, expected one of them to name the items by.")
        self.item_ids = [str(item_id) for item_id in item_ids]
        self.semantic_ids = None if semantic_ids is None else [list(tokens) for tokens in semantic_ids]
        joined = None if self.semantic_ids is None else ["".join(tokens) for tokens in self.semantic_ids]
        self.titles = None if texts is None or list(texts) == joined else list(texts)
        self.kind: CatalogKind = kind or ("semantic_ids" if self.titles is None else "titles")
        chosen = joined if self.kind == "semantic_ids" else self.titles
        if chosen is None:
            raise ValueError(f"Got kind {self.kind!r}, but the catalogue holds no {self.kind}. Pass them as well.")
        self.texts = chosen
        self._check()
        self._rows = {item_id: row for row, item_id in enumerate(self.item_ids)}
        if len(self._rows) != len(self.item_ids):
            raise ValueError(f"Got {len(self.item_ids)} item ids, only {len(self._rows)} of them distinct.")

    @classmethod
    def from_titles(cls, titles: Mapping[str, str]) -> ItemCatalog:
        """
        Catalogue of items named by their titles, which are cleaned: HTML entities and Unicode forms resolved, runs of
        white space made one space.

        Raises:
            ValueError: where nothing is left of a title; names the items.
        """
        cleaned = {str(item_id): clean_title(title) for item_id, title in titles.items()}
        return cls(list(cleaned), texts=list(cleaned.values()))

    @classmethod
    def from_semantic_ids(cls, semantic_ids: Mapping[str, Sequence[str]]) -> ItemCatalog:
        """Catalogue of items named by their semantic IDs, lists of tokens such as `["<a_12>", "<b_3>"]`."""
        return cls(list(map(str, semantic_ids)), semantic_ids=list(semantic_ids.values()))

    @classmethod
    def from_lc_rec(cls, folder: str | Path, kind: CatalogKind = "semantic_ids") -> ItemCatalog:
        """
        Read a folder as LC-Rec publishes it.

        Args:
            folder (`str` or `Path`):
                Holds `index.json` (semantic IDs) or `item.json` (titles), or both; also as `<data set>.index.json`,
                and with `.gz`.
            kind (`"semantic_ids"` or `"titles"`, *optional*, defaults to `"semantic_ids"`):
                What names an item. The other is read as well where it is there for the same items.
        """
        index, about = _read_json(folder, "index.json"), _read_json(folder, "item.json")
        needed, name = (index, "index.json") if kind == "semantic_ids" else (about, "item.json")
        if needed is None:
            raise FileNotFoundError(f"{folder} holds no {name} (nor .gz, nor <data set>.{name}), which {kind} need.")
        item_ids = list(needed)
        titles = semantic_ids = None
        if about is not None and all(item_id in about for item_id in item_ids):
            titles = [clean_title(about[item_id].get("title") or "") for item_id in item_ids]
        if index is not None and all(item_id in index for item_id in item_ids):
            semantic_ids = [index[item_id] for item_id in item_ids]
        return cls(item_ids, titles, semantic_ids, kind)

    def as_kind(self, kind: CatalogKind) -> ItemCatalog:
        """The same items named by their titles or by their semantic IDs."""
        return ItemCatalog(self.item_ids, self.titles, self.semantic_ids, kind)

    def __len__(self) -> int:
        return len(self.item_ids)

    def __contains__(self, item_id: object) -> bool:
        return item_id in self._rows

    def __repr__(self) -> str:
        return f"ItemCatalog({len(self)} items, kind={self.kind!r}, e.g. {self.item_ids[0]!r}: {self.texts[0]!r})"

    def text(self, item_id: str) -> str:
        """What names the item in a prompt or completion."""
        if item_id not in self._rows:
            raise ValueError(f"Got item {item_id!r}, which is not among the {len(self)} items of the catalogue.")
        return self.texts[self._rows[item_id]]

    @property
    def tokens(self) -> list[str]:
        """Distinct tokens of the semantic IDs, sorted; none for a catalogue of titles alone."""
        return sorted({token for tokens in self.semantic_ids or [] for token in tokens})

    def add_tokens(
        self,
        tokenizer: PreTrainedTokenizerBase,
        model: PreTrainedModel | None = None,
        initialise: Initialisation | None = None,
        seed: int = 0,
    ) -> list[int]:
        """
        Make every semantic-ID token one entry of the tokenizer, and a row of the model's embedding and head.

        Rows of tokens that tokenizer and model both had before are left as they are. For the others, an untied head's
        rows start from rows of the head.

        Args:
            tokenizer (`PreTrainedTokenizerBase`):
                Changed in place.
            model (`PreTrainedModel`, *optional*):
                Its embeddings grow where they are too few; spare rows and a padded vocabulary stay. Pass it together
                with its own tokenizer, before PEFT or a trainer wraps it; its linear layers may be quantised.
            initialise (`"item_texts"`, `"mean"` or `"random"`, *optional*):
                Where new rows start. `"item_texts"`: from the rows of the tokens in the titles of all items whose
                semantic ID holds the new token, brought to the usual distance from the mean row. `"mean"`: from the
                mean row, with little noise. `"random"`: anywhere at the usual distance from the mean row. By default
                from the item texts where the catalogue has titles, else from the mean.
            seed (`int`, *optional*, defaults to `0`):
                Seed of the noise, without which two rows might be equal.

        Returns:
            `list[int]`: ids of `tokens`, which [`item_token_settings`] and [`check_item_tokens_train`] take.

        Raises:
            ValueError: for `"item_texts"` without titles, or a model that is wrapped, sharded, or whose embedding is
                quantised.
        """
        if initialise is None:
            initialise = "mean" if self.titles is None else "item_texts"
        if model is None:
            vocabulary = tokenizer.get_vocab()
            tokenizer.add_tokens([token for token in self.tokens if token not in vocabulary])
        else:
            from .item_tokens import add_rows

            add_rows(model, tokenizer, self, initialise, seed)
        vocabulary = tokenizer.get_vocab()
        return [vocabulary[token] for token in self.tokens]

    def token_sequences(self, tokenizer: PreTrainedTokenizerBase) -> dict[str, list[int]]:
        """
        Token ids of every item's text, without special tokens and without an end token.

        Titles are tokenized as they stand after a line break, where prompts end: some tokenizers put a space before
        the first word of a text, which a completion does not have.

        Raises:
            ValueError: where a semantic ID's token is not one entry of the tokenizer.
        """
        context = "\n" if self.kind == "titles" else ""
        start = tokenizer(context, add_special_tokens=False)["input_ids"] if context else []
        encoded = tokenizer([context + text for text in self.texts], add_special_tokens=False)["input_ids"]
        for text, token_ids in zip(self.texts, encoded, strict=True):
            if token_ids[: len(start)] != start:
                raise ValueError(
                    f"The tokenizer joins a line break with the start of {text!r}, so that the title has no tokens "
                    "of its own. Use another tokenizer."
                )
        sequences = [token_ids[len(start) :] for token_ids in encoded]
        if self.kind == "semantic_ids":
            self._check_semantic_ids(tokenizer, sequences)
        return dict(zip(self.item_ids, sequences, strict=True))

    def trie(self, tokenizer: PreTrainedTokenizerBase) -> ItemTrie:
        """
        The catalogue as a trie of the tokenizer's tokens.

        Semantic IDs of one length end by themselves. Titles, and semantic IDs that differ in length, end with the
        tokenizer's end-of-sequence token, which TRL appends to completions.
        """
        from .item_trie import ItemTrie

        sequences = self.token_sequences(tokenizer)
        if self.kind == "semantic_ids" and len(set(map(len, sequences.values()))) == 1:
            return ItemTrie.from_sequences(sequences)
        if tokenizer.eos_token_id is None:
            raise ValueError(
                "The tokenizer has no end-of-sequence token, which titles need. Set `tokenizer.eos_token`."
            )
        return ItemTrie.from_sequences(sequences, end_token_id=tokenizer.eos_token_id)

    def build_tokenizer(self, vocab_size: int = 4096) -> PreTrainedTokenizerFast:
        """
        A tokenizer of this catalogue's own, for a small model trained from scratch.

        Args:
            vocab_size (`int`, *optional*, defaults to `4096`):
                Entries of the byte-level BPE trained on titles. Semantic IDs have one entry a token, whatever this is.

        Returns:
            `PreTrainedTokenizerFast`: with `<pad>`, `<eos>` and `<unk>` as tokens 0, 1 and 2.
        """
        from .catalog_tokenizer import semantic_id_tokenizer, title_tokenizer

        return title_tokenizer(self.texts, vocab_size) if self.kind == "titles" else semantic_id_tokenizer(self.tokens)

    def save(self, directory: str | Path) -> None:
        """Write `catalog.json` into `directory`."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        about: dict[str, Any] = {"format": 1, "kind": self.kind, "item_ids": self.item_ids}
        about |= {"titles": self.titles, "semantic_ids": self.semantic_ids}
        (directory / "catalog.json").write_text(json.dumps(about, ensure_ascii=False), encoding="utf-8")

    @classmethod
    def load(cls, directory: str | Path) -> ItemCatalog:
        """Read what [`ItemCatalog.save`] wrote."""
        about = json.loads((Path(directory) / "catalog.json").read_text(encoding="utf-8"))
        if about.get("format") != 1:
            raise ValueError(f"{directory} holds a catalogue of format {about.get('format')}, expected 1.")
        return cls(about["item_ids"], about["titles"], about["semantic_ids"], about["kind"])

    def _check(self) -> None:
        for name, values in (("titles", self.titles), ("semantic IDs", self.semantic_ids)):
            if values is not None and len(values) != len(self.item_ids):
                raise ValueError(f"Got {len(self.item_ids)} item ids and {len(values)} {name}, expected one for each.")
        empty = [item_id for item_id, text in zip(self.item_ids, self.texts, strict=True) if not text.strip()]
        if empty:
            raise ValueError(
                f"{len(empty)} items have nothing to name them by ({self.kind}): {empty[:5]}. Give them a text, or "
                "drop them from catalogue and interactions."
            )

    def _check_semantic_ids(self, tokenizer: PreTrainedTokenizerBase, sequences: list[list[int]]) -> None:
        vocabulary = tokenizer.get_vocab()
        for item_id, tokens, token_ids in zip(self.item_ids, self.semantic_ids or [], sequences, strict=True):
            if token_ids != [vocabulary.get(token) for token in tokens] or tokenizer.unk_token_id in token_ids:
                raise ValueError(
                    f"The tokenizer reads the semantic ID {tokens} of item {item_id!r} as "
                    f"{tokenizer.convert_ids_to_tokens(token_ids)}, expected one entry for each token. Call "
                    "`catalog.add_tokens(tokenizer, model)` first."
                )


def _read_json(folder: str | Path, name: str) -> dict[str, Any] | None:
    """`name` or `<data set>.name` in `folder`, plain or compressed; `None` where there is none."""
    for pattern in (name, f"{name}.gz", f"*.{name}", f"*.{name}.gz"):
        found = sorted(Path(folder).glob(pattern))
        if len(found) > 1:
            raise ValueError(
                f"{folder} holds several files named {pattern}: {[path.name for path in found]}. Keep one."
            )
        if found:
            opener = gzip.open if found[0].suffix == ".gz" else open
            with opener(found[0], "rt", encoding="utf-8") as file:
                return {str(item_id): value for item_id, value in json.load(file).items()}
    return None
