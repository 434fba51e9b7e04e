"""Item scores for collaborative reward regularisation: the protocol, from SASRec, and from a table."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from ..items.trie_arrays import check_item_scores
from .sasrec import SASRecModel


if TYPE_CHECKING:
    from ..items.item_trie import ItemTrie


class RewardFunc(Protocol):
    """
    What [`ILRecTrainer`] takes as `reward_func`: any callable of this signature.

    A function whose attribute `is_fixed` is true gives the same scores for the same history and columns throughout a
    training. The trainer then calls it once for each target, see `reward_cache_mib` of [`ILRecConfig`]. Without the
    attribute it is called in every epoch.

    Args:
        histories (`list[list[str]]`): Item ids before each target, oldest first.
        **columns:
            The other columns of the data set, one value for each history, for example `user`.

    Returns:
        `torch.Tensor` of shape `(B, I)`: Non-negative scores of any scale, in the order of `ItemTrie.item_ids`.

    Example:

    ```python
    >>> from ilrec_trl.items.item_trie import ItemTrie

    >>> trie = ItemTrie.from_sequences({"guitar": [1, 2], "strings": [1, 3], "tuner": [0, 4]})
    >>> popularity = torch.tensor([{"guitar": 5.0, "strings": 9.0, "tuner": 1.0}[item] for item in trie.item_ids])
    >>> def reward_func(histories, **columns):
    ...     return popularity.expand(len(histories), -1)
    >>> check_reward_func(reward_func, trie, [["tuner"]])

    ```
    """

    def __call__(self, histories: list[list[str]], **columns: Any) -> torch.Tensor: ...


class SASRecReward:
    """
    Probabilities of all items as the next one, by a trained SASRec.

    Args:
        model ([`SASRecModel`] or `str`): Trained model, or the folder of one. It is put into eval mode, without
            gradients.
        item_trie ([`ItemTrie`]): Gives the order of the scores. The model must know all its items; the model's other
            items are left out before the softmax.
        temperature (`float`, *optional*, defaults to `1.0`): Divides the logits; above 1 spreads the probability over
            more items.
        device (`str` or `torch.device`, *optional*): Device of the scores. By default the model's.

    Raises:
        ValueError: If the model does not know an item of the trie, or `temperature` is not positive.
    """

    is_fixed = True

    def __init__(
        self,
        model: SASRecModel | str | Path,
        item_trie: ItemTrie,
        temperature: float = 1.0,
        device: str | torch.device | None = None,
    ) -> None:
        if not temperature > 0:
            raise ValueError(f"Got temperature={temperature}, expected a positive number; 1 is SASRec's own softmax.")
        if not isinstance(model, SASRecModel):
            model = SASRecModel.from_pretrained(model)
        self.model = model.eval().requires_grad_(False)
        if device is not None:
            self.model.to(device)  # type: ignore[arg-type]
        self.temperature = temperature
        indices = _indices_in(self.model.config.item_ids, item_trie, "SASRec").to(self.model.device)  # (I,)
        # The head is put into the order of the trie once, rather than the scores at every step
        weight, bias = self.model.item_head()
        self.weight = weight[indices] / temperature  # (I, H)
        self.bias = None if bias is None else bias[indices] / temperature  # (I,)

    def __call__(self, histories: list[list[str]], **columns: Any) -> torch.Tensor:
        """Probabilities `(B, I)` in float32; `ValueError` for an empty history or an item the model does not know."""
        input_ids = [self.model.input_ids([str(item) for item in history]) for history in histories]
        vectors = self.model.history_vectors(input_ids)  # (B, H)
        return torch.softmax(F.linear(vectors, self.weight, self.bias).float(), dim=-1)  # (B, I)


class ScoreMatrixReward:
    """
    A table of scores with one row for each user, for example from another library.

    The data set needs a column with the user of each row. One row serves all targets of a user, so the scores must
    come from a model that was not trained on these targets.

    Args:
        scores (`torch.Tensor` of shape `(U, I)`): Finite, non-negative scores of any scale.
        users (`list[str]`): User of each row.
        item_ids (`list[str]`): Item of each column; must contain every item of the trie.
        item_trie ([`ItemTrie`]): Gives the order of the returned scores.
        user_column (`str`, *optional*, defaults to `"user"`): Column of the data set with the user's id.

    Raises:
        ValueError: For lists that do not fit the scores, missing items, or scores that are negative or not finite.
    """

    is_fixed = True

    def __init__(
        self,
        scores: torch.Tensor,
        users: Sequence[str],
        item_ids: Sequence[str],
        item_trie: ItemTrie,
        user_column: str = "user",
    ) -> None:
        check_item_scores(scores, len(item_ids), len(users), source="The score matrix")
        self.rows = {str(user): row for row, user in enumerate(users)}
        self.scores = scores[:, _indices_in(item_ids, item_trie, "The score matrix").to(scores.device)]  # (U, I)
        self.user_column = user_column

    @classmethod
    def load(cls, folder: str | Path, item_trie: ItemTrie, user_column: str = "user") -> ScoreMatrixReward:
        """Read what [`save_scores`] wrote."""
        names = json.loads((Path(folder) / "scores.json").read_text(encoding="utf-8"))
        scores = load_file(Path(folder) / "scores.safetensors")["scores"]
        return cls(scores, names["users"], names["item_ids"], item_trie, user_column)

    def __call__(self, histories: list[list[str]], **columns: Any) -> torch.Tensor:
        """Scores `(B, I)` of the users named in the user column."""
        if columns.get(self.user_column) is None:
            raise ValueError(
                f"Scores are looked up by the column {self.user_column!r}, but got {sorted(columns)}. Add it to the "
                "data set, or name another column as `user_column`."
            )
        users = [str(user) for user in columns[self.user_column]]
        unknown = [user for user in users if user not in self.rows]
        if unknown:
            raise ValueError(f"Users {unknown[:5]} are not among the {len(self.rows)} of the score matrix. Add them.")
        return self.scores[torch.tensor([self.rows[user] for user in users], device=self.scores.device)]


def save_scores(folder: str | Path, scores: torch.Tensor, users: Sequence[str], item_ids: Sequence[str]) -> None:
    """
    Write item scores for [`ScoreMatrixReward.load`]: `scores.safetensors` and `scores.json`.

    Args:
        folder (`str` or `Path`): Created if needed.
        scores, users, item_ids:
            As in [`ScoreMatrixReward`].
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_file({"scores": scores.contiguous()}, folder / "scores.safetensors")
    names = {"users": [str(user) for user in users], "item_ids": [str(item) for item in item_ids]}
    (folder / "scores.json").write_text(json.dumps(names), encoding="utf-8")


def check_reward_func(
    reward_func: RewardFunc, item_trie: ItemTrie, histories: list[list[str]], **columns: Any
) -> None:
    """
    Call a reward function once and refuse scores that the loss cannot use.

    Args:
        reward_func ([`RewardFunc`]): Function to try.
        item_trie ([`ItemTrie`]): Catalogue whose items are to be scored.
        histories (`list[list[str]]`): A few real histories.
        **columns:
            The other columns of the same rows.

    Raises:
        TypeError: If it is not callable or does not return a tensor.
        ValueError: If the scores have another shape, are negative or not finite, or are all 0 for some history.
    """
    if not callable(reward_func):
        raise TypeError(f"Got a reward_func of type {type(reward_func).__name__}; expected a callable.")
    scores = reward_func(histories, **columns)
    if not isinstance(scores, torch.Tensor):
        raise TypeError(f"reward_func returned a {type(scores).__name__}; expected a torch.Tensor of shape (B, I).")
    check_item_scores(scores, len(item_trie), len(histories), source="reward_func", histories=histories)


def _indices_in(item_ids: Sequence[str], item_trie: ItemTrie, source: str) -> torch.Tensor:
    """Index in `item_ids` of each item of the trie, `(I,)`."""
    index = {str(item): place for place, item in enumerate(item_ids)}
    unknown = [item for item in item_trie.item_ids if str(item) not in index]
    if unknown:
        raise ValueError(
            f"{source} does not know {len(unknown)} of the {len(item_trie)} items of the trie, the first is "
            f"{unknown[0]!r}. Score the whole catalogue, or build the trie from the known items only."
        )
    return torch.tensor([index[str(item)] for item in item_trie.item_ids])
