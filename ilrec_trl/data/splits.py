"""Training sequences and the questions asked in validation and test."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import NamedTuple


class UserSequence(NamedTuple):
    """
    The training items of one user.

    Attributes:
        user (`str`): User id.
        items (`list[str]`): Item ids, oldest first.
    """

    user: str
    items: list[str]


class NextItemExample(NamedTuple):
    """
    One question to a recommender: which item follows this history?

    Attributes:
        user (`str`): User id.
        history (`list[str]`): Item ids before the target, oldest first; never empty.
        item (`str`): Item id of the target.
    """

    user: str
    history: list[str]
    item: str


@dataclass(frozen=True)
class Splits:
    """
    Training sequences and the questions asked in validation and test.

    Args:
        train (`list[UserSequence]`): What may be trained on, one entry a user.
        validation (`list[NextItemExample]`): For choosing settings; histories hold training items only under
            leave-one-out.
        test (`list[NextItemExample]`): For the final figures; histories include the validation items.
        users_without_test (`list[str]`, *optional*): Users of whom nothing is asked in test: too short for
            leave-one-out, or without an interaction after the test begins.
        without_history (`list[tuple[str, str]]`, *optional*): (user, item) pairs of validation and test that no
            history precedes, so that no question can be asked. Only a split by time has any.
    """

    train: list[UserSequence]
    validation: list[NextItemExample]
    test: list[NextItemExample]
    users_without_test: list[str] = field(default_factory=list)
    without_history: list[tuple[str, str]] = field(default_factory=list)

    def with_validation_in_training(self) -> Splits:
        """
        The same questions, with each user's validation items added to the end of the training sequence.

        For a last fit with settings that were chosen before: from then on the validation questions measure nothing.
        """
        sequences = {user: list(items) for user, items in self.train}
        for user, _, item in self.validation:
            sequences.setdefault(user, []).append(item)
        return dataclasses.replace(self, train=[UserSequence(user, items) for user, items in sequences.items()])

    def train_examples(self) -> list[NextItemExample]:
        """Every training item after a user's first, each with all the items before it."""
        return [
            NextItemExample(user, items[:position], items[position])
            for user, items in self.train
            for position in range(1, len(items))
        ]
