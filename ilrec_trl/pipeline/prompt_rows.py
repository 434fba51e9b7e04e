"""Prompts and training rows by the options of a run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..data.prompt_lengths import tokenize_rows
from ..data.prompt_renderer import PromptRenderer
from ..data.prompts import next_item_dataset, sequence_dataset
from ..data.tasks import task_dataset
from .options import DataOptions, mapping


if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

    from ..data.splits import Splits
    from ..items.item_catalog import ItemCatalog
    from ..items.item_trie import ItemTrie

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
    longest = max(map(len, tokenize_rows(tokenizer, prompts, None, kwargs))) + item_trie.depth
    if options.conversational:
        completions = [renderer.as_completion(catalog.text(by_tokens))] * len(prompts)
        longest = max(map(len, tokenize_rows(tokenizer, prompts, completions, kwargs)))
    if options.tasks:
        rows = training_rows(options, renderer, splits)
        longest = max(longest, *map(len, tokenize_rows(tokenizer, rows["prompt"][:], rows["completion"][:], kwargs)))
    return longest + 2
