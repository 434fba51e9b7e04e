"""
What each of two CPU processes runs: `python -m torch.distributed.run --nproc_per_node 2 -m
tests.compatibility.two_processes FILE`. Rank 0 writes what it saw to the JSON file. One process alone calls the same
functions for what to compare with.
"""

import json
import os
import sys
import warnings
from pathlib import Path

import torch
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from trl import SFTTrainer

from ilrec_trl.trainer.ilrec_trainer import ILRecTrainer

from .data_forms import as_sequence, as_text_of_every_other_user
from .peft_rows import lora
from .workbench import ALMOST_ZERO, ZERO, dataset, make_trainer, with_rewards


BATCH = 8
LAUNCHED = {"ddp_bucket_cap_mb": 1, "ddp_broadcast_buffers": False, "ddp_backend": "gloo", "ddp_timeout": 120}


def settings(trainer_processes, steps, **options):
    return {
        "per_device_train_batch_size": BATCH // trainer_processes // steps,
        "gradient_accumulation_steps": steps,
        "ddp_find_unused_parameters": False,
        **options,
    }


def logs(trainer):
    kept = ("loss", "grad_norm", "entropy")
    logs = [log for log in trainer.state.log_history if "loss" in log]
    return [{key: log[key] for key in log if key in kept or key.startswith("ilrec/")} for log in logs]


def trained(trainer_class, options, arguments):
    with make_trainer(trainer_class, options, arguments) as trainer:
        trainer.train()
        wrapper = type(trainer.model_wrapped).__name__
        weights = [parameter.double().sum().item() for parameter in trainer.model.parameters()]
    return {"wrapper": wrapper, "logs": logs(trainer), "weights": weights}


def data_parallel(processes):
    averaged, own = {}, {"average_tokens_across_devices": False}
    data = {"train_dataset": dataset(as_sequence)}
    cases = {
        "ilrec 1 step": (ILRecTrainer, settings(processes, 1, **averaged), {**data, **with_rewards()}),
        "ilrec 2 steps": (ILRecTrainer, settings(processes, 2, **averaged), {**data, **with_rewards()}),
        "sft own tokens": (SFTTrainer, settings(processes, 1, **own), data),
        "zero own tokens": (ILRecTrainer, settings(processes, 1, **own, **ZERO), {**data, **with_rewards()}),
        "almost zero own tokens": (
            ILRecTrainer,
            settings(processes, 1, **own, **ALMOST_ZERO),
            {**data, **with_rewards()},
        ),
        # One row a micro-batch: often one process has a target and the other none
        "text rows": (
            ILRecTrainer,
            settings(processes, 4, **averaged),
            {"train_dataset": dataset(as_text_of_every_other_user), **with_rewards()},
        ),
        "lora reentrant": (
            ILRecTrainer,
            settings(
                processes,
                1,
                activation_checkpointing=True,
                activation_checkpointing_kwargs={"use_reentrant": True},
                **(LAUNCHED if processes > 1 else {}),
            ),
            {**lora()(), **data, **with_rewards()},
        ),
    }
    return {name: trained(*case) for name, case in cases.items()}


def fully_sharded():
    """`fully_shard` itself, since accelerate runs DDP on a CPU even when it is asked for FSDP2."""
    with make_trainer(ILRecTrainer, settings(1, 1), with_rewards()) as trainer:
        batch = trainer.data_collator([trainer.train_dataset[n] for n in range(BATCH)])
        trainer.model.train()
        distributed = torch.distributed.is_initialized()
        if distributed:
            for layer in trainer.model.model.layers:
                fully_shard(layer)
            fully_shard(trainer.model)
            assert isinstance(trainer.model, FSDPModule)
            assert all(isinstance(parameter, DTensor) for parameter in trainer.model.parameters())
        loss = ILRecTrainer.compute_loss(trainer, trainer.model, batch)
        loss.backward()
        gradients = [p.grad.full_tensor() if distributed else p.grad for p in trainer.model.parameters()]
        return {"loss": loss.item(), "gradients": [gradient.double().norm().item() for gradient in gradients]}


def main(path):
    warnings.simplefilter("ignore")
    results = {"ddp": data_parallel(2), "fsdp2": fully_sharded()}
    if torch.distributed.get_rank() == 0:
        Path(path).write_text(json.dumps(results))
    torch.distributed.barrier()
    # gloo's threads may abort a process that ends by itself after its groups ("terminate called without an active
    # exception"), and the results are written
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1])
