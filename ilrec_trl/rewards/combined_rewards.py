"""Rewards made of several others: ensembles, and cross-fitting, where no scorer was trained on its user."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from .rewards import RewardFunc


class EnsembleReward:
    """
    Weighted mean of the probabilities that several reward functions give.

    Each function's scores are first divided by their sum, so that scales do not matter. A function whose scores of a
    history are all 0 has no weight there.

    Args:
        reward_funcs (`list` of [`RewardFunc`]): Functions that score the same items in the same order.
        weights (`list[float]`, *optional*): Non-negative weight of each, of any sum. By default all are equal.

    Raises:
        ValueError: For no function, another number of weights than functions, or weights that are negative or all 0.

    Example:

    ```python
    >>> first = lambda histories, **columns: torch.tensor([[1.0, 3.0]])
    >>> second = lambda histories, **columns: torch.tensor([[0.5, 0.5]])
    >>> EnsembleReward([first, second])([["guitar"]]).tolist()
    [[0.375, 0.625]]

    ```
    """

    def __init__(self, reward_funcs: Sequence[RewardFunc], weights: Sequence[float] | None = None) -> None:
        weights = [1.0] * len(reward_funcs) if weights is None else list(weights)
        if not reward_funcs or len(weights) != len(reward_funcs):
            raise ValueError(
                f"Got {len(reward_funcs)} reward functions and {len(weights)} weights; expected one function or more "
                "and one weight for each."
            )
        if min(weights) < 0 or not 0 < sum(weights) < float("inf"):
            raise ValueError(f"Got weights {weights}; expected numbers of at least 0, one of them above.")
        self.reward_funcs = list(reward_funcs)
        self.weights = weights

    @property
    def is_fixed(self) -> bool:
        """Whether all functions are, see [`RewardFunc`]."""
        return all(getattr(reward_func, "is_fixed", False) for reward_func in self.reward_funcs)

    def __call__(self, histories: list[list[str]], **columns: Any) -> torch.Tensor:
        """Scores `(B, I)`; each row sums to 1, or is 0 if all functions give 0."""
        total: torch.Tensor | None = None  # (B, I)
        for reward_func, weight in zip(self.reward_funcs, self.weights, strict=True):
            scores = reward_func(histories, **columns)
            part = weight * scores / scores.sum(-1, keepdim=True).clamp(min=torch.finfo(scores.dtype).tiny)
            total = part if total is None else total + part.to(total.device)
        assert total is not None
        return total / total.sum(-1, keepdim=True).clamp(min=torch.finfo(total.dtype).tiny)


class CrossFittedReward:
    """
    Scores each user by the reward function that was fitted without that user.

    A model scores its own training targets too high. Here users are split into folds, one function is fitted without
    each fold, and each user is scored by a model that was not trained on that user. Users outside all folds get the
    mean of all functions ([`EnsembleReward`]).

    Args:
        reward_funcs (`list` of [`RewardFunc`]): One for each fold, fitted without the users of that fold. All score
            the same items in the same order.
        fold_of (`dict[str, int]`): Fold of each user that any of the functions was fitted on.
        user_column (`str`, *optional*, defaults to `"user"`): Column of the data set with the user's id.

    Raises:
        ValueError: For fewer than two folds, or a user whose fold has no function.

    Example:

    ```python
    >>> without_ann = lambda histories, **columns: torch.tensor([[1.0, 0.0]] * len(histories))
    >>> without_bob = lambda histories, **columns: torch.tensor([[0.0, 1.0]] * len(histories))
    >>> reward = CrossFittedReward([without_ann, without_bob], {"ann": 0, "bob": 1})
    >>> reward([["guitar"]] * 3, user=["bob", "ann", "cem"]).tolist()
    [[0.0, 1.0], [1.0, 0.0], [0.5, 0.5]]

    ```
    """

    def __init__(
        self, reward_funcs: Sequence[RewardFunc], fold_of: Mapping[str, int], user_column: str = "user"
    ) -> None:
        if len(reward_funcs) < 2:
            raise ValueError(f"Got {len(reward_funcs)} reward functions; cross-fitting needs 2 folds or more.")
        if wrong := [user for user, fold in fold_of.items() if fold not in range(len(reward_funcs))]:
            raise ValueError(
                f"User {wrong[0]!r} is in fold {fold_of[wrong[0]]}, but there are {len(reward_funcs)} reward "
                "functions. Pass one for each fold; folds are counted from 0."
            )
        self.reward_funcs = list(reward_funcs)
        self.fold_of = {str(user): fold for user, fold in fold_of.items()}
        self.user_column = user_column
        self.mean = EnsembleReward(reward_funcs)

    @property
    def is_fixed(self) -> bool:
        """Whether all functions are, see [`RewardFunc`]."""
        return self.mean.is_fixed

    def __call__(self, histories: list[list[str]], **columns: Any) -> torch.Tensor:
        """Scores `(B, I)`; `ValueError` without the user column."""
        if columns.get(self.user_column) is None:
            raise ValueError(
                f"The scorer of a row is chosen by the column {self.user_column!r}, but got {sorted(columns)}. Add it "
                "to the data set, or name another column as `user_column`."
            )
        rows_of: dict[int | None, list[int]] = {}
        for row, user in enumerate(columns[self.user_column]):
            rows_of.setdefault(self.fold_of.get(str(user)), []).append(row)
        parts = []
        for fold, rows in rows_of.items():
            scorer = self.mean if fold is None else self.reward_funcs[fold]
            chosen = {name: [values[row] for row in rows] for name, values in columns.items()}
            parts.append(scorer([histories[row] for row in rows], **chosen))
        scores = torch.cat([part.to(parts[0].device) for part in parts])  # (B, I), fold by fold
        order = torch.tensor([row for rows in rows_of.values() for row in rows]).argsort()
        return scores[order.to(scores.device)]
