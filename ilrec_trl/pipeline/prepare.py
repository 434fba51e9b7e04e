"""First stage: read interactions and catalogue, split, and build the tokenizer and the trie."""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data.interactions import Interactions
from ..data.prompts import next_item_dataset, prompt_renderer, sequence_dataset
from ..data.splits import NextItemExample, Splits
from ..data.synthetic import generate_store
from ..items.item_catalog import ItemCatalog
from ..items.item_trie import ItemTrie
from .options import DataOptions, InputError


if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase


@dataclass
class PreparedData:
    """
    Everything later stages need.

    Args:
        name (`str`): Name of the data.
        options (`DataOptions`): How it was prepared.
        interactions (`Interactions`): Sequences of the users.
        splits (`Splits`): Leave-one-out splits of them.
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

    @property
    def separator(self) -> str | None:
        """Text after every item of a history; `None` for the catalogue's default."""
        # In a row of several titles each must end as the trie's items do.
        return self.tokenizer.eos_token if self.item_trie.end_token_id is not None and self._whole_rows else None

    @property
    def _whole_rows(self) -> bool:
        return self.options.rows == "sequences"

    def training_rows(self) -> Dataset:
        """Rows to train on."""
        if self._whole_rows:
            return sequence_dataset(self.splits.train, self.catalog, **self._prompt_options())
        return self.questions(self.splits.train_examples())

    def questions(self, examples: list[NextItemExample]) -> Dataset:
        """Prompts and targets of questions, such as `splits.test`."""
        return next_item_dataset(examples, self.catalog, **self._prompt_options())

    def prompt(self, history: list[str]) -> str:
        """The prompt after a history of item ids."""
        render = prompt_renderer(self.catalog, self.options.template, self.separator)
        return render(history[-self.options.max_history :])

    def max_length(self) -> int:
        """A length in tokens that no row and no prompt with its target exceeds."""
        texts = [self.prompt([item] * self.options.max_history) for item in self._longest_items()]
        longest = max(map(len, self.tokenizer(texts)["input_ids"]))
        return longest + self.item_trie.depth + 2

    def summary(self) -> dict[str, Any]:
        """The `data` entry of `results.json`."""
        return {
            "name": self.name,
            "users": len(self.interactions),
            "items": len(self.catalog),
            "interactions": self.interactions.num_interactions,
            "test_users": len(self.splits.test),
            "notes": self.notes,
        }

    def save(self, directory: str | Path) -> None:
        """Write everything to `directory`."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        sequences = dict(zip(self.interactions.users, self.interactions.sequences, strict=True))
        (directory / "inter.json").write_text(json.dumps(sequences))
        about = {"format": 1, "name": self.name, "notes": self.notes, "model": self.model}
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
            options = DataOptions(**about["options"])
            interactions = Interactions.from_lc_rec(directory)
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

    def _prompt_options(self) -> dict[str, Any]:
        options = self.options
        return {"template": options.template, "separator": self.separator, "max_history": options.max_history}

    def _longest_items(self) -> list[str]:
        """Candidates for the item of most tokens as it stands in a prompt."""
        by_text = max(self.catalog.item_ids, key=lambda item: len(self.catalog.text(item)))
        by_tokens = max(self.catalog.item_ids, key=lambda item: len(self.item_trie.sequence(item)))
        return [by_text, by_tokens]


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
        name, interactions, catalog = _read(options)
        notes = []
        if options.max_users is not None and options.max_users < len(interactions):
            notes.append(f"Smoke run: {options.max_users} of {len(interactions)} users, drawn by chance.")
            users = random.Random(0).sample(interactions.users, options.max_users)
            interactions = interactions.filter(users=set(users))
        unknown = set(interactions.items) - set(catalog.item_ids)
        if unknown:
            raise ValueError(
                f"{len(unknown)} items of the interactions are not in the catalogue, such as {min(unknown)!r}; add "
                "them to the index or item file, or remove their interactions"
            )
        splits = split(interactions, options)
        if splits.users_without_test:
            notes.append(f"{len(splits.users_without_test)} users with fewer than 3 items are trained on, not tested.")
        if options.train_on_validation:
            notes.append("Validation items were trained on, for a fixed number of epochs; test items never.")
        if not splits.test:
            raise ValueError("no user has 3 items or more, so there is nothing to test on; give longer sequences")
        tokenizer = _tokenizer(catalog, options, model)
        item_trie = catalog.trie(tokenizer)
        shared = len(catalog) - len({tuple(item_trie.sequence(item)) for item in catalog.item_ids})
        if shared:
            notes.append(f"{shared} items share all their tokens with an earlier item; ranks are expected ranks.")
        return PreparedData(name, options, interactions, splits, catalog, tokenizer, item_trie, notes, model)


def split(interactions: Interactions, options: DataOptions) -> Splits:
    """Leave-one-out splits, with the validation items in training where the options say so."""
    splits = interactions.leave_one_out(short_users="train")
    return splits.with_validation_in_training() if options.train_on_validation else splits


def _read(options: DataOptions) -> tuple[str, Interactions, ItemCatalog]:
    if options.data is None:
        store = generate_store(options.store_seed, num_users=options.store_users, num_items=options.store_items)
        names = list(store.titles.values()), list(store.semantic_ids.values())
        catalog = ItemCatalog(list(store.titles), *names, kind=options.item_format)
        return "generated store", store.interactions, catalog
    folder = Path(options.data)
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}; give --data a folder in LC-Rec's format")
    interactions = Interactions.from_lc_rec(folder)
    return folder.resolve().name, interactions, ItemCatalog.from_lc_rec(folder, kind=options.item_format)


def _tokenizer(catalog: ItemCatalog, options: DataOptions, model: str | None) -> PreTrainedTokenizerBase:
    if model is None:
        return catalog.build_tokenizer(options.vocab_size)
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    if catalog.kind == "semantic_ids":
        catalog.add_tokens(tokenizer)
    return tokenizer
