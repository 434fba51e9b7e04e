"""Full-ranking evaluation of a language model, on one process or several."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..data.prompt_tokens import Prompt
from ..items.item_trie import ItemId
from .exact_ranking import rank_items, ranks_by_scores, ranks_in_lists
from .metrics import metric_values, standard_error
from .process_group import from_first, gather, has_sharded_weights, process_rank
from .recommend import recommend
from .resume import FinishedUsers, Ranks, json_fingerprint, model_fingerprint, tokenizer_fingerprint, trie_fingerprint


if TYPE_CHECKING:
    from pathlib import Path

    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ..items.item_trie import ItemTrie
    from .beam_search import Normalise


# Batches whose ranks are saved together: the most that is lost when a process is killed
BATCHES_A_FILE = 8


class RecommendationEvaluator:
    """
    Ranks the whole catalogue for every user of a data set and measures the ranks of the targets. No user is dropped: a
    target beyond the beams counts as not found, whatever the batch size.

    With several processes (`torchrun`, `accelerate launch`) each ranks a part of the batches, and all return the same
    metrics, bit for bit those of one process. Every process must call the evaluator. If each process holds only a part
    of the weights (FSDP2), all rank every user together, which is no faster.

    Args:
        dataset ([`~datasets.Dataset`]): Columns `prompt` and `item` (the target's id); optionally `user`, and
            `history` (item ids), which `exclude_history` needs. [`next_item_dataset`] gives all of them.
        item_trie ([`ItemTrie`]): The catalogue.
        k (`tuple[int, ...]`, *optional*, defaults to `(1, 5, 10)`): Cut-offs of Hit@K and NDCG@K.
        ranking (`"beam"` or `"exact"`, *optional*, defaults to `"beam"`): Constrained beam search ([`recommend`]), or
            the scores of all items ([`rank_items`]), which is slower and finds every target.
        num_beams (`int`, *optional*, defaults to `20`): Beams of the search, at least the largest cut-off. MRR counts
            within the beams.
        batch_size (`int`, *optional*, defaults to `64`): Users in a batch. Only the speed depends on it.
        exclude_history (`bool`, *optional*, defaults to `False`): Do not recommend items of the user's history. A
            target in the history then counts as not found.
        allow (`list[str | int]`, *optional*): The only items to recommend, for instance those in stock. Other targets
            count as not found.
        normalise (`"vocabulary"` or `"continuations"`, *optional*, defaults to `"vocabulary"`): As in [`recommend`].
        memory_budget_mib (`float`, *optional*): As in [`recommend`]: a batch is searched in parts that fit, with all
            beams.
        progress (`bool`, *optional*, defaults to `False`): Show a progress bar, of process 0's part.
        chat_template_kwargs (`dict`, *optional*): As in [`recommend`].

    Raises:
        `ValueError`: for a missing column, an empty data set, a target outside the catalogue, an unknown ranking, an
            empty batch, fewer beams than the largest cut-off, or exact ranking with a memory budget.

    Example:

    ```python
    from ilrec_trl import RecommendationEvaluator, next_item_dataset

    evaluator = RecommendationEvaluator(next_item_dataset(splits.test, catalog), item_trie)
    metrics = evaluator(model, tokenizer)  # {"hit@1": ..., "hit@5": ..., ..., "mrr": ...}
    evaluator.standard_errors["ndcg@10"], evaluator.last_ranks.starts
    ```
    """

    primary_metric = "ndcg@10"

    def __init__(
        self,
        dataset: Dataset,
        item_trie: ItemTrie,
        *,
        k: Sequence[int] = (1, 5, 10),
        ranking: Literal["beam", "exact"] = "beam",
        num_beams: int = 20,
        batch_size: int = 64,
        exclude_history: bool = False,
        allow: Sequence[ItemId] | None = None,
        normalise: Normalise = "vocabulary",
        memory_budget_mib: float | None = None,
        progress: bool = False,
        chat_template_kwargs: dict[str, Any] | None = None,
    ) -> None:
        if ranking not in ("beam", "exact"):
            raise ValueError(f"got ranking={ranking!r}; expected 'beam' or 'exact'")
        if ranking == "beam" and num_beams < max(k):
            raise ValueError(f"got num_beams={num_beams} for k={tuple(k)}; use at least {max(k)} beams")
        if ranking == "exact" and memory_budget_mib is not None:
            raise ValueError("memory_budget_mib bounds beam search alone; leave it out, or use ranking='beam'")
        if batch_size < 1:
            raise ValueError(f"got batch_size={batch_size}; expected at least 1 user a batch")
        self.questions = Questions.read(dataset, with_histories=exclude_history)
        item_trie.index_of(self.questions.items)  # refuse what is not in the catalogue before any work
        item_trie.index_of(allow or [])
        self.item_trie = item_trie
        self.k = tuple(k)
        self.ranking = ranking
        self.num_beams = num_beams
        self.batch_size = batch_size
        self.exclude_history = exclude_history
        self.allow = None if allow is None else list(allow)
        self.normalise = normalise
        self.memory_budget_mib = memory_budget_mib
        self.progress = progress
        self.chat_template_kwargs = chat_template_kwargs
        self.last_ranks: UserRanks | None = None
        self.standard_errors: dict[str, float] = {}
        self.batches = self.questions.batches(batch_size)

    def __call__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, resume_dir: str | Path | None = None
    ) -> dict[str, float]:
        """
        Rank the catalogue for every user.

        Args:
            model ([`~transformers.PreTrainedModel`]): Causal language model, the same on every process.
            tokenizer ([`~transformers.PreTrainedTokenizerBase`]): Its tokenizer.
            resume_dir (`str` or `Path`, *optional*): Folder that receives the ranks of finished users, every few
                batches. A killed evaluation resumes from it, with any number of processes, and ends with the same
                metrics.

        Returns:
            `dict[str, float]`: `hit@k` and `ndcg@k` for each cut-off and `mrr`, means over users. Standard errors are
            then in `standard_errors`, the ranks in `last_ranks`.

        Raises:
            `ValueError`: if `resume_dir` holds the ranks of another evaluation, or the processes differ in model,
                tokenizer, data set, catalogue or settings.
            `NotImplementedError`: for weights sharded by FSDP1 or ZeRO-3, and by FSDP2 with
                `normalise="continuations"`.
        """
        ranks = self._all_ranks(model, tokenizer, resume_dir)
        starts = np.array([ranks[row][0] for row in range(len(ranks))], dtype=np.float64)  # (U,)
        ties = np.array([ranks[row][1] for row in range(len(ranks))], dtype=np.int64)  # (U,)
        self.last_ranks = UserRanks(self.questions.users, self.questions.items, starts, ties)
        values = metric_values(starts, ties, self.k)
        self.standard_errors = {name: standard_error(each, self.questions.users) for name, each in values.items()}
        return {name: float(each.mean()) for name, each in values.items()}

    def _all_ranks(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, resume_dir: str | Path | None
    ) -> Ranks:
        """Ranks of every row, from disk, from this process and from the others."""
        rank, processes = process_rank()
        sharded = has_sharded_weights(model)
        if sharded and self.normalise == "continuations":
            raise NotImplementedError(
                "normalise='continuations' reads rows of the LM head, which FSDP2 splits over the processes. "
                "Use normalise='vocabulary', or evaluate the saved model."
            )
        finished: Ranks = {}
        store = None
        if processes > 1 or resume_dir is not None:
            about = self._about(model, tokenizer, sharded)
        if resume_dir is not None:
            store = FinishedUsers(resume_dir, about)
            finished = from_first(store.load)
        # Whole batches, so that each user shares a batch, and thus the rounding, with the same users as on one process
        left = [rows for rows in self.batches if not finished.keys() >= set(rows)]
        own = left if sharded else left[rank::processes]
        for part in gather(self._rank_batches(model, tokenizer, own, store if rank == 0 or not sharded else None)):
            finished |= part
        return finished

    def _rank_batches(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        batches: list[list[int]],
        store: FinishedUsers | None,
    ) -> Ranks:
        """Ranks of the rows of some batches, also written to `store`."""
        from tqdm.auto import tqdm

        ranks: Ranks = {}
        unsaved: Ranks = {}
        silent = not self.progress or process_rank()[0] > 0
        try:
            with tqdm(total=sum(map(len, batches)), desc="users", unit="user", disable=silent) as bar:
                for number, rows in enumerate(batches, 1):
                    found = dict(zip(rows, self._rank(model, tokenizer, rows), strict=True))
                    ranks |= found
                    unsaved |= found
                    if store is not None and number % BATCHES_A_FILE == 0:
                        store.add(unsaved)
                        unsaved = {}
                    bar.update(len(rows))
        finally:
            # Also if memory runs out or the user interrupts
            if store is not None and unsaved:
                store.add(unsaved)
        return ranks

    def _rank(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: list[int]
    ) -> list[tuple[float, int]]:
        """First rank and number of ties of each row's target."""
        asked = self.questions.select(rows)
        options: dict[str, Any] = {"normalise": self.normalise, "chat_template_kwargs": self.chat_template_kwargs}
        if self.ranking == "exact":
            scores = rank_items(model, tokenizer, asked.prompts, self.item_trie, **options)
            return ranks_by_scores(scores, asked.items, self.item_trie, asked.histories, self.allow)
        num_beams = min(self.num_beams, len(self.item_trie))
        lists = recommend(
            model,
            tokenizer,
            asked.prompts,
            self.item_trie,
            top_k=num_beams,
            num_beams=num_beams,
            allow=self.allow,
            exclude=asked.histories,
            batch_size=len(rows),
            memory_budget_mib=self.memory_budget_mib,
            **options,
        )
        return ranks_in_lists(lists, asked.items, self.item_trie, asked.histories, self.allow)

    def _about(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, sharded: bool) -> dict[str, str]:
        """Fingerprints of this evaluation, which every process must share."""
        names = ["ranking", "num_beams", "batch_size", "exclude_history", "allow", "normalise", "memory_budget_mib"]
        settings = {name: getattr(self, name) for name in [*names, "chat_template_kwargs"]}
        own = {
            "model": model_fingerprint(model),
            "tokenizer": tokenizer_fingerprint(tokenizer),
            "data set": json_fingerprint(dataclasses.asdict(self.questions)),
            "catalogue": trie_fingerprint(self.item_trie),
            "settings": json_fingerprint(settings),
        }
        every = gather(own)
        if sharded:
            # Each process holds other weights
            whole = json_fingerprint([about["model"] for about in every])
            every = [about | {"model": whole} for about in every]
        if others := sorted({name for about in every for name in own if about[name] != every[0][name]}):
            raise ValueError(
                f"the processes differ in {', '.join(others)}, so they cannot share an evaluation. Give every process "
                "the same."
            )
        return every[0]


@dataclass(frozen=True)
class UserRanks:
    """
    Rank of each user's target, in the order of the data set.

    Attributes:
        users (`list[str]`): User ids, or row numbers if the data set has no column `user`.
        items (`list[str]`): Target ids.
        starts (`np.ndarray` of shape `(U,)`): First rank the target can have, from 1; `inf` when not retrieved.
        ties (`np.ndarray` of shape `(U,)`): Number of items that share the target's rank.
    """

    users: list[str]
    items: list[str]
    starts: NDArray[np.float64]
    ties: NDArray[np.int64]


@dataclass(frozen=True)
class Questions:
    """
    The columns of a data set that evaluation reads.

    Attributes:
        prompts (`list[str]` or `list[list[dict]]`): Prompts, or conversations.
        items (`list[str | int]`): Target ids.
        users (`list[str]`): User ids, or row numbers if the data set has no column `user`.
        histories (`list[list[str | int]]`, *optional*): Items not to recommend.
    """

    prompts: list[Prompt]
    items: list[Any]
    users: list[str]
    histories: list[list[ItemId]] | None

    @classmethod
    def read(cls, dataset: Dataset, with_histories: bool) -> Questions:
        """Read a data set; `ValueError` if it lacks a column or rows, or asks for several items in a row."""
        needed = {"prompt", "item"} | ({"history"} if with_histories else set())
        if missing := needed - set(dataset.column_names):
            raise ValueError(
                f"the data set has columns {dataset.column_names}, but evaluation needs {sorted(missing)} as well; "
                "build it with `next_item_dataset`"
            )
        if not len(dataset):
            raise ValueError("the data set has no row, so there is no user to evaluate")
        if isinstance(dataset[0]["item"], list):
            raise ValueError(
                f"`item` of the first row is a list of {len(dataset[0]['item'])} ids, but a row to evaluate asks for "
                "one item; build the data set with `next_item_dataset`"
            )
        users = map(str, dataset["user"] if "user" in dataset.column_names else range(len(dataset)))
        histories = list(dataset["history"]) if with_histories else None
        return cls(list(dataset["prompt"]), list(dataset["item"]), list(users), histories)

    def select(self, rows: list[int]) -> Questions:
        """The questions of some rows."""
        return Questions(
            [self.prompts[row] for row in rows],
            [self.items[row] for row in rows],
            [self.users[row] for row in rows],
            self.histories and [self.histories[row] for row in rows],
        )

    def batches(self, batch_size: int) -> list[list[int]]:
        """
        Row numbers in batches of prompts of similar length, which need little padding. The longest come first, so that
        memory runs out at the start or never.
        """
        order = sorted(range(len(self.prompts)), key=lambda row: -_length(self.prompts[row]))
        return [order[first : first + batch_size] for first in range(0, len(order), batch_size)]


def _length(prompt: Prompt) -> int:
    return len(prompt) if isinstance(prompt, str) else sum(len(message["content"]) for message in prompt)
