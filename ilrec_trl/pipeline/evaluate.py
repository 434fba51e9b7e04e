"""Evaluation stage: every user of a split, ranked once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data.splits import NextItemExample
from ..evaluation.evaluator import RecommendationEvaluator
from ..evaluation.process_group import process_rank
from ..report.console import show
from ..report.results import MethodRanks, MethodResult, summarise_methods, write_ranks, write_results
from .option_checks import check_evaluation
from .options import EvaluateOptions, RankingOptions, input_errors
from .prepared_data import PreparedData
from .recommend import load_model


if TYPE_CHECKING:
    from transformers import PreTrainedModel


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
