"""Item vectors that share the vectors of item features, while SASRec is trained."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from .sasrec import SASRecModel


if TYPE_CHECKING:
    pass

ItemFeatures = Sequence[Sequence[Hashable]]


class SharedVectors(nn.Module):
    """
    Parametrization of a matrix of item vectors, which adds the vectors of its features to each item's own.

    Args:
        features (`list[list[int]]`): Numbers of each item's features, counted from 0.
        hidden_size (`int`): Width of the vectors.
        std (`float`): Initial standard deviation of the sum of an average number of features.
        first_row (`int`): Rows of the matrix before that of item 0.
    """

    bag: Tensor
    offsets: Tensor

    def __init__(self, features: Sequence[Sequence[int]], hidden_size: int, std: float, first_row: int) -> None:
        super().__init__()
        numbers = torch.tensor([number for each in features for number in each])  # (sum of L,)
        lengths = torch.tensor([0] * (first_row + 1) + [len(each) for each in features])
        self.register_buffer("bag", numbers, persistent=False)
        self.register_buffer("offsets", lengths.cumsum(0)[:-1], persistent=False)  # (first_row + I,)
        feature_std = std / (len(numbers) / int((lengths > 0).sum())) ** 0.5
        self.vectors = nn.Parameter(torch.randn(int(numbers.max()) + 1, hidden_size) * feature_std)

    def forward(self, own: Tensor) -> Tensor:
        """`(first_row + I, H)` to the same shape; an empty bag adds nothing."""
        return own + F.embedding_bag(self.bag, self.vectors, self.offsets, mode="sum")


def check_features(item_features: ItemFeatures, num_items: int) -> None:
    """Refuse what is not one list of features for each item."""
    wrong = next((each for each in [item_features, *item_features] if not isinstance(each, (list, tuple))), None)
    if wrong is not None:
        raise ValueError(
            f"Got item features in a {type(wrong).__name__}, expected a list with one list of features for each of "
            "`item_ids`, in their order, such as `catalog.semantic_ids`."
        )
    if len(item_features) != num_items:
        raise ValueError(
            f"Got features of {len(item_features)} items for a SASRec of {num_items}; give one list for each of "
            "`item_ids`, in their order."
        )
    if not any(item_features):
        raise ValueError(
            f"Got {num_items} empty lists of item features, expected features of one item at least; leave "
            "`item_features` out."
        )


def share_vectors(model: SASRecModel, item_features: ItemFeatures) -> None:
    """
    Add vectors of features to those of items, in place, so that items with a feature in common share its vector. An
    item with features starts from their sum in the input embedding.

    Args:
        model ([`SASRecModel`]): An untrained model.
        item_features (`list[list]`): Features of each item, in the order of `config.item_ids`: for example the codes
            of its semantic ID, a brand, a category. Equal values are one feature, so codes of different levels must
            differ.

    Raises:
        ValueError: If there is not one list for each item, all lists are empty, or the model samples its softmax.
    """
    config = model.config
    check_features(item_features, len(model.item_index))
    if config.samples_items:
        raise ValueError(
            f"Item features need the softmax over the whole catalogue, but this SASRec samples {config.samples_items} "
            "items, as is the default for large catalogues. Leave out the features, or set "
            "`SASRecConfig(num_sampled_negatives=0)`."
        )
    known: dict[Hashable, int] = {}
    numbers = [sorted({known.setdefault(feature, len(known)) for feature in each}) for each in item_features]
    matrices = [(model.item_embedding, config.item_initializer_range, 1)]
    if model.output is not None:
        matrices.append((model.output, config.initializer_range, 0))  # type: ignore[arg-type]
    with_features = [1 + item for item, each in enumerate(item_features) if each]
    with torch.no_grad():
        model.item_embedding.weight[with_features] = 0
    for module, std, first_row in matrices:
        shared = SharedVectors(numbers, config.hidden_size, std, first_row)
        parametrize.register_parametrization(module, "weight", shared.to(model.device))


def fold_vectors(model: SASRecModel) -> None:
    """Store the sums as the items' own vectors, which makes the model a plain one again."""
    for module in (model.item_embedding, model.output):
        if module is not None and parametrize.is_parametrized(module):
            parametrize.remove_parametrizations(module, "weight")
