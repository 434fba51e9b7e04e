"""Late fusion of a language model with SASRec: a ceiling for what rewards can add."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ilrec_trl.data.splits import NextItemExample, sample
from ilrec_trl.evaluation.evaluator import Questions, UserRanks
from ilrec_trl.evaluation.exact_ranking import ranks_of_scores
from ilrec_trl.evaluation.metrics import metric_values
from ilrec_trl.evaluation.recommend import recommend
from ilrec_trl.items.trie_arrays import check_item_scores
from ilrec_trl.pipeline.options import EvaluationOptions, InputError
from ilrec_trl.pipeline.prepare import PreparedData
from ilrec_trl.report.results import MethodRanks
from ilrec_trl.rewards.rewards import RewardFunc, SASRecReward
from ilrec_trl.rewards.sasrec_group import SASRecGroup


if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ilrec_trl.items.item_trie import ItemId, ItemTrie
    from ilrec_trl.rewards.rewards import RewardFunc
    from ilrec_trl.rewards.sasrec import SASRecModel


def late_fusion_ranks(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    dataset: Dataset,
    item_trie: ItemTrie,
    reward_func: RewardFunc,
    *,
    weights: Sequence[float],
    num_candidates: int = 50,
    exclude_history: bool = False,
    batch_size: int = 64,
    progress: bool = False,
    chat_template_kwargs: dict[str, Any] | None = None,
) -> dict[float, UserRanks]:
    """
    Where targets come when items are ranked by the log-probability of the language model plus `weight` times that of
    a collaborative-filtering model: how much the two know together, a ceiling for what the one can learn from the
    other.

    The candidates of a user are the items that a beam search finds, the first of the collaborative model, as many, and
    those that share a token sequence with one of them. Each candidate has both its exact scores. A target that is no
    candidate counts as not found, as beyond the beams of [`RecommendationEvaluator`].

    Args:
        model ([`~transformers.PreTrainedModel`]):
            Causal language model.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer.
        dataset ([`~datasets.Dataset`]):
            Columns `prompt`, `item`, `history` (of the collaborative model, and what `exclude_history` leaves out) and
            optionally `user`, as [`next_item_dataset`] gives them.
        item_trie ([`ItemTrie`]):
            The catalogue.
        reward_func ([`RewardFunc`]):
            The collaborative model, for instance a [`SASRecReward`]. It is given histories and users, not targets.
        weights (`list[float]`):
            Weights to try, each at least 0. 0 is the language model alone.
        num_candidates (`int`, *optional*, defaults to `50`):
            Candidates of each model; the beams of the search.
        exclude_history (`bool`, *optional*, defaults to `False`):
            As in [`RecommendationEvaluator`].
        batch_size (`int`, *optional*, defaults to `64`):
            Users a batch.
        progress (`bool`, *optional*, defaults to `False`):
            Show a progress bar.
        chat_template_kwargs (`dict`, *optional*):
            As in [`recommend`].

    Returns:
        `dict[float, UserRanks]`: ranks of all users for each weight, in the order of the data set. Candidates of one
        score share a place.

    Raises:
        `ValueError`: for no weight or a negative one, no candidates, or a data set without a column that is needed.
    """
    from tqdm.auto import tqdm

    if not weights or not min(weights) >= 0:
        raise ValueError(f"got weights {list(weights)}; expected one or more, each at least 0")
    if num_candidates < 1:
        raise ValueError(f"got num_candidates={num_candidates}; expected at least 1")
    questions = Questions.read(dataset, with_histories=True)
    item_trie.index_of(questions.items)  # refuse what is not in the catalogue before any work
    found: dict[float, list[tuple[float, int]]] = {weight: [(0.0, 0)] * len(questions.items) for weight in weights}
    with tqdm(total=len(questions.items), desc="users", unit="user", disable=not progress) as bar:
        for rows in questions.batches(batch_size):
            asked = questions.select(rows)
            scores, collaborative = candidate_scores(
                model, tokenizer, asked, item_trie, reward_func, num_candidates, exclude_history, chat_template_kwargs
            )
            targets = item_trie.index_of(asked.items)
            for weight in weights:
                ranks = ranks_of_scores(scores + weight * collaborative, targets)
                for row, rank in zip(rows, ranks, strict=True):
                    found[weight][row] = rank
            bar.update(len(rows))
    return {weight: _user_ranks(questions, ranks) for weight, ranks in found.items()}


def choose_weight(ranks: dict[float, UserRanks]) -> float:
    """The weight of the highest NDCG@10, the smallest of several; for validation users."""
    quality = {weight: metric_values(each.starts, each.ties)["ndcg@10"].mean() for weight, each in ranks.items()}
    return min(quality, key=lambda weight: (-quality[weight], weight))


def candidate_scores(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    asked: Questions,
    item_trie: ItemTrie,
    reward_func: RewardFunc,
    num_candidates: int,
    exclude_history: bool,
    chat_template_kwargs: dict[str, Any] | None = None,
) -> tuple[Tensor, Tensor]:
    """
    Log-probabilities of the candidates by the language model and by the collaborative one, both `(B, I)` on the CPU:
    minus infinity in the first where an item is no candidate.
    """
    assert asked.histories is not None
    collaborative = reward_func(asked.histories, user=asked.users).float().cpu()  # type: ignore[arg-type]
    check_item_scores(collaborative, len(item_trie), len(asked.items), source="reward_func", histories=asked.histories)
    collaborative = (collaborative / collaborative.sum(-1, keepdim=True)).clamp(min=torch.finfo().tiny).log()  # (B, I)
    excluded = asked.histories if exclude_history else None
    number = min(num_candidates, len(item_trie))
    options: dict[str, Any] = {"batch_size": len(asked.items), "chat_template_kwargs": chat_template_kwargs}
    own = recommend(
        model, tokenizer, asked.prompts, item_trie, top_k=number, num_beams=number, exclude=excluded, **options
    )
    scores = torch.full_like(collaborative, -torch.inf)  # (B, I)
    _write(scores, own, item_trie)
    others = _others(scores, collaborative, item_trie, number, excluded)
    most = max(map(len, others))
    if most:
        # As many beams as sequences: each of them is found. Who lacks none is asked for a known one
        allowed = [items or [pairs[0][0]] for items, pairs in zip(others, own, strict=True)]
        _write(
            scores,
            recommend(
                model, tokenizer, asked.prompts, item_trie, top_k=most, num_beams=most, allow=allowed, **options
            ),
            item_trie,
        )
    return scores, collaborative


def _others(
    scores: Tensor,
    collaborative: Tensor,
    item_trie: ItemTrie,
    number: int,
    excluded: Sequence[Sequence[ItemId]] | None,
) -> list[list[ItemId]]:
    """Candidates that the language model's search did not find, user by user."""
    ranked = collaborative.clone()
    for row, items in enumerate(excluded or ()):
        ranked[row, item_trie.index_of(items)] = -torch.inf
    best = torch.zeros_like(scores, dtype=torch.bool).scatter_(1, ranked.topk(number).indices, True)  # (B, I)
    # With those of the same tokens, which have the same score
    leaves = item_trie.arrays.item_leaf.cpu().unique_consecutive(return_inverse=True)[1]  # (I,)
    shared = torch.zeros(len(best), int(leaves.max()) + 1, dtype=torch.bool)
    shared = shared.int().index_add_(1, leaves, best.int()).bool()[:, leaves]  # (B, I)
    wanted = shared & (scores == -torch.inf) & (ranked > -torch.inf)
    return [[item_trie.item_ids[column] for column in row.nonzero().flatten().tolist()] for row in wanted]


def _write(scores: Tensor, lists: Sequence[Sequence[tuple[ItemId, float]]], item_trie: ItemTrie) -> None:
    for row, pairs in enumerate(lists):
        if pairs:
            columns = item_trie.index_of([item for item, _ in pairs]).to(scores.device)
            scores[row, columns] = torch.tensor([score for _, score in pairs], dtype=scores.dtype)


def _user_ranks(questions: Questions, ranks: Sequence[tuple[float, int]]) -> UserRanks:
    starts = np.array([start for start, _ in ranks], dtype=np.float64)  # (U,)
    ties = np.array([number for _, number in ranks], dtype=np.int64)  # (U,)
    return UserRanks(questions.users, questions.items, starts, ties)


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
