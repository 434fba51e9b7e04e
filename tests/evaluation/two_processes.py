"""
What each of two CPU processes runs: `python -m torch.distributed.run --nproc_per_node 2 -m
tests.evaluation.two_processes FOLDER JOB`. Each rank writes what it saw to a JSON file. One process alone calls the
same functions for what to compare with.
"""

import json
import os
import signal
import sys
import warnings
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from trl import SFTConfig, SFTTrainer

from ilrec_trl.evaluation import evaluator as evaluator_module
from ilrec_trl.evaluation.evaluator import RecommendationEvaluator
from ilrec_trl.evaluation.recommendation_callback import RecommendationCallback
from tests.torchrun import leave

from .small_store import make_catalog, make_dataset, make_model


# Users that divide evenly among processes and batches, and users that do not.
CASES = [
    {"users": users, "batch_size": batch_size, **options}
    for users, batch_size in [(1, 4), (2, 1), (16, 4), (17, 4), (18, 4), (23, 3), (18, 64)]
    for options in [{}, {"ranking": "exact"}, {"exclude_history": True, "num_beams": 5, "k": (1, 3)}]
]
RESUMED = {"users": 40, "batch_size": 1}


class Store:
    def __init__(self):
        self.catalog = make_catalog()
        self.tokenizer = self.catalog.build_tokenizer()
        self.item_trie = self.catalog.trie(self.tokenizer)
        self.model = make_model(self.tokenizer)

    def evaluator(self, users, **options):
        return RecommendationEvaluator(make_dataset(self.catalog, users), self.item_trie, **options)

    def figures(self, model=None, resume_dir=None, **case):
        evaluator = self.evaluator(**case)
        metrics = evaluator(model or self.model, self.tokenizer, resume_dir=resume_dir)
        ranks = evaluator.last_ranks
        errors = {name: str(error) for name, error in evaluator.standard_errors.items()}  # NaN equals nothing
        return {"metrics": metrics, "errors": errors, "starts": ranks.starts.tolist(), "ties": ranks.ties.tolist()}


def killed(store, folder):
    """Both processes die amid their tenth batch."""
    recommend, calls = evaluator_module.recommend, []

    def dying(*args, **kwargs):
        calls.append(1)
        if len(calls) == 10:
            dist.barrier()
            os.kill(os.getpid(), signal.SIGKILL)
        return recommend(*args, **kwargs)

    evaluator_module.recommend = dying
    dist.init_process_group("gloo")
    store.figures(resume_dir=folder / "finished", **RESUMED)


def trained(store, folder):
    """Metrics that the callback adds under DDP, as logged by this process."""
    args = SFTConfig(
        output_dir=str(folder / "trainer"),
        max_steps=2,
        eval_steps=1,
        eval_strategy="steps",
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        report_to="none",
        use_cpu=True,
        bf16=False,
        activation_checkpointing=False,
        disable_tqdm=True,
        save_strategy="no",
    )
    dataset = make_dataset(store.catalog, 17)
    callback = RecommendationCallback(store.evaluator(17, batch_size=4))
    trainer = SFTTrainer(
        make_model(store.tokenizer),
        args,
        train_dataset=dataset,
        eval_dataset=dataset,
        processing_class=store.tokenizer,
        callbacks=[callback],
    )
    callback.bind_trainer(trainer)
    trainer.train()
    assert type(trainer.model_wrapped).__name__ == "DistributedDataParallel"
    trainer.save_model(str(folder / "model"))
    return [log for log in trainer.state.log_history if "eval_ndcg@10" in log][-1]


def refused(store):
    """What a process says that asks with other settings, or has other weights, than its neighbour."""
    messages = []
    model = make_model(store.tokenizer)
    with torch.no_grad():
        model.lm_head.weight[3, 3] += dist.get_rank()
    for case in ({"num_beams": 10 + dist.get_rank()}, {"model": model}):
        try:
            store.figures(**{"users": 4, **case})
        except ValueError as error:
            messages.append(str(error))
    return messages


def main(folder, job):
    warnings.simplefilter("ignore")
    folder = Path(folder)
    store = Store()
    if job == "killed":
        killed(store, folder)
    results = {"ddp": trained(store, folder)}  # the trainer starts gloo
    assert dist.get_backend() == "gloo"
    results["cases"] = [store.figures(**case) for case in CASES]
    results["resumed"] = store.figures(resume_dir=folder / "finished", **RESUMED)
    results["refused"] = refused(store)
    sharded = make_model(store.tokenizer)
    for layer in sharded.model.layers:
        fully_shard(layer)
    fully_shard(sharded)
    results["fsdp2"] = store.figures(sharded, users=17, batch_size=4)
    try:
        store.figures(sharded, users=2, normalise="continuations")
    except NotImplementedError as error:
        results["fsdp2 refused"] = str(error)
    (folder / f"rank{dist.get_rank()}.json").write_text(json.dumps(results))
    leave()


if __name__ == "__main__":
    main(*sys.argv[1:])
