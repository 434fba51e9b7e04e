"""[`RecommendationCallback`]: full-ranking evaluation during training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from .evaluator import RecommendationEvaluator


if TYPE_CHECKING:
    from transformers import Trainer, TrainerControl, TrainerState, TrainingArguments


class RecommendationCallback(TrainerCallback):
    """
    Adds Hit@K, NDCG@K and MRR to every evaluation during training, so that `eval_ndcg@10` can serve as
    `metric_for_best_model` and for early stopping.

    [`ILRecTrainer`] moves it before callbacks that read the metrics. With another trainer, list it before
    `EarlyStoppingCallback`, and call [`RecommendationCallback.bind_trainer`] for the metrics to be logged.

    Args:
        evaluator ([`RecommendationEvaluator`]): Usually over the validation split.
        metric_key_prefix (`str`, *optional*, defaults to `"eval"`): Names become `{prefix}_hit@10` and so on.

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

    def bind_trainer(self, trainer: Trainer) -> None:
        """Log the metrics through this trainer, and so to its reporting services."""
        self.trainer = trainer

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
        # The trainer logged its own metrics of this evaluation before callbacks run
        if self.trainer is not None:
            self.trainer.log(found)
        elif state.is_world_process_zero:
            state.log_history.append({**found, "step": state.global_step, "epoch": state.epoch})
