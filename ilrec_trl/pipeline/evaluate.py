"""Evaluation stage: every user of a split, ranked once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import AutoModelForCausalLM

from ..data.splits import NextItemExample
from ..evaluation.evaluator import RecommendationEvaluator
from ..evaluation.process_group import process_rank
from ..report.console import show
from ..report.results import MethodRanks, summarise_methods, write_ranks, write_results
from .baselines import load_teacher
from .environment import default_device
from .fusion import fused_ranks
from .options import EvaluateOptions, EvaluationOptions, InputError
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


def _fused(
    name: str,
    model: PreTrainedModel,
    prepared: PreparedData,
    examples: Sequence[NextItemExample],
    options: EvaluateOptions,
    evaluation: EvaluationOptions,
) -> MethodRanks:
    if options.resume_dir is not None or evaluation.ranking != "beam":
        raise InputError("--fuse_sasrec ranks candidates of a beam search, in one go; leave out the other")
    ranks = fused_ranks(
        f"{name} + SASRec",
        model,
        load_teacher(str(options.fuse_sasrec), prepared),
        prepared,
        examples,
        evaluation,
        weight=options.fusion_weight,
        num_candidates=options.fusion_candidates,
    )
    if options.fusion_weight is None:
        show(f"Weight of SASRec, chosen on validation users: {ranks.settings['fusion_weight']:g}")
    return ranks


def evaluate(options: EvaluateOptions, evaluation: EvaluationOptions) -> dict[str, Any]:
    """
    The `evaluate` command: metrics of a saved model on a split. Of several processes, which share the users, the first
    shows notes and writes to `output_dir`.
    """
    prepared = PreparedData.load(options.prepared)
    model = load_model(options.model)
    examples = getattr(prepared.splits, options.split)
    name = Path(options.model).resolve().name
    if options.fuse_sasrec is None:
        ranks = model_ranks(name, model, prepared, examples, evaluation, resume_dir=options.resume_dir)
    else:
        ranks = _fused(name, model, prepared, examples, options, evaluation)
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
