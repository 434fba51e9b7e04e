"""Recommending with a trained model; apart from evaluation, whose libraries take seconds to import."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from transformers import AutoModelForCausalLM

from ..evaluation.recommender import Recommender
from .environment import default_device
from .options import InputError, RecommendOptions, input_errors
from .prepared_data import PreparedData


if TYPE_CHECKING:
    from transformers import PreTrainedModel


def load_model(folder: str | Path) -> PreTrainedModel:
    """The language model that training saved in `folder`."""
    with input_errors():
        if not (Path(folder) / "config.json").is_file():
            raise FileNotFoundError(
                f"{folder} holds no config.json, so there is no model; train one with `ilrec train`"
            )
        return AutoModelForCausalLM.from_pretrained(folder).eval().to(default_device())


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
            recommender.num_beams = options.num_beams or recommender.num_beams
            history = options.history or []
        else:
            prepared = PreparedData.load(options.prepared)
            history = options.history or prepared.interactions.history(str(options.user))
            recommender = recommender_of(prepared, load_model(options.model), options.num_beams or 20)
        ranked = recommender.recommend([history], top_k=options.top_k, exclude_history=options.exclude_history)[0]
    return [(item, title or recommender.catalog.text(item), score) for item, title, score in ranked]
