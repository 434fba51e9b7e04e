"""Evaluation stage: every user of a split, ranked once; and lists to look at."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import AutoModelForCausalLM

from ..data.splits import NextItemExample
from ..evaluation.evaluator import RecommendationEvaluator
from ..evaluation.process_group import process_rank
from ..evaluation.recommend import recommend
from ..report.console import show
from ..report.results import MethodRanks, summarise_methods, write_ranks, write_results
from .environment import default_device
from .options import EvaluateOptions, EvaluationOptions, InputError, RecommendOptions
from .prepare import PreparedData, input_errors


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


def evaluator_of(
    prepared: PreparedData, examples: Sequence[NextItemExample], evaluation: EvaluationOptions, progress: bool = False
) -> RecommendationEvaluator:
    """The evaluator of these questions; where history is excluded, all of it, not only what the prompt shows."""
    questions = prepared.questions(list(examples))
    if evaluation.exclude_history:
        questions = questions.remove_columns("history").add_column("history", [e.history for e in examples])
    return RecommendationEvaluator(
        questions,
        prepared.item_trie,
        ranking=evaluation.ranking,  # type: ignore[arg-type]
        num_beams=evaluation.num_beams,
        batch_size=evaluation.eval_batch_size,
        exclude_history=evaluation.exclude_history,
        progress=progress,
        chat_template_kwargs=prepared.renderer.chat_template_kwargs,
    )


def model_ranks(
    method: str,
    model: PreTrainedModel,
    prepared: PreparedData,
    examples: Sequence[NextItemExample],
    evaluation: EvaluationOptions,
    *,
    seed: int | None = None,
    settings: dict[str, Any] | None = None,
    resume_dir: str | None = None,
) -> MethodRanks:
    """Where a language model puts the target of every example."""
    evaluator = evaluator_of(prepared, examples, evaluation, progress=True)
    try:
        evaluator(model, prepared.tokenizer, resume_dir=resume_dir)
    except ValueError as error:
        raise InputError(str(error)) from error
    ranks = evaluator.last_ranks
    assert ranks is not None
    used = {"exclude_history": evaluation.exclude_history, "ranking": evaluation.ranking}
    if evaluation.ranking == "beam":
        used["num_beams"] = evaluation.num_beams
    settings = (settings or {}) | used
    return MethodRanks(method, ranks.users, ranks.starts, ranks.ties, seed, settings)


def evaluate(options: EvaluateOptions, evaluation: EvaluationOptions) -> dict[str, Any]:
    """
    The `evaluate` command: metrics of a saved model on a split. Of several processes, which share the users, the first
    shows notes and writes to `output_dir`.
    """
    prepared = PreparedData.load(options.prepared)
    model = load_model(options.model)
    examples = getattr(prepared.splits, options.split)
    name = Path(options.model).resolve().name
    ranks = model_ranks(name, model, prepared, examples, evaluation, resume_dir=options.resume_dir)
    summary = summarise_methods([ranks])
    if process_rank()[0] > 0:
        return summary
    for note in prepared.notes:
        show(note)
    if options.output_dir is not None:
        folder = Path(options.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        write_results({"split": options.split, "methods": summary}, folder / "metrics.json")
        write_ranks([ranks], [example.item for example in examples], folder / "ranks.parquet")
    return summary


def recommend_items(options: RecommendOptions) -> list[tuple[str, str, float]]:
    """The `recommend` command: item id, text and score of the best items after a history."""
    prepared = PreparedData.load(options.prepared)
    with input_errors():
        history = _history(options, prepared)
        prepared.item_trie.index_of(history)
        if options.top_k > options.num_beams:
            raise ValueError(
                f"got top_k={options.top_k} with num_beams={options.num_beams}; use at least as many beams"
            )
    lists = recommend_lists(
        load_model(options.model),
        prepared,
        [history],
        top_k=options.top_k,
        num_beams=options.num_beams,
        exclude=[history] if options.exclude_history else None,
    )
    return [(item, describe(prepared, item), score) for item, score in lists[0]]


def recommend_lists(
    model: PreTrainedModel,
    prepared: PreparedData,
    histories: Sequence[list[str]],
    *,
    top_k: int,
    num_beams: int,
    exclude: list[list[str]] | None = None,
) -> list[list[tuple[Any, float]]]:
    """Items and scores after each history."""
    return recommend(
        model,
        prepared.tokenizer,
        prepared.prompts(histories),
        prepared.item_trie,
        top_k=min(top_k, len(prepared.item_trie)),
        num_beams=num_beams,
        exclude=exclude,
        chat_template_kwargs=prepared.renderer.chat_template_kwargs,
    )


def describe(prepared: PreparedData, item: str) -> str:
    """What a reader knows an item by: its title where there is one."""
    titles = prepared.catalog.titles
    if titles is None:
        return f"{item} {prepared.catalog.text(item)}"
    return titles[prepared.catalog.item_ids.index(item)]


def _history(options: RecommendOptions, prepared: PreparedData) -> list[str]:
    if (options.user is None) == (options.history is None):
        raise InputError("give either --user or --history")
    if options.history is not None:
        return options.history
    if options.user not in prepared.interactions.users:
        known = json.dumps(prepared.interactions.users[:3])
        raise InputError(f"there is no user {options.user!r}; users look like {known}")
    return prepared.interactions.sequences[prepared.interactions.users.index(options.user)]
