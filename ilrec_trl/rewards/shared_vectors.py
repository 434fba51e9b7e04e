"""Item vectors that are shared through what items have in common, while SASRec is trained."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from .sasrec import SASRecModel


if TYPE_CHECKING:
    from ..items.item_trie import ItemTrie

ItemFeatures = Sequence[Sequence[Hashable]]


class SharedVectors(nn.Module):
    """
    Parametrization of a matrix of item vectors: to each item's own vector those of its features are added.

    Args:
        features (`list[list[int]]`): Numbers of each item's features, counted from 0.
        hidden_size (`int`): Width of the vectors.
        std (`float`): Standard deviation of the first sum of as many features as items with any have on average.
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
    """Refuse what is not one list of features an item."""
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
    Let items share vectors: what is learnt about a feature holds for all items that have it.

    In what the model reads items begin as the sum of their features, and are told apart as far as the data asks.

    Args:
        model ([`SASRecModel`]): New, in place.
        item_features (`list[list]`): Of each item in the order of `config.item_ids` what it has, such as the codes of
            its semantic ID, a brand, a category. Equal values are one feature, so that codes of different levels need
            different ones.

    Raises:
        ValueError: If they are no lists, not as many as the items or all empty, or if the model samples its softmax.
    """
    config = model.config
    check_features(item_features, len(model.item_index))
    if config.samples_items:
        raise ValueError(
            f"Item features need the softmax over the whole catalogue, but one of {config.samples_items} sampled "
            "items was asked for, as is the default for large catalogues; leave out the features, or set "
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


def item_tokens(item_trie: ItemTrie, item_ids: Sequence[str]) -> list[list[int]]:
    """
    The tokens that the language model writes items with, as their features: codes of semantic IDs, words of titles.

    Args:
        item_trie ([`ItemTrie`]): The catalogue.
        item_ids (`list[str]`): Items, in the order in which SASRec is to know them.

    Returns:
        `list[list[int]]`: Token ids of each item, without the end token.
    """
    trie = item_trie.to("cpu")
    nodes = trie.leaf_of(item_ids)  # (I,)
    rows: list[list[int]] = [[] for _ in item_ids]
    while nodes.any():
        tokens = trie.arrays.node_tokens[nodes]  # (I,), -1 at the root
        for row, token in zip(rows, tokens.tolist(), strict=True):
            if token not in (-1, trie.end_token_id):
                row.append(token)
        nodes = trie.arrays.parent(nodes).clamp(min=0)
    return [row[::-1] for row in rows]


def fold_vectors(model: SASRecModel) -> None:
    """Make the sums the items' own vectors, so that the model is a plain one again."""
    for module in (model.item_embedding, model.output):
        if module is not None and parametrize.is_parametrized(module):
            parametrize.remove_parametrizations(module, "weight")
