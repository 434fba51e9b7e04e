"""
RecTools' SASRec on the sequences that benchmarks/accuracy/sasrec.py hands over, run by the Python of an environment
that has
RecTools (`pip install 'rectools[torch]==0.19.0'`); nothing of ilrec_trl is imported. Reads JSON from stdin,
prints JSON.
"""

import importlib.metadata
import json
import sys
import time
import warnings

import numpy as np
import pandas as pd
import torch
from pytorch_lightning import Trainer
from rectools import Columns
from rectools.dataset import Dataset
from rectools.models import SASRecModel


def trainer() -> Trainer:
    return Trainer(
        accelerator="cpu",
        max_epochs=1,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        logger=False,
    )


def main() -> None:
    warnings.simplefilter("ignore")
    task = json.load(sys.stdin)
    torch.set_num_threads(1)
    torch.manual_seed(task["seed"])
    np.random.seed(task["seed"])
    rows = [(user, item, 1.0, place) for user, items in task["train"].items() for place, item in enumerate(items)]
    frame = pd.DataFrame(rows, columns=[Columns.User, Columns.Item, Columns.Weight, Columns.Datetime])
    frame[Columns.Datetime] = pd.to_datetime(frame[Columns.Datetime], unit="D")
    dataset = Dataset.construct(frame)
    model = SASRecModel(**task["settings"], get_trainer_func=trainer, recommend_torch_device="cpu")
    users = list(task["validation"])
    targets = [task["validation"][user] for user in users]
    epochs = []
    for _ in range(task["epochs"]):
        start = time.process_time()
        model.fit_partial(dataset, min_epochs=1, max_epochs=1)
        seconds = time.process_time() - start
        found = model.recommend(users, dataset, k=10, filter_viewed=False)
        ranks = {(user, item): rank for user, item, rank in found[[Columns.User, Columns.Item, Columns.Rank]].values}
        gains = [
            1 / np.log2(ranks[user, item] + 1) if (user, item) in ranks else 0.0
            for user, item in zip(users, targets, strict=True)
        ]
        epochs.append({"seconds": seconds, "ndcg@10": float(np.mean(gains))})
        sys.stderr.write(f"{epochs[-1]}\n")
    versions = {name: importlib.metadata.version(name) for name in ("rectools", "torch", "pytorch-lightning")}
    json.dump({"epochs": epochs, "versions": versions}, sys.stdout)


if __name__ == "__main__":
    main()
