"""[`PreparedData`]: what the first stage leaves for all later ones, in memory and on disk."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from ..data.interactions import Interactions
from ..data.prompt_renderer import PromptRenderer
from ..data.prompt_tokens import tokenize_prompts, tokenize_rows
from ..data.prompts import next_item_dataset, sequence_dataset
from ..data.splits import NextItemExample, Splits
from ..data.tasks import task_dataset
from ..items.item_catalog import ItemCatalog
from ..items.item_trie import ItemTrie
from ..report.results import DataSummary
from .options import DataOptions, input_errors, mapping


if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

FORMAT = 2  # of prepared folders
_TASKS_EXAMPLE = '{"next_item": 1, "item_to_title": 0.5}'


@dataclass
class PreparedData:
    """
    Everything later stages need. Splits, prompts and rows are made when they are first asked for.

    Args:
        name (`str`): Name of the data.
        options (`DataOptions`): How it was prepared.
        interactions ([`Interactions`]): Sequences of the users, cleaned.
        catalog ([`ItemCatalog`]): The items.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): The language model's tokenizer, item tokens included.
        item_trie ([`ItemTrie`]): The items as token sequences.
        notes (`list[str]`): What a reader of the report has to know about the data.
        model (`str`, *optional*): The pretrained model whose tokenizer this is.
    """

    name: str
    options: DataOptions
    interactions: Interactions
    catalog: ItemCatalog
    tokenizer: PreTrainedTokenizerBase
    item_trie: ItemTrie
    notes: list[str] = field(default_factory=list)
    model: str | None = None

    @cached_property
    def splits(self) -> Splits:
        """Training sequences, and the questions of validation and test."""
        return split(self.interactions, self.options)

    @cached_property
    def renderer(self) -> PromptRenderer:
        """Turns histories into prompts, the same in training and afterwards."""
        options, whole = self.options, self.options.rows == "sequences"
        if whole and options.conversational:
            raise ValueError(
                "a conversation asks one item, a row of --rows sequences many; give --rows targets with "
                "--conversational"
            )
        kwargs = mapping("chat_template_kwargs", options.chat_template_kwargs, '{"enable_thinking": false}')
        return PromptRenderer(
            self.catalog,
            template=options.template,
            # In a row of several titles each must end as the trie's items do.
            separator=self.tokenizer.eos_token if whole and self.item_trie.end_token_id is not None else None,
            max_history=options.max_history,
            conversational=options.conversational,
            system_prompt=options.system_prompt,
            chat_template_kwargs=kwargs or None,
            tokenizer=self.tokenizer,
            max_length=options.max_length,
        )

    def training_rows(self) -> Dataset:
        """Rows to train on."""
        options, train = self.options, self.splits.train
        whole, seed = options.rows == "sequences", options.prompt_seed
        if options.tasks:
            tasks = mapping("tasks", options.tasks, _TASKS_EXAMPLE)
            return task_dataset(train, self.renderer, tasks, whole_sequences=whole, seed=seed)
        if whole:
            return sequence_dataset(train, self.renderer, seed=seed)
        return next_item_dataset(self.splits.train_examples(), self.renderer, seed=seed)

    def questions(self, examples: Sequence[NextItemExample]) -> Dataset:
        """Prompts and targets of questions, such as `splits.test`."""
        return next_item_dataset(examples, self.renderer)

    def describe(self, item: str) -> str:
        """What a reader knows an item by: its title where there is one."""
        titles = self.catalog.titles
        return f"{item} {self.catalog.text(item)}" if titles is None else titles[self.catalog.item_ids.index(item)]

    def max_length(self) -> int:
        """A length in tokens that no row and no prompt with its target exceeds."""
        options, renderer = self.options, self.renderer
        if options.max_length is not None:
            return options.max_length
        tokenizer, kwargs = self.tokenizer, renderer.chat_template_kwargs
        # Candidates for the item of most tokens as it stands in a prompt
        items = [str(item) for item in self.item_trie.item_ids]
        by_text = max(items, key=lambda item: len(self.catalog.text(item)))
        by_tokens = max(items, key=lambda item: len(self.item_trie.sequence(item)))
        prompts = [
            renderer.as_prompt(renderer.render([item] * options.max_history, variant))
            for variant in range(len(renderer.templates))
            for item in (by_text, by_tokens)
        ]
        longest = max(map(len, tokenize_prompts(tokenizer, prompts, kwargs))) + self.item_trie.depth
        if options.conversational:
            completions = [renderer.as_completion(self.catalog.text(by_tokens))] * len(prompts)
            longest = max(map(len, tokenize_rows(tokenizer, prompts, completions, kwargs)))
        if options.tasks:
            rows = self.training_rows()
            lengths = map(len, tokenize_rows(tokenizer, rows["prompt"][:], rows["completion"][:], kwargs))
            longest = max(longest, *lengths)
        return longest + 2

    def summary(self) -> DataSummary:
        """The `data` entry of `results.json`."""
        return DataSummary(
            name=self.name,
            users=len(self.interactions),
            items=len(self.catalog),
            interactions=self.interactions.num_interactions,
            test_users=len({example.user for example in self.splits.test}),
            notes=self.notes,
        )

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
        """
        Read what [`PreparedData.save`] wrote.

        Raises:
            `InputError`: where the folder holds no prepared data, or data of another version.
        """
        from transformers import AutoTokenizer

        directory = Path(directory)
        with input_errors():
            if not (directory / "prepare.json").is_file():
                raise FileNotFoundError(f"{directory} holds no prepare.json; write it with `ilrec prepare` first")
            about = json.loads((directory / "prepare.json").read_text())
            if not isinstance(about, dict) or about.get("format") != FORMAT:
                raise ValueError(f"{directory} was written by another version; run `ilrec prepare` again")
            known = {option.name for option in dataclasses.fields(DataOptions)}
            if missing := {"name", "notes", "model", "options"} - about.keys() | about["options"].keys() - known:
                raise ValueError(f"{directory}/prepare.json was changed ({', '.join(sorted(missing))}); run it again")
            return cls(
                name=about["name"],
                options=DataOptions(**about["options"]),
                interactions=Interactions.load(directory / "interactions"),
                catalog=ItemCatalog.load(directory),
                tokenizer=AutoTokenizer.from_pretrained(directory / "tokenizer"),
                item_trie=ItemTrie.load(directory),
                notes=about["notes"],
                model=about["model"],
            )


def split(interactions: Interactions, options: DataOptions) -> Splits:
    """Splits by the options' rule, with the validation items in training where the options say so."""
    if options.split == "global_time":
        splits = interactions.global_time(
            moment(options.validation_start),
            moment(options.test_start),
            validation_share=options.validation_share,
            test_share=options.test_share,
        )
    else:
        splits = interactions.leave_one_out(short_users="train")
    if options.train_on_validation:
        splits = splits.with_validation_in_training()
    share, seed = options.train_users_share, options.train_users_seed
    return splits if share == 1 else splits.with_train_users(share, seed)


def moment(text: str | None) -> float | str | None:
    """A date as it is, a number as one; a YAML file gives either as it is."""
    if text is None:
        return None
    text = str(text)
    try:
        return text if "-" in text[1:] else float(text)
    except ValueError:
        return text
