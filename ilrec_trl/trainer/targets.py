"""Target items: the tokens of a row that belong to each item, and the positions of a batch that predict them."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from datasets import Dataset, IterableDataset
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging
from trl import SFTConfig, pack_dataset

from ..items.item_trie import ItemTrie
from ..items.trie_arrays import LevelVocabulary
from .cross_layer_forward import PositionGroup
from .data_collator import as_list


logger = logging.get_logger(__name__)


@dataclass
class TargetMarker:
    """
    Marks the target items of the rows of a prepared data set, called by `datasets.Dataset.map` with indices.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): Tokenizer of the model.
        item_trie ([`ItemTrie`], *optional*): The catalogue. Without it a row's target is all of its completion.
        dataset_name (`str`): Name of the data set in error messages.
        templated (`bool`): Whether a chat template put tokens of its own around the items.
        max_length (`int`, *optional*): Length in tokens that rows are truncated to. A row that would lose tokens of an
            item is refused; without a catalogue a cut completion is only warned of.
        truncation_mode (`str`, *optional*, defaults to `"keep_start"`): Which end of a long row is kept.
        needs_history (`bool`, *optional*, defaults to `False`): Whether a reward function reads the histories. Then
            none may be empty; `None` asks for no reward.
    """

    tokenizer: PreTrainedTokenizerBase
    item_trie: ItemTrie | None
    dataset_name: str
    templated: bool = False
    max_length: int | None = None
    truncation_mode: str = "keep_start"
    needs_history: bool = False

    def __call__(self, example: dict[str, Any], index: int) -> dict[str, list[int]]:
        """
        Returns:
            `dict` with `target_items`: one number for each token that truncation leaves, see
            [`DataCollatorForItemCompletion`]. With a trie all are 0 if the row's `item` is `None`: such a row is plain
            text, and takes part in cross-entropy alone.

        Raises:
            `ValueError`: if truncation cuts a target, the completion is no item of the trie or not the row's `item`,
                or the history holds an unknown item.
        """
        example = {name: as_list(value) for name, value in example.items()}
        row = f"{self.dataset_name} row {index}"
        # An explicit None: a completion that is no item, such as an item's description
        is_text = self.item_trie is not None and "item" in example and example["item"] is None
        if self.item_trie is not None:
            self._check_items(example, row, is_text)
        completion = _completion_positions(example)
        if not completion:
            raise ValueError(
                f"{row}: the completion has no tokens with a label, so there is no target item to learn. Remove the "
                "row or give it a completion."
            )
        self._check_truncation(example, completion, row)
        numbers = [0] * len(example["input_ids"])
        for position, number in [] if is_text else self._number(example, completion, row):
            numbers[position] = number
        if self.max_length is not None:
            keep_end = self.truncation_mode == "keep_end"
            numbers = numbers[-self.max_length :] if keep_end else numbers[: self.max_length]
        return {"target_items": numbers}

    def _check_items(self, example: dict[str, Any], row: str, is_text: bool) -> None:
        history = example.get("history")
        if self.needs_history and not is_text and history is not None and not history:
            raise ValueError(
                f"{row}: the history is {history!r}, but `reward_func` scores items given one. Remove the row, set "
                "its `history` to None to train it without rewards, or leave `reward_func` out."
            )
        unknown = [item for item in history or [] if item not in self.item_trie]
        if unknown:
            raise ValueError(
                f"{row}: the history holds {unknown[0]!r} ({type(unknown[0]).__name__}), which is not an item of "
                f"`item_trie` (ids such as {self.item_trie.item_ids[0]!r}). Add the item to the catalogue, or remove "
                "it from the history."
            )

    def _check_truncation(self, example: dict[str, Any], completion: list[int], row: str) -> None:
        length = len(example["input_ids"])
        if self.max_length is None or length <= self.max_length:
            return
        kept_from = length - self.max_length
        cut = completion[0] < kept_from if self.truncation_mode == "keep_end" else completion[-1] >= self.max_length
        if cut and self.item_trie is None:
            # A text may be learnt in part, as SFTTrainer does; a part of an item is another item, or none
            logger.warning_once(
                f"Truncation to `max_length={self.max_length}` ({self.truncation_mode}) cuts completions of the "
                f"{self.dataset_name} data set, and only what is left of them is learnt. Set a larger `max_length` if "
                "they are items."
            )
        elif cut:
            target = self.tokenizer.decode([example["input_ids"][position] for position in completion])
            raise ValueError(
                f"{row}: the row has {length} tokens, and truncating it to `max_length={self.max_length}` "
                f"({self.truncation_mode}) would cut the target {target[-80:]!r}. Shorten the history in the prompt, "
                f"or set `max_length` to at least {length}."
            )

    def _number(self, example: dict[str, Any], completion: list[int], row: str) -> list[tuple[int, int]]:
        tokens = [example["input_ids"][position] for position in completion]
        if self.item_trie is None:
            return [
                (p, -1 if t == self.tokenizer.eos_token_id else 1) for p, t in zip(completion, tokens, strict=True)
            ]
        items = example.get("item")
        several = isinstance(items, list)
        expected = None if items is None else [self._sequence(item, row) for item in (items if several else [items])]
        spans = self._find_expected(tokens, expected) if expected is not None else self._find_items(tokens)
        if spans is None:
            self._refuse(tokens, items, row)
        if len(spans) > 1 and not several and "history" in example:
            raise ValueError(
                f"{row}: the completion holds {len(spans)} items, each of which has a history of its own. Give `item` "
                f"as a list of the {len(spans)} ids, or leave the `history` column out."
            )
        if self.templated and spans[0][0]:
            logger.warning_once(
                f"The chat template puts {self.tokenizer.decode(tokens[: spans[0][0]])!r} between the prompt and the "
                "item. Prompts to recommend for do not end with it, so they differ from those of training. Give the "
                "rows a `chat_template_kwargs` column with which the template leaves that out or puts it into the "
                "prompt (for Qwen3 `{'enable_thinking': False}`), and pass the same to `recommend` and "
                "`RecommendationEvaluator`."
            )
        numbered = []
        for number, (start, end) in enumerate(spans, 1):
            for offset in range(start, end):
                is_end = tokens[offset] == self.tokenizer.eos_token_id and offset == end - 1
                numbered.append((completion[offset], -number if is_end else number))
        last = spans[-1][1]
        if last < len(tokens) and tokens[last] == self.tokenizer.eos_token_id:
            numbered.append((completion[last], -len(spans)))
        return numbered

    def _sequence(self, item: Any, row: str) -> list[int]:
        if item not in self.item_trie:
            raise ValueError(
                f"{row}: the target item {item!r} ({type(item).__name__}) is not an item of `item_trie` (ids such as "
                f"{self.item_trie.item_ids[0]!r}). Build the trie from the catalogue that the data set was made with."
            )
        return self.item_trie.sequence(item)

    def _find_expected(self, tokens: list[int], sequences: list[list[int]]) -> list[tuple[int, int]] | None:
        """Spans of the expected sequences, one after the other; tokens between two items are separators."""
        spans: list[tuple[int, int]] = []
        start = 0
        for sequence in sequences:
            places = range(start, len(tokens) - len(sequence) + 1)
            if not (spans or self.templated):
                places = places[:1]
            place = next((p for p in places if tokens[p : p + len(sequence)] == sequence), None)
            if place is None:
                return None
            start = place + len(sequence)
            spans.append((place, start))
        return spans if self._may_end(tokens[start:]) else None

    def _find_items(self, tokens: list[int]) -> list[tuple[int, int]] | None:
        """Spans of the items that the completion is made of, longest match first."""
        spans: list[tuple[int, int]] = []
        start = 0
        if self.templated:
            start = next((p for p in range(len(tokens)) if self.item_trie.match(tokens[p:])), 0)
        while found := self.item_trie.match(tokens[start:]):
            spans.append((start, start + found[1]))
            start += found[1]
        return spans if spans and self._may_end(tokens[start:]) else None

    def _may_end(self, rest: list[int]) -> bool:
        """Whether these tokens may follow the last item: the end-of-sequence token, or the chat template's own."""
        return self.templated or rest in ([], [self.tokenizer.eos_token_id])

    def _refuse(self, tokens: list[int], items: Any, row: str) -> None:
        text = self.tokenizer.decode(tokens)
        wanted = "an item of `item_trie`" if items is None else f"the row's item {items!r} in `item_trie`"
        raise ValueError(
            f"{row}: the completion {text[:200]!r} (tokens {tokens[:32]}) is not {wanted}. Completions and trie must "
            "come from one catalogue and one tokenizer, and the prompt must end where a token ends (for example on a "
            "new line). To train without a catalogue, leave `item_trie` out."
        )


def _completion_positions(example: dict[str, Any]) -> list[int]:
    mask = example.get("completion_mask")
    if mask is not None:
        return [position for position, bit in enumerate(mask) if bit]
    return [position for position, label in enumerate(example["labels"]) if label != -100]


def pack_with_targets(dataset: Dataset | IterableDataset, args: SFTConfig) -> Dataset | IterableDataset:
    """
    Pack rows with `input_ids`, `labels` and `target_items` as [`~trl.SFTTrainer`] does, in the same order.

    The `target_items` of a packed row are numbered from 1. If a strategy cuts an item, its head is a target, since its
    prefixes are known, and its tail is plain text.
    """
    if args.max_length is None:
        raise ValueError(
            "When packing is enabled, `max_length` can't be `None`: packed rows are filled up to it. Set it to a "
            "number of tokens, or set `packing=False`."
        )
    dataset = dataset.map(_to_places).select_columns(["input_ids", "labels", "target_items"])
    if args.shuffle_dataset:
        dataset = dataset.shuffle(seed=args.seed)
    dataset = pack_dataset(dataset, args.max_length, args.packing_strategy).map(_to_numbers)
    return dataset.shuffle(seed=args.seed) if args.shuffle_dataset else dataset


def _to_places(example: dict[str, Any]) -> dict[str, list[int]]:
    """
    Place of each target token in its item, from 1; -1 on ends; 0 elsewhere. Rows may then be cut anywhere. A row is
    cut to the length of its target numbers.
    """
    places: list[int] = []
    last = 0
    for number in as_list(example["target_items"]):
        follows = number > 0 and number == last
        places.append(places[-1] + 1 if follows else (number > 0) - (number < 0))
        last = number
    row = {name: as_list(example[name])[: len(places)] for name in ("input_ids", "labels")}
    return {**row, "target_items": places}


def _to_numbers(example: dict[str, Any]) -> dict[str, list[int]]:
    """Number the items of a packed row; a token whose item started in another row belongs to none."""
    numbers: list[int] = []
    count = last = 0
    for place in as_list(example["target_items"]):
        if place == 1:
            count += 1
            numbers.append(count)
        elif place == 0 or last <= 0:
            numbers.append(0)
        elif place == -1:
            numbers.append(-count)
        else:
            numbers.append(count if place == last + 1 else 0)
        last = place if numbers[-1] else 0
    return {"target_items": numbers}


@dataclass
class TargetPositions:
    """
    The N target positions of a batch; at position `t` token `t + 1` is predicted. They are sorted by the group of
    their level, and within a group in row-major order.

    Args:
        groups (`list[PositionGroup]`): The positions, group by group. The last group holds the positions whose next
            token has a label but belongs to no target.
        target_ids, token_indices (`torch.Tensor` of shape `(N,)`): The next tokens, and their places among the tokens
            of their group.
        items (`torch.Tensor` of shape `(N,)`): 0-based number of the target item in the batch.
        nodes (`torch.Tensor` of shape `(N,)`, *optional*): Trie node of each position's prefix, with an item trie.
        edge_bounds (`list[int]`, *optional*): With an item trie: of the continuations of all positions one after the
            other, those of position `n` are the ones from `edge_bounds[n]` to `edge_bounds[n + 1] - 1`.
        vocabulary ([`LevelVocabulary`], *optional*): Tokens of each group; without it there is one group of all
            tokens.
    """

    groups: list[PositionGroup]
    target_ids: Tensor
    token_indices: Tensor
    items: Tensor
    nodes: Tensor | None = None
    edge_bounds: list[int] | None = None
    vocabulary: LevelVocabulary | None = None

    @classmethod
    def from_batch(
        cls,
        input_ids: Tensor,
        labels: Tensor,
        target_items: Tensor | None,
        item_trie: ItemTrie | None,
        by_level: bool = False,
    ) -> TargetPositions:
        """
        On an accelerator this waits for the device, since sizes must be known on the host; the forward pass and the
        loss then need not.

        Args:
            input_ids, labels (`torch.Tensor` of shape `(B, S)`): Tokens and labels of the batch.
            target_items (`torch.Tensor` of shape `(B, S)`, *optional*): Numbers as [`DataCollatorForItemCompletion`]
                gives them; by default every token with a label is one.
            item_trie ([`ItemTrie`], *optional*): The catalogue.
            by_level (`bool`, *optional*, defaults to `False`): Whether to group positions by the [`LevelVocabulary`]
                of the catalogue.

        Raises:
            `ValueError`: if a target token does not continue its item in the catalogue.
        """
        labelled = labels != -100  # (B, S)
        target_items = labelled.long() if target_items is None else target_items
        if item_trie is not None and item_trie.end_token_id is None:
            target_items = target_items.clamp(min=0)  # an end that is no part of the items is plain text
        offsets = token_offsets(target_items)  # (B, S)
        vocabulary = item_trie.to(labels.device).arrays.level_vocabulary if by_level else None
        numbers = torch.zeros_like(labels)  # (B, S), of the group
        if vocabulary is not None:
            numbers = vocabulary.group_of_level[offsets.clamp(max=item_trie.depth - 1)]
        tokens: list[Tensor | None] = [None] if vocabulary is None else [*vocabulary.tokens]
        last = len(tokens)
        numbers = torch.where(labelled, torch.where(target_items != 0, numbers, last), last + 1)
        # The first token of a row is never predicted, and TRL masks that of each sequence of a padding-free row. Both
        # still come before the tokens that follow them in their item
        groups, places = _group_positions(numbers[:, 1:], [*tokens, None])
        target_ids = labels.flatten()[places]
        targets = cls(groups, target_ids, target_ids, target_items.flatten()[places].abs() - 1, vocabulary=vocabulary)
        if item_trie is not None:
            targets._locate(item_trie, target_prefixes(input_ids, offsets, places, item_trie.depth))
        if vocabulary is not None:
            targets.token_indices = vocabulary.index_of_token[target_ids]
        return targets

    def _locate(self, item_trie: ItemTrie, prefixes: Tensor) -> None:
        arrays = item_trie.to(prefixes.device).arrays
        self.nodes = arrays.descend(prefixes)  # (N,)
        strays = (arrays.child(self.nodes, self.target_ids) < 0).sum()
        *counts, num_strays = torch.cat([arrays.child_counts(self.nodes), strays[None]]).tolist()
        if num_strays:
            raise ValueError(
                f"{num_strays} of {len(self.nodes)} target tokens of the batch are in no item of `item_trie`. Let the "
                "trainer prepare the data set (no `skip_prepare_dataset`), or give its rows a `target_items` "
                "column that numbers their items, see `DataCollatorForItemCompletion`."
            )
        self.edge_bounds = [0, *accumulate(counts)]

    def continuations(self, item_trie: ItemTrie, block: slice) -> tuple[Tensor, Tensor]:
        """Position in the block, and token index, of each continuation of a block of positions; both `(E,)`."""
        arrays = item_trie.to(self.nodes.device).arrays
        num_edges = self.edge_bounds[block.stop] - self.edge_bounds[block.start]
        positions, tokens, _ = arrays.children(self.nodes[block], num_edges)
        return positions, tokens if self.vocabulary is None else self.vocabulary.index_of_token[tokens]


def _group_positions(numbers: Tensor, tokens: list[Tensor | None]) -> tuple[list[PositionGroup], Tensor]:
    """
    Groups of the positions `(B, S - 1)` from the number of each one's group, and the place of each target's next token
    in the flattened `(B, S)`. The last group holds no targets; numbers beyond it belong to none.
    """
    length = numbers.size(1)
    sizes = (numbers.flatten() == torch.arange(len(tokens), device=numbers.device)[:, None]).sum(1).tolist()
    order = numbers.flatten().argsort(stable=True)[: sum(sizes)]  # (M,)
    rows, positions = order // max(length, 1), order % max(length, 1)
    groups = [
        PositionGroup(row, position, is_target=number < len(tokens) - 1, tokens=tokens[number])
        for number, (row, position) in enumerate(
            zip(rows.split(sizes), (positions - length).split(sizes), strict=True)
        )
    ]
    return groups, (order + rows + 1)[: sum(sizes[:-1])]


def token_offsets(target_items: Tensor) -> Tensor:
    """For each token the number of tokens of its own item before it, `(B, S)`, from `target_items` `(B, S)`."""
    numbers = target_items.abs()  # (B, S)
    positions = torch.arange(numbers.size(1), device=numbers.device).expand_as(numbers)
    starts = torch.ones_like(numbers, dtype=torch.bool)
    starts[:, 1:] = numbers[:, 1:] != numbers[:, :-1]
    return positions - torch.where(starts, positions, 0).cummax(1).values


def target_prefixes(input_ids: Tensor, offsets: Tensor, places: Tensor, depth: int) -> Tensor:
    """
    The tokens of its own item before each of the tokens at `places` `(N,)` of the flattened `input_ids` `(B, S)`,
    whose [`token_offsets`] are `offsets`: `(N, depth)`, padded with -1 at the end. No item is longer than `depth`.
    """
    offsets = offsets.flatten()[places][:, None]  # (N, 1)
    steps = torch.arange(depth, device=places.device)  # (depth,)
    first = places[:, None] - offsets  # (N, 1)
    tokens = input_ids.flatten()[(first + steps).clamp(max=input_ids.numel() - 1)]  # (N, depth)
    return tokens.masked_fill(steps >= offsets, -1)
