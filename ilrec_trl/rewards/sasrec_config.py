"""Configuration of SASRec."""

from __future__ import annotations

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig


FULL_SOFTMAX_ITEMS = 100_000  # the largest catalogue over which the softmax of training is computed in full by default


@strict
class SASRecConfig(PreTrainedConfig):
    r"""
    Configuration of a [`SASRecModel`].

    Args:
        item_ids (`list[str]`, *optional*): Ids of all items that can be ranked, in the order of the scores. Kept here
            so that a saved model knows its items.
        hidden_size (`int`, *optional*, defaults to `128`): Width of item vectors and layers.
        num_hidden_layers (`int`, *optional*, defaults to `2`): Number of Transformer layers.
        num_attention_heads (`int`, *optional*, defaults to `2`): Number of attention heads a layer.
        max_position_embeddings (`int`, *optional*, defaults to `50`): Longest history in items; older items are
            dropped.
        dropout (`float`, *optional*, defaults to `0.5`): Share of activations set to zero in training.
        tie_word_embeddings (`bool`, *optional*, defaults to `False`): Whether items are scored by their input vectors,
            as in the paper. An output matrix of its own ranks far better.
        initializer_range (`float`, *optional*, defaults to `0.02`): Standard deviation of initial weights.
        item_initializer_range (`float`, *optional*, defaults to `0.15`): Standard deviation of initial item vectors.
            Items that differ from the start are told apart in half the epochs that `0.02` takes.
        num_sampled_negatives (`int`, *optional*): Items drawn a step to stand for all that are no target of the batch,
            see [`~rewards.sampled_softmax.sampled_softmax_loss`]; 0 computes the softmax over the whole catalogue. By
            default 0 for up to 100,000 items and 4,096 above.
    """

    model_type = "sasrec"

    item_ids: list[str] | None = None
    hidden_size: int = 128
    num_hidden_layers: int = 2
    num_attention_heads: int = 2
    max_position_embeddings: int = 50
    dropout: float = 0.5
    tie_word_embeddings: bool = False
    initializer_range: float = 0.02
    item_initializer_range: float = 0.15
    num_sampled_negatives: int | None = None

    @property
    def samples_items(self) -> int:
        """Number of negatives to draw a step, 0 for none: `num_sampled_negatives` or what stands for it."""
        if self.num_sampled_negatives is not None:
            return self.num_sampled_negatives
        return 4096 if len(self.item_ids or ()) > FULL_SOFTMAX_ITEMS else 0
