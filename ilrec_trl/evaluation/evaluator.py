"""Full-ranking evaluation of a language model, by itself or during training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from transformers import TrainerCallback

from .metrics import metric_values, standard_error
from .recommend import recommend


if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import (
        PreTrainedModel,
        PreTrainedTokenizerBase,
        Trainer,
        TrainerControl,
        TrainerState,
        TrainingArguments,
    )

    from ..items.item_trie import ItemTrie


@dataclass(frozen=True)
class UserRanks:
    """
    Where each user's target came, in the order of the data set.

    Attributes:
        users (`list[str]`): User ids, or row numbers where the data set has no column `user`.
        items (`list[str]`): Target ids.
        starts (`np.ndarray` of shape `(U,)`): First rank the target can have, from 1; `inf` when not retrieved.
        ties (`np.ndarray` of shape `(U,)`): Number of items that share the target's place.
    """

    users: list[str]
    items: list[str]
    starts: NDArray[np.float64]
    ties: NDArray[np.int64]


class RecommendationEvaluator:
    """
    Ranks the whole catalogue for every user of a data set by constrained beam search and measures where the targets
    come. No user is dropped: a target beyond the beams counts as not found, whatever the batch size.

    Args:
        dataset ([`~datasets.Dataset`]):
            Columns `prompt` and `item` (the target's id); optionally `user`, and `history` (item ids), which
            `exclude_history` needs. [`next_item_dataset`] gives all of them.
        item_trie ([`ItemTrie`]):
            The catalogue.
        k (`tuple[int, ...]`, *optional*, defaults to `(1, 5, 10)`):
            Cut-offs of Hit@K and NDCG@K.
        num_beams (`int`, *optional*, defaults to `20`):
            Beams of the search, at least the largest cut-off. MRR counts within the beams.
        batch_size (`int`, *optional*, defaults to `64`):
            Users a batch. It changes the speed alone.
        exclude_history (`bool`, *optional*, defaults to `False`):
            Do not recommend items of the user's history. A target that is itself in the history then counts as not
            found.
        progress (`bool`, *optional*, defaults to `False`):
            Show a progress bar.
        chat_template_kwargs (`dict`, *optional*):
            As in [`recommend`].

    Raises:
        `ValueError`: for a missing column, an empty data set, a target outside the catalogue, or fewer beams than the
            largest cut-off; each with the remedy.

    Example:

    ```python
    from ilrec_trl import RecommendationEvaluator, next_item_dataset

    evaluator = RecommendationEvaluator(next_item_dataset(splits.test, catalog), item_trie)
    metrics = evaluator(model, tokenizer)  # {"hit@1": ..., "hit@5": ..., ..., "mrr": ...}
    evaluator.standard_errors["ndcg@10"], evaluator.last_ranks.starts
    ```
    """

    primary_metric = "ndcg@10"

    def __init__(
        self,
        dataset: Dataset,
        item_trie: ItemTrie,
        *,
        k: Sequence[int] = (1, 5, 10),
        num_beams: int = 20,
        batch_size: int = 64,
        exclude_history: bool = False,
        progress: bool = False,
        chat_template_kwargs: dict[str, Any] | None = None,
    ) -> None:
        needed = {"prompt", "item"} | ({"history"} if exclude_history else set())
        if missing := needed - set(dataset.column_names):
            raise ValueError(
                f"the data set has columns {dataset.column_names}, but evaluation needs {sorted(missing)} as well; "
                "build it with `next_item_dataset`"
            )
        if len(dataset) and isinstance(dataset[0]["item"], list):
            raise ValueError(
                f"`item` of the first row is a list of {len(dataset[0]['item'])} ids, but a row to evaluate asks for "
                "one item; build the data set with `next_item_dataset`"
            )
        if not len(dataset):
            raise ValueError("the data set has no row, so there is no user to evaluate")
        if num_beams < max(k):
            raise ValueError(f"got num_beams={num_beams} for k={tuple(k)}; use at least {max(k)} beams")
        self.item_trie = item_trie
        self.k = tuple(k)
        self.num_beams = num_beams
        self.batch_size = batch_size
        self.exclude_history = exclude_history
        self.progress = progress
        self.chat_template_kwargs = chat_template_kwargs
        self.prompts = list(dataset["prompt"])
        self.items = list(dataset["item"])
        self.histories = list(dataset["history"]) if exclude_history else None
        self.users = list(map(str, dataset["user"] if "user" in dataset.column_names else range(len(dataset))))
        self.leaves = item_trie.leaf_of(self.items).tolist()
        self.last_ranks: UserRanks | None = None
        self.standard_errors: dict[str, float] = {}
        # Prompts of like length share a batch, so that little of it is padding.
        self.order = sorted(range(len(self.prompts)), key=lambda row: _length(self.prompts[row]))

    def __call__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, float]:
        """
        Rank for every user.

        Returns:
            `dict[str, float]`: `hit@k` and `ndcg@k` for each cut-off and `mrr`, means over users. Standard errors are
            then in `standard_errors`, the ranks in `last_ranks`.
        """
        from tqdm.auto import tqdm

        starts, ties = np.full(len(self.items), math.inf), np.ones(len(self.items), dtype=np.int64)  # (U,), (U,)
        with tqdm(total=len(self.order), desc="users", unit="user", disable=not self.progress) as bar:
            for first in range(0, len(self.order), self.batch_size):
                rows = self.order[first : first + self.batch_size]
                for row, ranked in zip(rows, self._recommend(model, tokenizer, rows), strict=True):
                    starts[row], ties[row] = self._rank(row, ranked)
                bar.update(len(rows))
        self.last_ranks = UserRanks(self.users, self.items, starts, ties)
        values = metric_values(starts, ties, self.k)
        self.standard_errors = {name: standard_error(each) for name, each in values.items()}
        return {name: float(each.mean()) for name, each in values.items()}

    def _recommend(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: list[int]
    ) -> list[list[tuple[Any, float]]]:
        num_beams = min(self.num_beams, len(self.item_trie))
        return recommend(
            model,
            tokenizer,
            [self.prompts[row] for row in rows],
            self.item_trie,
            top_k=num_beams,
            num_beams=num_beams,
            exclude=None if self.histories is None else [self.histories[row] for row in rows],
            batch_size=len(rows),
            chat_template_kwargs=self.chat_template_kwargs,
        )

    def _rank(self, row: int, ranked: list[tuple[Any, float]]) -> tuple[float, int]:
        """First rank and number of ties of a row's target."""
        target = self.items[row]
        excluded = set(self.histories[row]) if self.histories is not None else set()
        leaf = self.leaves[row]
        place = set(self.item_trie.items_below(leaf)) - excluded
        if target not in place:
            return math.inf, 1
        start = next((rank for rank, (item, _) in enumerate(ranked, 1) if item in place), math.inf)
        return start, len(place)


class RecommendationCallback(TrainerCallback):
    """
    Adds Hit@K, NDCG@K and MRR to every evaluation during training, so that `eval_ndcg@10` can serve as
    `metric_for_best_model` and for early stopping.

    [`ILRecTrainer`] moves it before callbacks that read the metrics. With another trainer, list it before
    `EarlyStoppingCallback`.

    Args:
        evaluator ([`RecommendationEvaluator`]):
            Usually over the validation split.
        metric_key_prefix (`str`, *optional*, defaults to `"eval"`):
            Names become `{prefix}_hit@10` and so on.

    Example:

    ```python
    args = ILRecConfig(eval_strategy="epoch", save_strategy="epoch", load_best_model_at_end=True,
                       metric_for_best_model="eval_ndcg@10", ...)
    evaluator = RecommendationEvaluator(next_item_dataset(splits.validation, catalog), item_trie)
    trainer = ILRecTrainer(model, args, train_dataset=..., eval_dataset=..., item_trie=item_trie,
                           callbacks=[RecommendationCallback(evaluator)])
    ```
    """

    def __init__(self, evaluator: RecommendationEvaluator, metric_key_prefix: str = "eval") -> None:
        self.evaluator = evaluator
        self.metric_key_prefix = metric_key_prefix
        self.trainer: Trainer | None = None

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        figures = self.evaluator(kwargs["model"], kwargs["processing_class"])
        found = {f"{self.metric_key_prefix}_{name}": value for name, value in figures.items()}
        if metrics is not None:
            metrics.update(found)
        # The evaluation's own figures were logged before callbacks run.
        if self.trainer is not None:
            self.trainer.log(found)
        elif state.is_world_process_zero:
            state.log_history.append({**found, "step": state.global_step, "epoch": state.epoch})


def _length(prompt: str | list[dict[str, str]]) -> int:
    return len(prompt) if isinstance(prompt, str) else sum(len(message["content"]) for message in prompt)
