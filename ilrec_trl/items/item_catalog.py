"""The items an LLM can recommend: ids, and the texts or semantic IDs by which it names them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import compress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from ..data.prompt_tokens import Prompt, tokenize_completions
from ..model.new_tokens import Initialisation, add_rows
from .item_trie import ItemTrie
from .semantic_id_files import read_lc_rec
from .titles import clean_title, distinct_titles, refuse_special_tokens, shortened_titles


if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

CatalogKind: TypeAlias = Literal["semantic_ids", "titles"]
SPECIAL_TOKENS = ["<pad>", "<eos>", "<unk>"]  # of the tokenizers that a catalogue builds


class ItemCatalog:
    """
    Ids of items and the text that names each one to the LLM: its title, or its semantic ID. A catalogue may hold both;
    `kind` says which of them `texts` are. Several items may have one title or one semantic ID.

    Args:
        item_ids (`list[str]`): Distinct ids.
        texts (`list[str]`, *optional*): Titles, one per item. Not needed with `semantic_ids`, whose tokens are joined.
        semantic_ids (`list[list[str]]`, *optional*): Tokens such as `["<a_12>", "<b_3>"]`, one list per item.
        kind (`"semantic_ids"` or `"titles"`, *optional*): What names an item. Defaults to titles if `texts`
            are given and are not the joined semantic IDs.

    Example:

    ```python
    >>> from ilrec_trl import ItemCatalog

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
        self._index_of = {item_id: item_index for item_index, item_id in enumerate(self.item_ids)}
        if len(self._index_of) != len(self.item_ids):
            raise ValueError(f"Got {len(self.item_ids)} item ids, only {len(self._index_of)} of them distinct.")

    @classmethod
    def from_titles(cls, titles: Mapping[str, str]) -> ItemCatalog:
        """
        Catalogue of items named by their titles, cleaned by [`~titles.clean_title`].

        Raises:
            ValueError: if a title is no text, or nothing is left of it after cleaning; names the items.
        """
        if wrong := [item_id for item_id, title in titles.items() if not isinstance(title, str)]:
            raise ValueError(f"The titles of {len(wrong)} items are no text: {wrong[:5]}. Pass titles of type str.")
        return cls(list(map(str, titles)), texts=list(map(clean_title, titles.values())))

    @classmethod
    def from_semantic_ids(cls, semantic_ids: Mapping[str, Sequence[str]]) -> ItemCatalog:
        """Catalogue of items named by their semantic IDs, lists of tokens such as `["<a_12>", "<b_3>"]`."""
        return cls(list(map(str, semantic_ids)), semantic_ids=list(semantic_ids.values()))

    @classmethod
    def from_lc_rec(cls, folder: str | Path, kind: CatalogKind = "semantic_ids") -> ItemCatalog:
        """
        Read a folder as LC-Rec publishes it.

        Args:
            folder (`str` or `Path`): Holds `index.json` (semantic IDs) or `item.json` (titles), or both; also as
                `<data set>.index.json`, and with `.gz`.
            kind (`"semantic_ids"` or `"titles"`, *optional*, defaults to `"semantic_ids"`): What names an item. The
                other one is read too if the folder has it for the same items.
        """
        return cls(*read_lc_rec(folder, kind), kind)

    def __len__(self) -> int:
        return len(self.item_ids)

    def __contains__(self, item_id: object) -> bool:
        return item_id in self._index_of

    def __repr__(self) -> str:
        return f"ItemCatalog({len(self)} items, kind={self.kind!r}, e.g. {self.item_ids[0]!r}: {self.texts[0]!r})"

    def text(self, item_id: str) -> str:
        """The text of an item in a prompt or completion."""
        if item_id not in self._index_of:
            raise ValueError(f"Got item {item_id!r}, which is not among the {len(self)} items of the catalogue.")
        return self.texts[self._index_of[item_id]]

    @property
    def tokens(self) -> list[str]:
        """Distinct tokens of the semantic IDs, sorted; none for a catalogue of titles alone."""
        return sorted({token for tokens in self.semantic_ids or [] for token in tokens})

    def as_kind(self, kind: CatalogKind) -> ItemCatalog:
        """The same items named by their titles or by their semantic IDs."""
        return ItemCatalog(self.item_ids, self.titles, self.semantic_ids, kind)

    def with_items(self, items: ItemCatalog, new_tokens: bool = False) -> ItemCatalog:
        """
        This catalogue with more items. A model that knows their tokens can recommend them without further training.
        Build a new trie for it: `catalog.with_items(items).trie(tokenizer)`.

        Args:
            items ([`ItemCatalog`]): The new items. They have titles, semantic IDs or both, as this catalogue does.
            new_tokens (`bool`, *optional*, defaults to `False`): Allow semantic IDs with tokens that this catalogue
                lacks; `add_tokens` and training must follow.

        Raises:
            ValueError: for items that are in the catalogue already, lack titles or semantic IDs that it holds, or have
                semantic IDs with new tokens or of another length; names the items.
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
            self._check_new_semantic_ids(items, new_tokens)
        return ItemCatalog(
            [*self.item_ids, *items.item_ids],
            None if self.titles is None else [*self.titles, *(items.titles or [])],
            None if self.semantic_ids is None else [*self.semantic_ids, *(items.semantic_ids or [])],
            self.kind,
        )

    def without_items(self, item_ids: Sequence[str]) -> ItemCatalog:
        """
        This catalogue without some items. Build a new trie, `catalog.without_items(item_ids).trie(tokenizer)`: items
        outside the trie are never recommended.

        Raises:
            ValueError: for items that are not in the catalogue, or if none would be left.
        """
        if isinstance(item_ids, str):
            raise TypeError(f"Got the text {item_ids!r}, expected a list of item ids. Pass [{item_ids!r}].")
        if unknown := [item_id for item_id in item_ids if item_id not in self]:
            raise ValueError(f"{len(unknown)} items are not in the catalogue of {len(self)}: {unknown[:5]}.")
        removed = set(item_ids)
        kept = [item_id not in removed for item_id in self.item_ids]
        if not any(kept):
            raise ValueError(f"Got all {len(self)} items of the catalogue to remove, expected at least one to stay.")
        return ItemCatalog(
            list(compress(self.item_ids, kept)),
            None if self.titles is None else list(compress(self.titles, kept)),
            None if self.semantic_ids is None else list(compress(self.semantic_ids, kept)),
            self.kind,
        )

    def with_distinct_titles(self, brands: Mapping[str, str] | None = None) -> ItemCatalog:
        """
        The same items with distinct titles. Items of equal titles would share one place in a ranking.

        Args:
            brands (`dict[str, str]`, *optional*): Brand of each item where it is known. It is appended to titles that
                several items have. Titles that are still equal are numbered from the second item on.
        """
        return self._with_titles(distinct_titles(self._titles_by_id(), brands))

    def with_short_titles(self, tokenizer: PreTrainedTokenizerBase, max_title_tokens: int) -> ItemCatalog:
        """
        The same items, with titles of more than `max_title_tokens` tokens cut after a word. Titles that differed still
        differ: cut titles that would be equal are numbered.

        Raises:
            ValueError: if not even the first word of a title fits; names the items.
        """

        def count_tokens(texts: list[str]) -> list[int]:
            return list(map(len, tokenize_completions(tokenizer, texts, "\n"))) if texts else []

        return self._with_titles(shortened_titles(self._titles_by_id(), count_tokens, max_title_tokens))

    def add_tokens(
        self,
        tokenizer: PreTrainedTokenizerBase,
        model: PreTrainedModel | None = None,
        initialise: Initialisation | None = None,
        seed: int = 0,
    ) -> list[int]:
        """
        Add every semantic-ID token to the tokenizer, and a row for it to the model's embedding and head.

        Tokens that the tokenizer and the model had before keep their rows. New rows of an untied head are made from
        rows of the head.

        Args:
            tokenizer (`PreTrainedTokenizerBase`): The model's tokenizer, which is changed in place.
            model (`PreTrainedModel`, *optional*): Model whose embeddings grow if they have too few rows; spare rows
                and padding stay. Pass it with its own tokenizer, before PEFT or a trainer wraps it. Its linear layers
                may be quantised.
            initialise (`"item_texts"`, `"mean"` or `"random"`, *optional*): Initial values of new rows.
                `"item_texts"`: the mean of the rows of the tokens in the titles of all items whose semantic ID holds
                the new token, scaled to the usual distance from the mean row. `"mean"`: the mean row with a little
                noise. `"random"`: a random direction at the usual distance from the mean row. Defaults to
                `"item_texts"` if the catalogue has titles, otherwise to `"random"`.
            seed (`int`, *optional*, defaults to `0`): Seed of the noise that keeps new rows distinct.

        Returns:
            `list[int]`: ids of `tokens`, which [`item_token_settings`] and [`check_item_tokens_train`] take.

        Raises:
            ValueError: for `"item_texts"` without titles, or a model that is wrapped, sharded, or whose embedding is
                quantised.
        """
        if initialise is None:
            initialise = "random" if self.titles is None else "item_texts"
        if model is None:
            vocabulary = tokenizer.get_vocab()
            tokenizer.add_tokens([token for token in self.tokens if token not in vocabulary])
        else:
            add_rows(model, tokenizer, self.tokens, self.titles, self.semantic_ids or [], initialise, seed)
        vocabulary = tokenizer.get_vocab()
        return [vocabulary[token] for token in self.tokens]

    def token_sequences(
        self,
        tokenizer: PreTrainedTokenizerBase,
        prompt: Prompt | None = None,
        chat_template_kwargs: dict[str, Any] | None = None,
        max_title_tokens: int = 512,
    ) -> dict[str, list[int]]:
        """
        Token ids of every item's text as it is tokenized after a prompt, without special tokens or an end token.

        Args:
            tokenizer (`PreTrainedTokenizerBase`): The model's.
            prompt (`str` or `list[dict]`, *optional*): Any prompt of the data set, text or conversation. Only its end
                matters: some tokenizers write the first word differently after a space, a line break or the mark of a
                chat template. Defaults to the end of the default templates: a line break before titles, nothing before
                semantic IDs.
            chat_template_kwargs (`dict`, *optional*): As in [`recommend`].
            max_title_tokens (`int`, *optional*, defaults to `512`): Longer titles are refused: models do not learn
                them by heart, and beam search takes one step per token.

        Raises:
            ValueError: if a token of a semantic ID is not one entry of the tokenizer, a title is too long or holds a
                special token, or a token would cross the border between prompt and item; names the items.
        """
        if prompt is None:
            prompt = "\n" if self.kind == "titles" else ""
        sequences = tokenize_completions(tokenizer, self.texts, prompt, chat_template_kwargs)
        named = dict(zip(self.item_ids, sequences, strict=True))
        if self.kind == "semantic_ids":
            _check_semantic_ids(tokenizer, named, self.semantic_ids or [])
        if self.kind == "titles":
            refuse_special_tokens(tokenizer, dict(zip(self.item_ids, self.texts, strict=True)), named)
        long = [item_id for item_id, tokens in named.items() if len(tokens) > max_title_tokens]
        if long and self.kind == "titles":
            raise ValueError(
                f"The titles of {len(long)} items have more than {max_title_tokens} tokens: {long[:5]}. Cut them with "
                "`catalog.with_short_titles(tokenizer, max_title_tokens)`, or raise `max_title_tokens`."
            )
        return named

    def trie(
        self,
        tokenizer: PreTrainedTokenizerBase,
        prompt: Prompt | None = None,
        chat_template_kwargs: dict[str, Any] | None = None,
        max_title_tokens: int = 512,
    ) -> ItemTrie:
        """
        The catalogue as a trie of the tokenizer's tokens. The arguments are those of [`ItemCatalog.token_sequences`].

        Semantic IDs of one length need no end token. Titles, and semantic IDs that differ in length, end with the
        tokenizer's end-of-sequence token, which TRL appends to completions.
        """
        sequences = self.token_sequences(tokenizer, prompt, chat_template_kwargs, max_title_tokens)
        if self.kind == "semantic_ids" and len(set(map(len, sequences.values()))) == 1:
            return ItemTrie.from_sequences(sequences)
        if tokenizer.eos_token_id is None:
            raise ValueError(
                "The tokenizer has no end-of-sequence token, which titles need. Set `tokenizer.eos_token`."
            )
        return ItemTrie.from_sequences(sequences, end_token_id=tokenizer.eos_token_id)

    def build_tokenizer(self, vocab_size: int = 4096) -> PreTrainedTokenizerFast:
        """
        Build a tokenizer of this catalogue alone, for a small model that is trained from scratch.

        Args:
            vocab_size (`int`, *optional*, defaults to `4096`): Number of entries of the byte-level BPE that is trained
                on titles. Semantic IDs have one entry for each token, whatever the number.

        Returns:
            `PreTrainedTokenizerFast`: with `<pad>`, `<eos>` and `<unk>` as tokens 0, 1 and 2.
        """
        return _title_tokenizer(self.texts, vocab_size) if self.kind == "titles" else _code_tokenizer(self.tokens)

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

    def _check_new_semantic_ids(self, items: ItemCatalog, new_tokens: bool) -> None:
        lengths = {len(tokens) for tokens in self.semantic_ids or []}
        named = list(zip(items.item_ids, items.semantic_ids or [], strict=True))
        if len(lengths) == 1 and (other := [item_id for item_id, tokens in named if len(tokens) not in lengths]):
            raise ValueError(
                f"The semantic IDs of the catalogue have {lengths.pop()} tokens, those of {len(other)} new items have "
                f"other lengths: {other[:5]}. A model that was trained on IDs of one length has not learnt to end "
                "others."
            )
        known = set(self.tokens)
        unknown = sorted({token for _, tokens in named for token in tokens} - known)
        if unknown and not new_tokens:
            holders = [item_id for item_id, tokens in named if not known.issuperset(tokens)]
            raise ValueError(
                f"{len(holders)} new items have semantic IDs of tokens that the catalogue lacks and a trained model "
                f"has not learnt: {holders[:5]} of {unknown[:5]}. Give them IDs of known tokens; or pass "
                "`new_tokens=True`, then call `add_tokens(tokenizer, model)` and train."
            )

    def _titles_by_id(self) -> dict[str, str]:
        if self.titles is None:
            raise ValueError("The catalogue holds no titles. Pass `texts` as well.")
        return dict(zip(self.item_ids, self.titles, strict=True))

    def _with_titles(self, titles: dict[str, str]) -> ItemCatalog:
        return ItemCatalog(self.item_ids, list(titles.values()), self.semantic_ids, self.kind)


def _check_semantic_ids(
    tokenizer: PreTrainedTokenizerBase, sequences: Mapping[str, list[int]], semantic_ids: Sequence[Sequence[str]]
) -> None:
    """Refuse a tokenizer that splits tokens of semantic IDs."""
    vocabulary = tokenizer.get_vocab()
    for (item_id, token_ids), tokens in zip(sequences.items(), semantic_ids, strict=True):
        if token_ids != [vocabulary.get(token) for token in tokens] or tokenizer.unk_token_id in token_ids:
            raise ValueError(
                f"The tokenizer reads the semantic ID {list(tokens)} of item {item_id!r} as "
                f"{tokenizer.convert_ids_to_tokens(token_ids)}, expected one entry for each token. Call "
                "`catalog.add_tokens(tokenizer, model)` first."
            )


def _code_tokenizer(tokens: Sequence[str]) -> PreTrainedTokenizerFast:
    """Tokenizer with one entry for each of `tokens`; no space is needed between them."""
    vocabulary = {token: token_id for token_id, token in enumerate([*SPECIAL_TOKENS, *tokens])}
    if len(vocabulary) != len(SPECIAL_TOKENS) + len(tokens):
        raise ValueError(f"Semantic-ID tokens must be distinct and other than {SPECIAL_TOKENS}.")
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"\s+"), behavior="removed")
    tokenizer.decoder = decoders.Fuse()
    # Added tokens are found anywhere in a text, with or without spaces around them
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in tokens])
    return _wrap(tokenizer)


def _title_tokenizer(titles: Sequence[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE of `vocab_size` entries trained on `titles`; it can encode any text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    smallest = len(alphabet) + len(SPECIAL_TOKENS)
    if vocab_size < smallest:
        raise ValueError(f"Got vocab_size {vocab_size}, expected at least {smallest}: all bytes and special tokens.")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=SPECIAL_TOKENS, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(titles, trainer)
    return _wrap(tokenizer)


def _wrap(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    pad, eos, unk = SPECIAL_TOKENS
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=pad, eos_token=eos, unk_token=unk, clean_up_tokenization_spaces=False
    )
