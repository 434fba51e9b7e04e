"""The questions of an evaluation: what each user is asked, and the item that is the answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..items.item_trie import ItemId
from .prompt_batches import Prompt


if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class Questions:
    """
    The columns of a data set that evaluation reads, row by row.

    Attributes:
        prompts (`list[str]` or `list[list[dict]]`): Prompts, or conversations.
        items (`list[str | int]`): Target ids.
        users (`list[str]`): User ids, or row numbers where the data set has no column `user`.
        histories (`list[list[str | int]]`, *optional*): Items not to be recommended.
    """

    prompts: list[Prompt]
    items: list[Any]
    users: list[str]
    histories: list[list[ItemId]] | None

    @classmethod
    def read(cls, dataset: Dataset, with_histories: bool) -> Questions:
        """Read a data set, or refuse it with the remedy."""
        needed = {"prompt", "item"} | ({"history"} if with_histories else set())
        if missing := needed - set(dataset.column_names):
            raise ValueError(
                f"the data set has columns {dataset.column_names}, but evaluation needs {sorted(missing)} as well; "
                "build it with `next_item_dataset`"
            )
        if not len(dataset):
            raise ValueError("the data set has no row, so there is no user to evaluate")
        if isinstance(dataset[0]["item"], list):
            raise ValueError(
                f"`item` of the first row is a list of {len(dataset[0]['item'])} ids, but a row to evaluate asks for "
                "one item; build the data set with `next_item_dataset`"
            )
        users = map(str, dataset["user"] if "user" in dataset.column_names else range(len(dataset)))
        histories = list(dataset["history"]) if with_histories else None
        return cls(list(dataset["prompt"]), list(dataset["item"]), list(users), histories)

    def select(self, rows: list[int]) -> Questions:
        """The questions of some rows."""
        return Questions(
            [self.prompts[row] for row in rows],
            [self.items[row] for row in rows],
            [self.users[row] for row in rows],
            self.histories and [self.histories[row] for row in rows],
        )

    def batches(self, batch_size: int) -> list[list[int]]:
        """
        Rows in batches. Prompts of like length share one, so that little of it is padding; the longest come first, so
        that memory runs out early or never.
        """
        order = sorted(range(len(self.prompts)), key=lambda row: -_length(self.prompts[row]))
        return [order[first : first + batch_size] for first in range(0, len(order), batch_size)]


def _length(prompt: Prompt) -> int:
    return len(prompt) if isinstance(prompt, str) else sum(len(message["content"]) for message in prompt)
