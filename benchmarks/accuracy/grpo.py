"""GRPO on items: rollouts follow the catalogue's trie, and the reward is for the target item."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from trl import GRPOTrainer

from ilrec_trl.evaluation.logits_processor import ItemTrieLogitsProcessor
from ilrec_trl.items.item_trie import ItemTrie


class ItemGRPOTrainer(GRPOTrainer):
    """
    TRL's GRPOTrainer whose rollouts are items of the catalogue. They are drawn from the model's distribution among the
    trie's continuations, whereas the loss takes log-probabilities over the whole vocabulary, as TRL does.

    Evaluation generates no rollouts: it only calls the callbacks, of which
    [`~evaluation.recommendation_callback.RecommendationCallback`] ranks.

    Args:
        item_trie ([`ItemTrie`]):
            The catalogue.
        others:
            As in [`~trl.GRPOTrainer`].
    """

    _tag_names = ["trl", "grpo", "recommendation"]

    def __init__(self, *args: Any, item_trie: ItemTrie, **kwargs: Any) -> None:
        self.item_trie = item_trie
        super().__init__(*args, **kwargs)
        if self.use_vllm or self.use_transformers_continuous_batching:
            raise ValueError("Rollouts must follow the trie, which needs `generate` of transformers; use no other.")

    def _generate_single_turn(self, *args: Any, **kwargs: Any) -> Any:
        with self._items_alone():
            return super()._generate_single_turn(*args, **kwargs)

    @contextmanager
    def _items_alone(self) -> Iterator[None]:
        """Within it, `generate` of the model that TRL unwraps continues prompts by items."""
        model = self.accelerator.unwrap_model(self.model_wrapped)
        generate = model.generate

        def generate_items(**inputs: Any) -> Any:
            length = inputs["input_ids"].shape[1]
            processor = ItemTrieLogitsProcessor(self.item_trie, length, self._tokenizer.eos_token_id)
            return generate(**inputs, logits_processor=[processor])

        model.generate = generate_items
        try:
            yield
        finally:
            del model.generate

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        metrics: dict[str, float] = {}
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


def item_match_reward(item_trie: ItemTrie, prefix_weight: float = 0.0) -> Callable[..., list[float]]:
    """
    Reward of rollouts: 1 for the target item, or one of the same tokens.

    Args:
        item_trie ([`ItemTrie`]):
            The catalogue.
        prefix_weight (`float`, *optional*, defaults to `0.0`):
            Added for the share of the target's tokens that the rollout begins with.

    Returns:
        `Callable`: `(completion_ids, item, **columns)` to one reward a rollout, as [`~trl.GRPOTrainer`] calls it.
    """

    def item_match(completion_ids: list[list[int]], item: list[str], **columns: Any) -> list[float]:
        rewards = []
        for found, target in zip(completion_ids, item, strict=True):
            wanted = item_trie.sequence(target)
            shared = next((n for n, pair in enumerate(zip(found, wanted, strict=False)) if pair[0] != pair[1]), None)
            shared = min(len(found), len(wanted)) if shared is None else shared
            rewards.append(float(shared == len(wanted)) + prefix_weight * shared / len(wanted))
        return rewards

    return item_match
