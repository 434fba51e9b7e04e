"""Evaluating and recommending with a trained model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import AutoModelForCausalLM

from ..data.splits import NextItemExample
from ..evaluation.evaluator import RecommendationEvaluator
from ..evaluation.process_group import process_rank
from ..evaluation.recommender import Recommender
from ..report.console import show
from ..report.results import MethodRanks, MethodResult, summarise_methods, write_ranks, write_results
from .environment import default_device
from .option_checks import check_evaluation
from .options import EvaluateOptions, InputError, RankingOptions, RecommendOptions, input_errors
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


def evaluator_of(
    prepared: PreparedData, examples: Sequence[NextItemExample], evaluation: RankingOptions, progress: bool = False
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
    evaluation: RankingOptions,
    *,
    seed: int | None = None,
    settings: dict[str, Any] | None = None,
    resume_dir: str | None = None,
) -> MethodRanks:
    """Where a language model puts the target of every example."""
    evaluator = evaluator_of(prepared, examples, evaluation, progress=True)
    with input_errors():
        evaluator(model, prepared.tokenizer, resume_dir=resume_dir)
    ranks = evaluator.last_ranks
    assert ranks is not None
    used = {"exclude_history": evaluation.exclude_history, "ranking": evaluation.ranking}
    if evaluation.ranking == "beam":
        used["num_beams"] = evaluation.num_beams
    settings = (settings or {}) | used
    return MethodRanks(method, ranks.users, ranks.starts, ranks.ties, seed, settings)


def evaluate(options: EvaluateOptions, evaluation: RankingOptions) -> dict[str, MethodResult]:
    """
    The `evaluate` command: metrics of a saved model on a split. Of several processes, which share the users, the first
    shows notes and writes to `output_dir`.
    """
    check_evaluation(evaluation)
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
            history = options.history or prepared.interactions.history(str(options.user))
            recommender = recommender_of(prepared, load_model(options.model), options.num_beams)
        ranked = recommender.recommend([history], top_k=options.top_k, exclude_history=options.exclude_history)[0]
    return [(item, title or recommender.catalog.text(item), score) for item, title, score in ranked]
