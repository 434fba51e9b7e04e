"""
What each of two CPU processes runs: `python -m torch.distributed.run --nproc_per_node 2 -m
tests.compatibility.two_processes FILE data_parallel`, or `fully_sharded`. Rank 0 writes what it saw to the JSON file.
One process alone calls the same functions for what to compare with.
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
from tests.torchrun import leave

from .data_forms import as_sequence, as_text_of_every_other_user
from .peft_rows import lora
from .workbench import ALMOST_ZERO, ZERO, dataset, make_trainer, with_rewards


PROCESSES = int(os.environ.get("WORLD_SIZE", "1"))
BATCH = 16  # rows of an optimiser step, over all processes
LAUNCHED = {"ddp_bucket_cap_mb": 1, "ddp_broadcast_buffers": False, "ddp_backend": "gloo", "ddp_timeout": 120}


def settings(steps=1, **options):
    return {
        "per_device_train_batch_size": BATCH // PROCESSES // steps,
        "gradient_accumulation_steps": steps,
        "ddp_find_unused_parameters": False,
        # Adam would blow up to a step what rounding alone leaves of a gradient near 0
        "adam_epsilon": 1e-6,
        **options,
    }


def logs(trainer):
    kept = ("loss", "grad_norm")  # TRL averages its own metrics over micro-batches
    logs = [log for log in trainer.state.log_history if "loss" in log]
    return [{key: log[key] for key in log if key in kept or key.startswith("ilrec/")} for log in logs]


def trained(trainer_class, options, arguments):
    with make_trainer(trainer_class, options, arguments) as trainer:
        trainer.train()
        wrapper = type(trainer.model_wrapped).__name__
        weights = torch.nn.utils.parameters_to_vector(p for p in trainer.model.parameters() if p.requires_grad)
    return {"wrapper": wrapper, "logs": logs(trainer), "weights": weights.tolist()}


def data_parallel():
    several, one = {"train_dataset": dataset(as_sequence)}, {"train_dataset": dataset()}
    own = {"average_tokens_across_devices": False}
    cases = {}
    for steps in (1, 4, 8):
        split = f"{BATCH // 2 // steps}x{steps}"
        # Rows of many targets or few, so that the count over all processes matters
        # and, on two processes, blocks of a few positions
        blocks = {"max_logits_mib": 2e-3} if PROCESSES > 1 and steps == 1 else {}
        cases[f"averaged {split}"] = (ILRecTrainer, settings(steps, **blocks), {**several, **with_rewards()})
        # Rows of equally many tokens, since each process divides by its own
        cases[f"own {split}"] = (ILRecTrainer, settings(steps, **own), {**one, **with_rewards()})
    for name, (trainer_class, weights) in {
        "sft": (SFTTrainer, {}),
        "zero": (ILRecTrainer, ZERO),
        "almost zero": (ILRecTrainer, ALMOST_ZERO),
    }.items():
        added = {} if trainer_class is SFTTrainer else with_rewards()
        cases[f"{name}, unequal rows"] = (trainer_class, settings(2, **own, **weights), {**several, **added})
    reentrant = {"activation_checkpointing": True, "activation_checkpointing_kwargs": {"use_reentrant": True}}
    launched = LAUNCHED if PROCESSES > 1 else {}
    # One row a micro-batch: often one process has a target and the other none
    rows = {"train_dataset": dataset(as_text_of_every_other_user)}
    cases["text rows"] = (ILRecTrainer, settings(8), {**rows, **with_rewards()})
    adapted = {**lora()(), **several, **with_rewards()}
    cases["lora reentrant"] = (ILRecTrainer, settings(**reentrant, **launched), adapted)
    return {name: trained(*case) for name, case in cases.items()}


def fully_sharded():
    """`fully_shard` itself, since accelerate runs DDP on a CPU even when it is asked for FSDP2."""
    distributed = PROCESSES > 1
    # Sharded, the head is gathered again for each block of positions that the backward pass computes anew
    blocks = {"max_logits_mib": 2e-3} if distributed else {}
    with make_trainer(ILRecTrainer, settings(**blocks), with_rewards()) as trainer:
        batch = trainer.data_collator([trainer.train_dataset[n] for n in range(BATCH)])
        trainer.model.train()
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


def main(path, engine):
    warnings.simplefilter("ignore")
    results = {"data_parallel": data_parallel, "fully_sharded": fully_sharded}[engine]()
    if torch.distributed.get_rank() == 0:
        Path(path).write_text(json.dumps(results))
    leave()


if __name__ == "__main__":
    main(*sys.argv[1:])
