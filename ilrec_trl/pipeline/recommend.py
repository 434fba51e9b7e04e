"""Recommending: lists to look at, from prepared data and a trained model or from an exported folder."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from ..evaluation.recommender import Recommender
from .environment import default_device
from .evaluate import load_model
from .options import InputError
from .prepare import PreparedData, input_errors
from .serving_options import RecommendOptions


if TYPE_CHECKING:
    from transformers import PreTrainedModel


def recommender_of(prepared: PreparedData, model: PreTrainedModel, num_beams: int) -> Recommender:
    """A model with the tokenizer, items and prompts that it was trained with."""
    return Recommender(model, prepared.tokenizer, prepared.item_trie, prepared.renderer, num_beams)


def recommend_items(options: RecommendOptions) -> list[tuple[str, str, float]]:
    """The `recommend` command: item id, text and score of the best items after a history."""
    if (options.user is None) == (options.history is None):
        raise InputError("give either --user or --history")
    if options.prepared is None and options.user is not None:
        raise InputError("--user needs --prepared, the folder that holds the users' sequences; or give --history")
    with input_errors():
        if options.prepared is None:
            recommender = Recommender.from_pretrained(options.model)
            recommender.model.to(default_device())  # type: ignore[arg-type]
            recommender.num_beams = options.num_beams
            history = options.history or []
        else:
            prepared = PreparedData.load(options.prepared)
            history = options.history or _history_of(str(options.user), prepared)
            recommender = recommender_of(prepared, load_model(options.model), options.num_beams)
        ranked = recommender.recommend([history], top_k=options.top_k, exclude_history=options.exclude_history)[0]
    return [(item, title or recommender.catalog.text(item), score) for item, title, score in ranked]


def describe(prepared: PreparedData, item: str) -> str:
    """What a reader knows an item by: its title where there is one."""
    titles = prepared.catalog.titles
    if titles is None:
        return f"{item} {prepared.catalog.text(item)}"
    return titles[prepared.catalog.item_ids.index(item)]


def _history_of(user: str, prepared: PreparedData) -> list[str]:
    if user not in prepared.interactions.users:
        raise InputError(f"there is no user {user!r}; users look like {json.dumps(prepared.interactions.users[:3])}")
    return prepared.interactions.sequences[prepared.interactions.users.index(user)]
