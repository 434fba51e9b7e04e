"""
Late fusion of a language model with SASRec: items are ranked by the sum of both log-probabilities. It is a ceiling for
what rewards can add, since both models must be served:

    python -m benchmarks.accuracy.late_fusion --prepared runs/data --model runs/sft --sasrec runs/sasrec
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from benchmarks.accuracy.command import run_command
from ilrec_trl.data.splits import NextItemExample, sample
from ilrec_trl.evaluation.evaluator import Questions, UserRanks
from ilrec_trl.evaluation.exact_ranking import ranks_of_scores
from ilrec_trl.evaluation.metrics import metric_values
from ilrec_trl.evaluation.recommend import recommend
from ilrec_trl.items.trie_arrays import check_item_scores
from ilrec_trl.pipeline.options import EvaluationOptions, InputError
from ilrec_trl.pipeline.prepared_data import PreparedData
from ilrec_trl.pipeline.recommend import load_model
from ilrec_trl.pipeline.teacher import load_teacher
from ilrec_trl.report.console import metrics_table, show
from ilrec_trl.report.results import MethodRanks, summarise_methods, write_ranks, write_results
from ilrec_trl.rewards.combined_rewards import EnsembleReward
from ilrec_trl.rewards.rewards import RewardFunc, SASRecReward
from ilrec_trl.rewards.sasrec_group import SASRecGroup


if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ilrec_trl.items.item_trie import ItemId, ItemTrie
    from ilrec_trl.rewards.sasrec import SASRecModel

WEIGHTS = (0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0)


@dataclass
class FusionOptions:
    """How the scores of SASRec are added."""

    fusion_weight: float | None = field(
        default=None,
        metadata={"help": "Weight of SASRec's log-probabilities. By default the best of a few on validation users."},
    )
    fusion_candidates: int = field(
        default=50, metadata={"help": "Items that each model proposes; the union is ranked by the sum."}
    )


@dataclass
class FusionInputs:
    """Evaluate a trained language model together with a trained SASRec."""

    prepared: str = field(metadata={"help": "Folder that `ilrec prepare` wrote."})
    model: str = field(metadata={"help": "Folder of the trained language model."})
    sasrec: str = field(metadata={"help": "Folder of the trained SASRec, or of several (from `ilrec sasrec`)."})
    output_dir: str | None = field(
        default=None,
        metadata={"help": "Folder that receives metrics.json and ranks.parquet; without it none is written."},
    )
    split: str = field(default="test", metadata={"help": "Users' questions.", "choices": ["validation", "test"]})


PROGRAM = "benchmarks.accuracy.late_fusion"
OPTIONS = [FusionInputs, FusionOptions, EvaluationOptions]


@dataclass
class LateFusion:
    """
    Ranks items by the log-probability of a language model plus `weight` times that of a collaborative-filtering model.

    The candidates of a user are the items that a beam search finds, the first of the collaborative model, as many, and
    those that share a token sequence with one of them. Each candidate has both its exact scores. A target that is no
    candidate counts as not found, as beyond the beams of [`RecommendationEvaluator`].

    Args:
        model ([`~transformers.PreTrainedModel`]):
            Causal language model.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer.
        item_trie ([`ItemTrie`]):
            The catalogue.
        reward_func ([`RewardFunc`]):
            The collaborative model, for instance a [`SASRecReward`]. It is given histories and users, not targets.
        num_candidates (`int`, *optional*, defaults to `50`):
            Candidates of each model; the beams of the search.
        exclude_history (`bool`, *optional*, defaults to `False`):
            As in [`RecommendationEvaluator`].
        batch_size (`int`, *optional*, defaults to `64`):
            Users a batch.
        chat_template_kwargs (`dict`, *optional*):
            As in [`recommend`].

    Raises:
        `ValueError`: for fewer than 1 candidate.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    item_trie: ItemTrie
    reward_func: RewardFunc
    num_candidates: int = 50
    exclude_history: bool = False
    batch_size: int = 64
    chat_template_kwargs: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.num_candidates < 1:
            raise ValueError(f"got num_candidates={self.num_candidates}; expected at least 1")

    def ranks(self, dataset: Dataset, weights: Sequence[float]) -> dict[float, UserRanks]:
        """
        Rank the target of every question.

        Args:
            dataset ([`~datasets.Dataset`]):
                Columns `prompt`, `item`, `history` (of the collaborative model, and what `exclude_history` leaves out)
                and optionally `user`, as [`next_item_dataset`] gives them.
            weights (`list[float]`):
                Weights to try, each at least 0. 0 is the language model alone.

        Returns:
            `dict[float, UserRanks]`: ranks of all users for each weight, in the order of the data set. Candidates of
            one score share a place.

        Raises:
            `ValueError`: for no weight or a negative one, or a data set without a column that is needed.
        """
        if not weights or not min(weights) >= 0:
            raise ValueError(f"got weights {list(weights)}; expected one or more, each at least 0")
        questions = Questions.read(dataset, with_histories=True)
        self.item_trie.index_of(questions.items)  # refuse what is not in the catalogue before any work
        found: dict[float, list[tuple[float, int]]] = {weight: [(0.0, 0)] * len(questions.items) for weight in weights}
        # No bar where the output is a file
        with tqdm(total=len(questions.items), desc="users", unit="user", disable=None) as bar:
            for rows in questions.batches(self.batch_size):
                asked = questions.select(rows)
                scores, collaborative = self.candidate_scores(asked)
                targets = self.item_trie.index_of(asked.items)
                for weight in weights:
                    ranks = ranks_of_scores(scores + weight * collaborative, targets)
                    for row, rank in zip(rows, ranks, strict=True):
                        found[weight][row] = rank
                bar.update(len(rows))
        return {weight: _user_ranks(questions, ranks) for weight, ranks in found.items()}

    def candidate_scores(self, asked: Questions) -> tuple[Tensor, Tensor]:
        """
        Log-probabilities of the candidates by the language model and by the collaborative one, both `(B, I)` on the
        CPU: minus infinity in the first where an item is no candidate.
        """
        assert asked.histories is not None
        scores = self.reward_func(asked.histories, user=asked.users).float().cpu()  # type: ignore[arg-type]
        check_item_scores(
            scores, len(self.item_trie), len(asked.items), source="reward_func", histories=asked.histories
        )
        collaborative = (scores / scores.sum(-1, keepdim=True)).clamp(min=torch.finfo().tiny).log()  # (B, I)
        number = min(self.num_candidates, len(self.item_trie))
        excluded = asked.histories if self.exclude_history else None
        own = self._search(asked, number, exclude=excluded)
        scores = torch.full_like(collaborative, -torch.inf)  # (B, I)
        self._write(scores, own)
        others = self._others(scores, collaborative, number, excluded)
        most = max(map(len, others))
        if most:
            # As many beams as sequences: each of them is found. Who lacks none is asked for a known one
            allowed = [items or [pairs[0][0]] for items, pairs in zip(others, own, strict=True)]
            self._write(scores, self._search(asked, most, allow=allowed))
        return scores, collaborative

    def _search(self, asked: Questions, number: int, **limits: Any) -> list[list[tuple[ItemId, float]]]:
        return recommend(
            self.model,
            self.tokenizer,
            asked.prompts,
            self.item_trie,
            top_k=number,
            num_beams=number,
            batch_size=len(asked.items),
            chat_template_kwargs=self.chat_template_kwargs,
            **limits,
        )

    def _others(
        self, scores: Tensor, collaborative: Tensor, number: int, excluded: Sequence[Sequence[ItemId]] | None
    ) -> list[list[ItemId]]:
        """Candidates that the language model's search did not find, user by user."""
        ranked = collaborative.clone()
        for row, items in enumerate(excluded or ()):
            ranked[row, self.item_trie.index_of(items)] = -torch.inf
        best = torch.zeros_like(scores, dtype=torch.bool).scatter_(1, ranked.topk(number).indices, True)  # (B, I)
        # With those of the same tokens, which have the same score
        leaves = self.item_trie.arrays.item_leaf.cpu().unique_consecutive(return_inverse=True)[1]  # (I,)
        shared = torch.zeros(len(best), int(leaves.max()) + 1, dtype=torch.bool)
        shared = shared.int().index_add_(1, leaves, best.int()).bool()[:, leaves]  # (B, I)
        wanted = shared & (scores == -torch.inf) & (ranked > -torch.inf)
        item_ids = self.item_trie.item_ids
        return [[item_ids[item_index] for item_index in row.nonzero().flatten().tolist()] for row in wanted]

    def _write(self, scores: Tensor, lists: Sequence[Sequence[tuple[ItemId, float]]]) -> None:
        for row, pairs in enumerate(lists):
            if pairs:
                item_index = self.item_trie.index_of([item for item, _ in pairs]).to(scores.device)
                scores[row, item_index] = torch.tensor([score for _, score in pairs], dtype=scores.dtype)


def _user_ranks(questions: Questions, ranks: Sequence[tuple[float, int]]) -> UserRanks:
    starts = np.array([start for start, _ in ranks], dtype=np.float64)  # (U,)
    ties = np.array([number for _, number in ranks], dtype=np.int64)  # (U,)
    return UserRanks(questions.users, questions.items, starts, ties)


def choose_weight(ranks: dict[float, UserRanks]) -> float:
    """The weight of the highest NDCG@10, the smallest of several; for validation users."""
    quality = {weight: metric_values(each.starts, each.ties)["ndcg@10"].mean() for weight, each in ranks.items()}
    return min(quality, key=lambda weight: (-quality[weight], weight))


def fused_ranks(
    method: str,
    model: PreTrainedModel,
    teacher: SASRecModel | SASRecGroup,
    prepared: PreparedData,
    examples: Sequence[NextItemExample],
    evaluation: EvaluationOptions,
    fusion: FusionOptions | None = None,
    seed: int | None = None,
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
        fusion (`FusionOptions`, *optional*): Weight of SASRec, by default that of `WEIGHTS` with the highest NDCG@10
            on `evaluation.validation_users` validation users, and number of candidates.
        seed (`int`, *optional*): For the report.

    Raises:
        `InputError`: where a weight is to be chosen on validation items that were trained on, or is negative.
    """
    fusion = fusion or FusionOptions()
    weight, candidates = fusion.fusion_weight, fusion.fusion_candidates
    if weight is not None and not weight >= 0:
        raise InputError(f"--fusion_weight is {weight}, expected 0 or more")
    if candidates < 10:
        raise InputError(f"--fusion_candidates is {candidates}, expected at least 10, the largest cut-off")
    late_fusion = LateFusion(
        model,
        prepared.tokenizer,
        prepared.item_trie,
        mean_reward_func(teacher, prepared, model.device),
        candidates,
        evaluation.exclude_history,
        evaluation.eval_batch_size,
        prepared.renderer.chat_template_kwargs,
    )
    if weight is None:
        if prepared.options.train_on_validation:
            raise InputError("validation items were trained on, so they can choose no weight; give --fusion_weight")
        validation = sample(prepared.splits.validation, evaluation.validation_users)
        weight = choose_weight(late_fusion.ranks(_questions(prepared, validation), WEIGHTS))
    ranks = late_fusion.ranks(_questions(prepared, examples), [weight])[weight]
    settings = {"fusion_weight": weight, "fusion_candidates": candidates}
    settings |= {"exclude_history": evaluation.exclude_history}
    return MethodRanks(method, ranks.users, ranks.starts, ranks.ties, seed, settings)


def mean_reward_func(
    teacher: SASRecModel | SASRecGroup, prepared: PreparedData, device: torch.device | None = None
) -> RewardFunc:
    """Of several models the mean for every user, since no model was trained on the questions of an evaluation."""
    models = teacher.models if isinstance(teacher, SASRecGroup) else [teacher]
    rewards = [SASRecReward(model, prepared.item_trie, device=device) for model in models]
    return rewards[0] if len(rewards) == 1 else EnsembleReward(rewards)


def _questions(prepared: PreparedData, examples: Sequence[NextItemExample]) -> Dataset:
    """The questions with whole histories: SASRec reads all of it, not only what the prompt shows."""
    questions = prepared.questions(list(examples))
    return questions.remove_columns("history").add_column("history", [example.history for example in examples])


def evaluate_fusion(inputs: FusionInputs, fusion: FusionOptions, evaluation: EvaluationOptions) -> None:
    """Rank a split by a saved language model and a saved SASRec together; show the metrics, and write them."""
    if evaluation.ranking != "beam":
        raise InputError(
            f"--ranking is {evaluation.ranking}, expected beam: late fusion ranks candidates of a beam search; leave "
            "--ranking out"
        )
    prepared = PreparedData.load(inputs.prepared)
    model, teacher = load_model(inputs.model), load_teacher(inputs.sasrec, prepared)
    examples = getattr(prepared.splits, inputs.split)
    method = f"{Path(inputs.model).resolve().name} + SASRec"
    ranks = fused_ranks(method, model, teacher, prepared, examples, evaluation, fusion)
    if fusion.fusion_weight is None:
        show(f"Weight of SASRec, chosen on validation users: {ranks.settings['fusion_weight']:g}")
    for note in prepared.notes:
        show(note)
    summary = summarise_methods([ranks])
    if inputs.output_dir is not None:
        folder = Path(inputs.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        write_results({"split": inputs.split, "methods": summary}, folder / "metrics.json")
        write_ranks([ranks], [example.item for example in examples], folder / "ranks.parquet")
    show(metrics_table(summary))


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns 0, or 2 where something the user gave cannot be used."""
    return run_command(PROGRAM, "Rank by a language model and SASRec together", OPTIONS, evaluate_fusion, argv)


if __name__ == "__main__":
    sys.exit(main())
