"""Late fusion of a language model with SASRec: a ceiling for what collaborative signals can add."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..data.splits import NextItemExample, sample
from ..evaluation.late_fusion import choose_weight, late_fusion_ranks
from ..report.results import MethodRanks
from ..rewards.rewards import SASRecReward
from ..rewards.sasrec_group import SASRecGroup
from .options import EvaluationOptions, InputError
from .prepare import PreparedData


if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ..rewards.rewards import RewardFunc
    from ..rewards.sasrec import SASRecModel

WEIGHTS = (0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0)


def fused_ranks(
    method: str,
    model: PreTrainedModel,
    teacher: SASRecModel | SASRecGroup,
    prepared: PreparedData,
    examples: Sequence[NextItemExample],
    evaluation: EvaluationOptions,
    *,
    weight: float | None = None,
    num_candidates: int = 50,
    seed: int | None = None,
    settings: dict[str, Any] | None = None,
) -> MethodRanks:
    """
    Where the sum of the two models' log-probabilities puts the target of every example.

    Args:
        method (`str`): Its name in the report.
        model ([`~transformers.PreTrainedModel`]): The language model.
        teacher ([`SASRecModel`] or [`SASRecGroup`]): SASRec; of several the mean probability counts.
        prepared (`PreparedData`): The data.
        examples (`list[NextItemExample]`): The questions.
        evaluation (`EvaluationOptions`): Batch, and whether history is left out.
        weight (`float`, *optional*): Weight of SASRec; by default that of `WEIGHTS` with the highest NDCG@10 on
            `evaluation.validation_users` validation users.
        num_candidates (`int`, *optional*, defaults to `50`): As in [`late_fusion_ranks`].
        seed (`int`, *optional*): For the report.
        settings (`dict`, *optional*): For the report.

    Raises:
        `InputError`: where a weight is to be chosen on validation items that were trained on, or is negative.
    """
    if weight is not None and not weight >= 0:
        raise InputError(f"--fusion_weight is {weight}, expected 0 or more")
    if num_candidates < 10:
        raise InputError(f"--fusion_candidates is {num_candidates}, expected at least 10, the largest cut-off")
    reward = (
        teacher.mean_reward_func(prepared.item_trie, device=model.device)
        if isinstance(teacher, SASRecGroup)
        else SASRecReward(teacher, prepared.item_trie, device=model.device)
    )
    asked = prepared, model, reward, evaluation, num_candidates
    if weight is None:
        if prepared.options.train_on_validation:
            raise InputError("validation items were trained on, so they can choose no weight; give --fusion_weight")
        validation = sample(prepared.splits.validation, evaluation.validation_users)
        weight = choose_weight(_ranks(validation, WEIGHTS, *asked))
    ranks = _ranks(examples, [weight], *asked)[weight]
    used = {"fusion_weight": weight, "fusion_candidates": num_candidates}
    used |= {"exclude_history": evaluation.exclude_history}
    return MethodRanks(method, ranks.users, ranks.starts, ranks.ties, seed, (settings or {}) | used)


def _ranks(
    examples: Sequence[NextItemExample],
    weights: Sequence[float],
    prepared: PreparedData,
    model: PreTrainedModel,
    reward: RewardFunc,
    evaluation: EvaluationOptions,
    num_candidates: int,
) -> dict[float, Any]:
    questions = prepared.questions(list(examples))
    # SASRec reads all of it, not only what the prompt shows
    questions = questions.remove_columns("history").add_column("history", [example.history for example in examples])
    return late_fusion_ranks(
        model,
        prepared.tokenizer,
        questions,
        prepared.item_trie,
        reward,
        weights=weights,
        num_candidates=num_candidates,
        exclude_history=evaluation.exclude_history,
        batch_size=evaluation.eval_batch_size,
        progress=True,
        chat_template_kwargs=prepared.renderer.chat_template_kwargs,
    )
