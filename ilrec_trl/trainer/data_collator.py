"""The collator that numbers the tokens of each target item."""

from __future__ import annotations

from collections import UserList
from dataclasses import dataclass
from typing import Any

import torch

from ._trl import DataCollatorForLanguageModeling, pad


#: Columns beside the tokens that reward functions read; a row's `item` may be a list, one entry a target.
REWARD_COLUMNS = ("history", "item", "user")


class RewardColumn(UserList):
    """A list in which the trainer and accelerate do not look for tensors to move to a device."""


def as_list(value: Any) -> Any:
    """A list also from data sets of format numpy or torch, which give arrays."""
    return value.tolist() if hasattr(value, "tolist") else value


@dataclass
class DataCollatorForItemCompletion(DataCollatorForLanguageModeling):
    """
    TRL's collator for language modeling, which also numbers the tokens of each target item.

    Besides the keys of [`~trl.trainer.sft_trainer.DataCollatorForLanguageModeling`] the batch holds:

    - `"target_items"` (`torch.Tensor` of shape `(B, S)`): 0 on tokens of no target item, n on the tokens of the
      batch's n-th target item (from 1, over all rows in order), and -n on the end-of-sequence token that closes it.
    - `"history"` (`list[list]`, one entry a target item): the items before that target, for rows that have a `history`
      column. In a row of several targets, those before a target belong to its history.
    - `"item"` and `"user"` (`list`, one entry a target item): for rows that have these columns.

    A row whose `item` is `None` and whose `target_items` are all 0 is plain text and has no entry in these lists.

    A row names its target tokens in a `target_items` list of its own, numbered from 1, which [`ILRecTrainer`] adds
    during preparation. Without it all tokens that have a label are one target.

    Args:
        eos_token_id (`int`, *optional*): End-of-sequence token. In rows without a `target_items` list it closes the
            target.
        pad_token_id, padding_free, return_position_ids, pad_to_multiple_of, return_tensors:
            See [`~trl.trainer.sft_trainer.DataCollatorForLanguageModeling`].

    Example:

    ```python
    >>> from ilrec_trl import DataCollatorForItemCompletion

    >>> collator = DataCollatorForItemCompletion(pad_token_id=0, eos_token_id=9)
    >>> batch = collator(
    ...     [
    ...         {"input_ids": [1, 2, 3, 9], "labels": [-100, 2, 3, 9], "history": ["a"], "item": "b"},
    ...         {"input_ids": [4, 5], "labels": [-100, 5], "history": ["c"], "item": "d"},
    ...     ]
    ... )
    >>> batch["target_items"].tolist()
    [[0, 1, 1, -1], [0, 2, 0, 0]]
    >>> batch["history"], batch["item"]
    ([['a'], ['c']], ['b', 'd'])

    ```
    """

    eos_token_id: int | None = None

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        output = super().torch_call(examples)
        rows: list[torch.Tensor] = []
        counts: list[int] = []
        for example in examples:
            numbers = torch.tensor(self._row_targets(example))  # (S,)
            rows.append(numbers + numbers.sign() * sum(counts))
            counts.append(self._count_targets(example, numbers))
        if self.padding_free:
            rows = [torch.cat(rows)]
        target_items = pad(rows, padding_value=0, padding_side="right", pad_to_multiple_of=self.pad_to_multiple_of)
        output["target_items"] = target_items
        for column in REWARD_COLUMNS:
            if column in examples[0]:
                pairs = zip(examples, counts, strict=True)
                values = (value for example, n in pairs if n for value in self._per_target(example, column))
                output[column] = RewardColumn(values)
        return output

    def _row_targets(self, example: dict[str, Any]) -> list[int]:
        if "target_items" in example:
            return as_list(example["target_items"])
        labels = example.get("labels", example["input_ids"])
        return [0 if label == -100 else -1 if label == self.eos_token_id else 1 for label in labels]

    @staticmethod
    def _count_targets(example: dict[str, Any], numbers: torch.Tensor) -> int:
        items = as_list(example.get("item"))
        if isinstance(items, list):
            return len(items)
        is_text = "item" in example and items is None and not numbers.any()
        return 0 if is_text else max(int(numbers.abs().max()), 1)

    @classmethod
    def _per_target(cls, example: dict[str, Any], column: str) -> list[Any]:
        """The value of a column for each target item of a row."""
        items, value = as_list(example.get("item")), as_list(example[column])
        if not isinstance(items, list):
            return [value]
        if column == "history" and isinstance(value, list):
            return [value + items[:position] for position in range(len(items))]
        return value if column == "item" else [value] * len(items)
