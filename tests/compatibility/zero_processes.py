"""
What each of two CPU processes runs with DeepSpeed's own engine, since accelerate runs DDP on a CPU even when it is
asked for DeepSpeed: `python -m torch.distributed.run --nproc_per_node 2 -m tests.compatibility.zero_processes FILE`.
"""

import json
import os
import sys
import warnings
from pathlib import Path

import torch

from ilrec_trl.trainer.ilrec_trainer import ILRecTrainer

from .data_forms import as_sequence
from .workbench import dataset, make_trainer, with_rewards


BATCH = 8


def losses(stage):
    """Losses of three steps of plain gradient descent, under ZeRO of a stage or (0) on one process."""
    ranks, rank = (torch.distributed.get_world_size(), torch.distributed.get_rank()) if stage else (1, 0)
    arguments = {"train_dataset": dataset(as_sequence), **with_rewards()}
    with make_trainer(ILRecTrainer, {}, arguments) as trainer:
        rows = [trainer.train_dataset[n] for n in range(BATCH)]
        batch = trainer.data_collator(rows[rank::ranks])
        tokens = torch.tensor(sum(label != -100 for row in rows for label in row["labels"][1:]))
        optimizer = torch.optim.SGD(trainer.model.parameters(), lr=0.1)
        model = start_engine(trainer.model, optimizer, stage, BATCH // ranks) if stage else trainer.model
        model.train()
        seen = []
        for _ in range(3):
            loss = trainer.compute_loss(model, dict(batch), num_items_in_batch=tokens)
            seen.append(loss.item())
            if stage:
                model.backward(loss)
                model.step()
            else:
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
    return seen


def start_engine(model, optimizer, stage, batch_size):
    import deepspeed

    config = {
        "train_micro_batch_size_per_gpu": batch_size,
        "zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 0},
        "zero_allow_untested_optimizer": True,
        "gradient_clipping": 0.0,
    }
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    assert type(engine).__name__ == "DeepSpeedEngine"
    assert engine.zero_optimization_stage() == stage
    return engine


def main(path):
    warnings.simplefilter("ignore")
    os.environ["DS_ACCELERATOR"] = "cpu"
    import deepspeed

    deepspeed.init_distributed("gloo")
    results = {}
    for stage in (2, 3):
        seen = torch.tensor(losses(stage))
        torch.distributed.all_reduce(seen)
        results[str(stage)] = (seen / torch.distributed.get_world_size()).tolist()
    if torch.distributed.get_rank() == 0:
        Path(path).write_text(json.dumps(results))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
