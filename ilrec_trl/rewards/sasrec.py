"""SASRec, the collaborative-filtering model, by the conventions of transformers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput

from .sequence_batches import IGNORE_INDEX, PADDING, collate_sequences, length_batches


FULL_SOFTMAX_ITEMS = 100_000  # training computes the full softmax up to this number of items by default


@strict
class SASRecConfig(PreTrainedConfig):
    r"""
    Configuration of a [`SASRecModel`].

    Args:
        item_ids (`list[str]`, *optional*): Ids of all items that can be ranked, in the order of the scores.
        hidden_size (`int`, *optional*, defaults to `128`): Width of item vectors and layers.
        num_hidden_layers (`int`, *optional*, defaults to `2`): Number of Transformer layers.
        num_attention_heads (`int`, *optional*, defaults to `2`): Number of attention heads of each layer.
        max_position_embeddings (`int`, *optional*, defaults to `50`): Longest history in items; older items are
            dropped.
        dropout (`float`, *optional*, defaults to `0.5`): Share of activations set to zero in training.
        tie_word_embeddings (`bool`, *optional*, defaults to `False`): Whether items are scored by their input vectors,
            as in the paper. A separate output matrix ranks far better.
        initializer_range (`float`, *optional*, defaults to `0.02`): Standard deviation of initial weights.
        item_initializer_range (`float`, *optional*, defaults to `0.15`): Standard deviation of initial item vectors.
            This value needs half the epochs of `0.02`.
        num_sampled_negatives (`int`, *optional*): Negatives drawn in each step for [`sampled_softmax_loss`]; 0
            computes the softmax over the whole catalogue. Defaults to 0 for up to 100,000 items and to 4,096 above.
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
        """Negatives to draw in each step, 0 for none: `num_sampled_negatives` or its default."""
        if self.num_sampled_negatives is not None:
            return self.num_sampled_negatives
        return 4096 if len(self.item_ids or ()) > FULL_SOFTMAX_ITEMS else 0


@dataclass
class SASRecOutput(ModelOutput):
    """
    Output of [`SASRecModel`].

    Args:
        loss (`torch.Tensor` of shape `()`, *optional*): Mean cross-entropy a target in nats, where labels were given.
        logits (`torch.Tensor` of shape `(N, I)`, *optional*): Scores of all items at each labelled position, row by
            row; without labels at the last position of each row. `None` in training on a sampled softmax.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None


class SASRecModel(PreTrainedModel):
    r"""
    Self-attentive sequential recommendation: a causal Transformer over item vectors that scores every item as the
    next one.

    From "Self-Attentive Sequential Recommendation" (Kang and McAuley, 2018), with pre-norm layers, softmax
    cross-entropy over the whole catalogue instead of one sampled negative, and a separate output matrix.

    Args:
        config ([`SASRecConfig`]): Sizes and `item_ids`.

    Raises:
        ValueError: If the configuration has no items or repeats one, or the heads do not divide `hidden_size`.

    Example:

    ```python
    >>> model = SASRecModel(SASRecConfig(item_ids=["guitar", "strings", "tuner"], hidden_size=8))
    >>> model.score([["guitar"], ["tuner", "guitar"]]).shape
    torch.Size([2, 3])

    ```
    """

    config_class = SASRecConfig
    base_model_prefix = "sasrec"
    main_input_name = "input_ids"
    accepts_loss_kwargs = True  # Trainer then passes `num_items_in_batch`

    def __init__(self, config: SASRecConfig) -> None:
        super().__init__(config)
        if not config.item_ids:
            raise ValueError("SASRecConfig has no `item_ids`; pass the ids of all items that can be recommended.")
        self.item_index = {item: index for index, item in enumerate(config.item_ids)}
        num_items = len(config.item_ids)
        if len(self.item_index) < num_items:
            raise ValueError(
                f"`item_ids` holds {num_items} ids, {len(self.item_index)} of them distinct; drop repeats."
            )
        if config.hidden_size % config.num_attention_heads:
            raise ValueError(
                f"hidden_size={config.hidden_size} is no multiple of num_attention_heads={config.num_attention_heads}."
            )
        if config.samples_items < 0:
            raise ValueError(f"num_sampled_negatives={config.num_sampled_negatives} is negative; 0 samples nothing.")
        self.item_embedding = nn.Embedding(num_items + 1, config.hidden_size, padding_idx=PADDING)
        self.position_embedding = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(SASRecLayer(config) for _ in range(config.num_hidden_layers))
        self.norm = nn.LayerNorm(config.hidden_size)
        self.output = None if config.tie_word_embeddings else nn.Linear(config.hidden_size, num_items)
        self.post_init()

    @classmethod
    def from_pretrained(cls, name: Any, *args: Any, **kwargs: Any) -> SASRecModel:  # type: ignore[override]
        """As in transformers, but weights that are missing are an error."""
        loaded: Any = super().from_pretrained(name, *args, **(kwargs | {"output_loading_info": True}))
        if missing := loaded[1]["missing_keys"]:
            raise ValueError(
                f"{name} lacks {', '.join(sorted(missing))}. A checkpoint of a training with item features holds "
                "their vectors apart: resume that training with `resume_from_checkpoint`, and load what "
                "`save_pretrained` wrote after it."
            )
        return loaded if kwargs.get("output_loading_info") else loaded[0]  # type: ignore[no-any-return]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, (nn.Linear, nn.Embedding)):
            is_items = module is self.item_embedding
            std = self.config.item_initializer_range if is_items else self.config.initializer_range
            nn.init.normal_(module.weight, std=std)
        if isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)
        if isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        if isinstance(module, nn.Embedding) and module.padding_idx is not None:
            nn.init.zeros_(module.weight[module.padding_idx])

    def forward(
        self,
        input_ids: torch.Tensor,
        labels: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> SASRecOutput:
        """
        Score all items.

        Args:
            input_ids (`torch.Tensor` of shape `(B, S)`): 1 + index of each item, 0 after the end of a row.
            labels (`torch.Tensor` of shape `(B, S)`, *optional*): Index of the item that follows each position, -100
                where none is to be predicted.
            num_items_in_batch (`torch.Tensor` or `int`, *optional*): Number of targets of the whole optimiser step, by
                which the summed loss is divided; defaults to that of this batch.
        """
        if labels is None:
            return SASRecOutput(logits=F.linear(self.last_vectors(input_ids), *self.item_head()))
        wanted = labels != IGNORE_INDEX
        vectors, targets = self.norm(self.layers[-1](self._encode(input_ids))[wanted]), labels[wanted]  # (N, H), (N,)
        logits = None
        if self.training and self.config.samples_items:
            loss = self._sampled_loss(vectors, targets)
        else:
            logits = F.linear(vectors, *self.item_head())  # (N, I)
            loss = F.cross_entropy(logits.float(), targets, reduction="sum")
        return SASRecOutput(
            loss=loss / (len(targets) if num_items_in_batch is None else num_items_in_batch), logits=logits
        )

    def _sampled_loss(self, vectors: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        # Whole parameters are passed, since a sparse gradient does not pass through a slice
        samples = self.config.samples_items
        if self.output is None:
            return sampled_softmax_loss(vectors, targets, self.item_embedding.weight, None, samples, first_row=1)
        return sampled_softmax_loss(vectors, targets, self.output.weight, self.output.bias, samples)

    def _encode(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Hidden states `(B, S, H)` before the last layer."""
        # Counted from the end, as with left padding: the latest item has the same position in every row
        lengths = (input_ids != PADDING).sum(1, keepdim=True)  # (B, 1)
        steps = torch.arange(input_ids.shape[1], device=input_ids.device)  # (S,)
        last = self.config.max_position_embeddings - 1
        positions = (steps + last + 1 - lengths).clamp(max=last)  # (B, S), the clamp is for padding
        items = F.embedding(
            input_ids, self.item_embedding.weight, PADDING, sparse=self.config.samples_items > 0
        )  # (B, S, H)
        hidden = self.dropout(items + self.position_embedding(positions))  # (B, S, H)
        for layer in self.layers[:-1]:
            hidden = layer(hidden)
        return hidden

    def last_vectors(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Vector `(B, H)` after the last item of each row of `input_ids` `(B, S)`, see [`SASRecModel.item_head`]."""
        last = (input_ids != PADDING).sum(1) - 1  # (B,)
        return self.norm(self.layers[-1](self._encode(input_ids), last)[:, 0])  # (B, H)

    def item_head(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Matrix `(I, H)` and bias `(I,)` that turn a vector into the scores of all items."""
        return (
            (self.item_embedding.weight[1:], None) if self.output is None else (self.output.weight, self.output.bias)
        )

    def input_ids(self, history: Sequence[str]) -> list[int]:
        """Input ids of a history, of its latest items where it is longer than the model can see."""
        if not history:
            raise ValueError("Got an empty history; SASRec needs at least one item.")
        return [index + 1 for index in self.indices(history)[-self.position_embedding.num_embeddings :]]

    def indices(self, items: Sequence[str]) -> list[int]:
        """Index of each item in `config.item_ids`; `ValueError` naming those that are not there."""
        try:
            return [self.item_index[item] for item in items]
        except KeyError:
            unknown = [item for item in items if item not in self.item_index]
            raise ValueError(
                f"Items {unknown[:5]} are unknown to this SASRec of {len(self.item_index)} items; train it on all "
                "items of the catalogue."
            ) from None

    def item_vectors(self, item_ids: Sequence[str]) -> torch.Tensor:
        """
        Vectors `(N, H)` that score items, in float32 without gradient: rows of the output matrix, or of the embeddings
        if they are tied. `ValueError` for an unknown item. The vector of an item without training sequences
        holds no information, apart from its features.
        """
        weight = self.item_embedding.weight[1:] if self.output is None else self.output.weight
        return weight.detach().float()[torch.tensor([self.input_ids([item])[0] - 1 for item in item_ids])]

    @torch.no_grad()
    def score(self, histories: Sequence[Sequence[str]], batch_size: int = 512) -> torch.Tensor:
        """
        Score every item as the next one of each history.

        Args:
            histories (`list[list[str]]`): Item ids, oldest first; none is empty.
            batch_size (`int`, *optional*, defaults to `512`): Number of histories in one forward pass.

        Returns:
            `torch.Tensor` of shape `(B, I)`: Logits in float32, in the order of `config.item_ids`. The softmax of a
            row gives the items' probabilities.

        Raises:
            ValueError: For an empty history or an unknown item.
        """
        vectors = self.history_vectors([self.input_ids(history) for history in histories], batch_size)
        return F.linear(vectors, *self.item_head()).float()  # (B, I)

    @torch.no_grad()
    def history_vectors(self, input_ids: Sequence[Sequence[int]], batch_size: int = 512) -> torch.Tensor:
        """
        The vector `(B, H)` after each history, without dropout and gradient, see [`SASRecModel.item_head`]. A forward
        pass takes at most `batch_size` of the `input_ids`, see [`SASRecModel.input_ids`].
        """
        vectors = self.norm.weight.new_empty(len(input_ids), self.config.hidden_size)
        training = self.training
        self.eval()
        for chosen in length_batches([len(ids) for ids in input_ids], batch_size, self.device):
            batch = collate_sequences([{"input_ids": input_ids[row]} for row in chosen])["input_ids"]
            places = torch.tensor(chosen).to(self.device, non_blocking=True)
            vectors[places] = self.last_vectors(batch.to(self.device, non_blocking=True))
        self.train(training)
        return vectors


class SASRecLayer(nn.Module):
    """One pre-norm Transformer layer; a position sees itself and what precedes it."""

    def __init__(self, config: SASRecConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.head_size = width // config.num_attention_heads
        self.dropout = config.dropout
        self.attention_norm = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.attention_output = nn.Linear(width, width)
        self.feed_forward_norm = nn.LayerNorm(width)
        self.feed_forward = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Dropout(config.dropout), nn.Linear(4 * width, width)
        )

    def forward(self, hidden: torch.Tensor, last: torch.Tensor | None = None) -> torch.Tensor:
        """
        Output `(B, S, H)` at all positions of `hidden` `(B, S, H)`, or `(B, 1, H)` at the position `last` `(B,)` of
        each row, which costs a sixth: the others are needed as keys and values only.
        """
        width, device = hidden.size(2), hidden.device
        weight, bias = self.query_key_value.weight, self.query_key_value.bias
        normed = self.attention_norm(hidden)
        key, value = self._heads(F.linear(normed, weight[width:], bias[width:])).chunk(2, dim=1)  # (B, heads, S, .)
        mask = None
        if last is not None:
            mask = (torch.arange(hidden.size(1), device=device) <= last[:, None])[:, None, None]  # (B, 1, 1, S)
            chosen = torch.arange(len(last), device=device), last
            hidden, normed = hidden[chosen][:, None], normed[chosen][:, None]  # (B, 1, H)
        query = self._heads(F.linear(normed, weight[:width], bias[:width]))  # (B, heads, S, .)
        dropout = self.dropout if self.training else 0.0
        # All positions need no padding mask: padding comes last, where no real position sees it
        mixed = F.scaled_dot_product_attention(query, key, value, mask, dropout, is_causal=last is None)
        mixed = self.attention_output(mixed.transpose(1, 2).flatten(2))  # (B, S, H)
        hidden = hidden + F.dropout(mixed, dropout)
        return hidden + F.dropout(self.feed_forward(self.feed_forward_norm(hidden)), dropout)

    def _heads(self, projected: torch.Tensor) -> torch.Tensor:
        """`(B, S, n * H)` to `(B, n * heads, S, H / heads)`."""
        return projected.unflatten(2, (-1, self.head_size)).transpose(1, 2)


def sampled_softmax_loss(
    vectors: Tensor, targets: Tensor, weight: Tensor, bias: Tensor | None, num_samples: int, first_row: int = 0
) -> Tensor:
    """
    Softmax cross-entropy over a sample of the catalogue.

    Every target is scored against all targets of the batch and against items drawn from the rest. Each exponential is
    divided by the probability with which its item is in the sample: 1 for targets, the drawn share for the others. The
    sum that normalises a row thus equals the sum over the catalogue on average, and exactly if everything is drawn.

    After "On Using Very Large Target Vocabulary for Neural Machine Translation" (Jean et al., 2015), with the
    correction of "Sampling-Bias-Corrected Neural Modeling" (Yi et al., 2019) for two strata drawn without replacement.

    Args:
        vectors (`torch.Tensor` of shape `(N, H)`): Vector of each position.
        targets (`torch.Tensor` of shape `(N,)`): Index of the item to predict at each position.
        weight (`torch.Tensor` of shape `(first_row + I, H)`): Output matrix. Its gradient is sparse.
        bias (`torch.Tensor` of shape `(I,)`, *optional*): Bias of each item.
        num_samples (`int`): Number of draws. Repeats, and targets among them, count once.
        first_row (`int`, *optional*, defaults to `0`): Row of `weight` that belongs to item 0.

    Returns:
        `torch.Tensor` of shape `()`: Sum over the positions, in nats.
    """
    num_items = len(weight) - first_row
    positives, places = targets.unique(return_inverse=True)  # (P,), (N,)
    sampled = draw_others(positives, num_items, num_samples)  # (C,)
    items = torch.cat([positives, sampled])  # (P + C,)
    logits = vectors @ F.embedding(items + first_row, weight, sparse=True).T  # (N, P + C)
    if bias is not None:
        logits = logits + bias[items]
    share = (num_items - len(positives)) / max(len(sampled), 1)  # items that each drawn one represents
    correction = logits.new_zeros(len(items), dtype=torch.float32)  # (P + C,)
    correction[len(positives) :] = math.log(max(share, 1.0))
    return F.cross_entropy(logits.float() + correction, places, reduction="sum")


def draw_others(positives: Tensor, num_items: int, num_samples: int) -> Tensor:
    """
    Distinct items `(C,)` outside `positives` `(P,)`: all if `num_samples` is at least their number. Otherwise every
    set of the drawn size is equally likely.
    """
    if num_samples >= num_items - len(positives):
        drawn = torch.arange(num_items, device=positives.device)
    else:
        drawn = torch.randint(num_items, (num_samples,), device=positives.device).unique()
    return drawn[~torch.isin(drawn, positives)]
