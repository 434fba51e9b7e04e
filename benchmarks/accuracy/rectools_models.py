"""
Baselines of RecTools for benchmarks/accuracy/rectools_baselines.py, run by the Python of an environment that has
RecTools (`pip install 'rectools[torch]==0.19.0'`); nothing of ilrec_trl is imported. Reads task.json in the folder it
is given, and writes ranks.npz and found.json there. Users and items are numbers.
"""

import copy
import importlib.metadata
import json
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from implicit.nearest_neighbours import BM25Recommender, CosineRecommender, TFIDFRecommender
from pytorch_lightning import Trainer
from rectools import Columns
from rectools.dataset import Dataset, IdMap, Interactions
from rectools.metrics import NDCG, HitRate
from rectools.models import EASEModel, ImplicitItemKNNWrapperModel, SASRecModel


NEIGHBOURS = {"bm25": BM25Recommender, "cosine": CosineRecommender, "tfidf": TFIDFRecommender}
USERS_AT_ONCE = 512


def trainer() -> Trainer:
    return Trainer(
        accelerator="auto",
        devices=1,
        max_epochs=1,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        logger=False,
    )


class Baseline:
    """A model of RecTools, by the name and settings of a task."""

    def __init__(self, task: dict[str, Any], settings: dict[str, Any]) -> None:
        self.task, self.settings = task, settings
        self.sequential = task["model"] == "sasrec"
        torch.manual_seed(task["seed"])
        np.random.seed(task["seed"])
        if self.sequential:
            self.model = SASRecModel(**settings, loss="softmax", epochs=1, get_trainer_func=trainer)
        elif task["model"] == "ease":
            self.model = EASEModel(**settings, recommend_n_threads=1, recommend_use_gpu_ranking=False)
        else:
            kind, own = NEIGHBOURS[settings["weighting"]], {"K": settings["neighbours"], "num_threads": 1}
            self.model = ImplicitItemKNNWrapperModel(kind(**own))

    def fit(self, sequences: list[list[int]], epochs: int = 1) -> None:
        """Fit; SASRec goes on from where it is. Items that no sequence holds are unknown to the model afterwards."""
        self.known = np.unique(np.concatenate([np.array(items, dtype=int) for items in sequences]))
        data = self.dataset(sequences)
        if self.sequential:
            self.model.fit_partial(data, min_epochs=epochs, max_epochs=epochs)
        else:
            self.model.fit(data)
        if self.task["model"] == "ease":
            self.turn_round(sequences[0])

    def turn_round(self, items: list[int]) -> None:
        """
        A column of EASE's weights says how much each item counts for one, but RecTools 0.19.0 ranks by the rows. Its
        ranking also reads the transpose without the copy that it would make for every few users.
        """
        weights = self.model.weight
        self.model.weight = weights.T
        ((_, top),) = self.recommend([items], 1)
        own, first = np.searchsorted(self.known, np.unique(items)), np.searchsorted(self.known, top[Columns.Item][0])
        expected, score = weights[own, first].sum(), top[Columns.Score][0]
        if not np.isclose(expected, score, rtol=1e-3):
            raise ValueError(
                f"EASE scores an item {score:.4g}, by the columns of its weights {expected:.4g}: this RecTools no "
                "longer ranks by the rows; leave its weights as they are."
            )

    def dataset(self, sequences: list[list[int]]) -> Dataset:
        """Known items of users 0, 1, 2 and so on. All data sets number the items alike, as EASE and its like need."""
        rows = [(user, item, place) for user, items in enumerate(sequences) for place, item in enumerate(items)]
        frame = pd.DataFrame(rows, columns=[Columns.User, Columns.Item, Columns.Datetime])
        frame = frame[frame[Columns.Item].isin(self.known)]
        if not self.sequential:
            frame = frame.drop_duplicates([Columns.User, Columns.Item])
        frame[Columns.Weight] = 1.0
        frame[Columns.Datetime] = pd.to_datetime(frame[Columns.Datetime], unit="D")
        users, items = IdMap(np.arange(len(sequences))), IdMap(self.known)
        return Dataset(users, items, Interactions.from_raw(frame, users, items))

    def recommend(self, histories: list[list[int]], k: int) -> Iterator[tuple[range, pd.DataFrame]]:
        """The top `k` of some users after the others, numbered from 0 in each part; none of who has no known item."""
        for start in range(0, len(histories), USERS_AT_ONCE):
            rows = range(start, min(start + USERS_AT_ONCE, len(histories)))
            # Matrices end with the highest item that anybody has: one more user, who is asked nothing, has the last
            part = self.dataset([*(histories[row] for row in rows), [int(self.known[-1])]])
            known = set(self.known.tolist())
            users = [place for place, row in enumerate(rows) if known & set(histories[row])]
            exclude = self.task["exclude_history"]
            yield rows, self.model.recommend(np.array(users), part, k=min(k, len(known)), filter_viewed=exclude)

    def quality(self, asked: dict[str, list]) -> dict[str, float]:
        """RecTools' own Hit@10 and NDCG@10, over all users that were asked."""
        found = []
        for rows, top in self.recommend(asked["histories"], 10):
            top[Columns.User] += rows.start
            found.append(top)
        targets = pd.DataFrame({Columns.User: np.arange(len(asked["targets"])), Columns.Item: asked["targets"]})
        top = pd.concat(found)
        return {
            "hit@10": float(HitRate(10).calc(top, targets)),
            "ndcg@10": float(NDCG(10, divide_by_achievable=True).calc(top, targets)),
        }

    def ranks(self, asked: dict[str, list]) -> tuple[np.ndarray, np.ndarray]:
        """
        First rank and number of ties of every target among all items, by their scores. Items without a score come
        after the others and share a place; a target of the history that is not to be recommended is not found.
        """
        num_items, exclude = self.task["num_items"], self.task["exclude_history"]
        starts, ties = np.empty(len(asked["targets"])), np.ones(len(asked["targets"]), dtype=np.int64)
        for rows, top in self.recommend(asked["histories"], num_items):
            scores = np.full((len(rows), num_items), -np.inf)
            scores[top[Columns.User], top[Columns.Item]] = top[Columns.Score]
            for place, row in enumerate(rows):
                target, left_out = asked["targets"][row], set(asked["histories"][row]) if exclude else set()
                if target in left_out:
                    starts[row] = np.inf
                    continue
                own = scores[place, target]
                starts[row] = 1 + (scores[place] > own).sum()
                ties[row] = (scores[place] == own).sum() - (len(left_out) if own == -np.inf else 0)
        return starts, ties


def tune(task: dict[str, Any]) -> tuple[dict[str, Any], Baseline]:
    """Candidate and, where it trains by epochs, epoch of the best NDCG@10 on validation; and that model."""
    best: dict[str, Any] = {"ndcg@10": -1.0}
    tried = []
    for settings in task["candidates"]:
        baseline = Baseline(task, settings)
        highest, worse = -1.0, 0
        for epoch in range(1, (task["epochs"] if baseline.sequential else 1) + 1):
            start = time.perf_counter()
            baseline.fit(task["train"])
            seconds = time.perf_counter() - start
            found = {"settings": settings, "epoch": epoch, "seconds": seconds} | baseline.quality(task["validation"])
            sys.stderr.write(f"{task['model']} {found}\n")
            tried.append(found)
            worse = 0 if found["ndcg@10"] > highest else worse + 1
            highest = max(highest, found["ndcg@10"])
            if found["ndcg@10"] > best["ndcg@10"]:
                best, kept = found, baseline
                weights = copy.deepcopy(baseline.model.torch_model.state_dict()) if baseline.sequential else None
            if worse == task["patience"]:
                break
    if weights is not None:
        kept.model.torch_model.load_state_dict(weights)
    return best | {"tried": tried}, kept


def main() -> None:
    warnings.simplefilter("ignore")
    folder = Path(sys.argv[1])
    task = json.loads((folder / "task.json").read_text())
    torch.set_num_threads(task["threads"])
    chosen, baseline = tune(task)
    if task["refit"]:
        baseline = Baseline(task, chosen["settings"])
        baseline.fit(task["refit"], chosen["epoch"])
    start = time.perf_counter()
    starts, ties = baseline.ranks(task["test"])
    chosen["seconds_of_ranking"] = time.perf_counter() - start
    chosen["library_test"] = baseline.quality(task["test"])
    chosen["versions"] = {name: importlib.metadata.version(name) for name in ("rectools", "torch", "numpy")}
    np.savez(folder / "ranks.npz", starts=starts, ties=ties)
    (folder / "found.json").write_text(json.dumps(chosen))


if __name__ == "__main__":
    main()
