"""Processes of `torchrun` or `accelerate launch` that share an evaluation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor


T = TypeVar("T")


def process_rank() -> tuple[int, int]:
    """Rank of this process and number of processes; 0 and 1 without a process group."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def gather(value: Any) -> list[Any]:
    """The `value` of every process, by rank. Every process must call it."""
    _, count = process_rank()
    if count == 1:
        return [value]
    values: list[Any] = [None] * count
    dist.all_gather_object(values, value)
    return values


def from_first(function: Callable[[], T]) -> T:
    """
    The result of `function` on process 0, the only one that calls it. Its error is raised on every process, so that
    none waits for the others. Every process must call this.
    """
    rank, count = process_rank()
    if count == 1:
        return function()
    outcome: list[Any] = [None]
    if rank == 0:
        try:
            outcome = [function()]
        except Exception as error:
            outcome = [error]
    dist.broadcast_object_list(outcome, src=0)
    if isinstance(outcome[0], Exception):
        raise outcome[0]
    return outcome[0]


def has_sharded_weights(model: nn.Module) -> bool:
    """
    Whether each process holds only a part of the weights, as under FSDP2 and tensor parallelism. All processes must
    then run the same forward passes at the same time. `NotImplementedError` for FSDP1 and ZeRO-3, whose weights can
    only be gathered inside their own wrappers.
    """
    if any(hasattr(parameter, "ds_id") for parameter in model.parameters()):
        raise NotImplementedError(
            "The weights are partitioned by DeepSpeed ZeRO-3, whose engine this evaluation does not use. Use "
            "ZeRO-2, DDP or FSDP2, or evaluate the saved model with `ilrec evaluate`."
        )
    # By name, since importing FSDP1 takes time
    if any(type(module).__name__ == "FullyShardedDataParallel" for module in model.modules()) or any(
        type(parameter).__name__ == "FlatParameter" for parameter in model.parameters()
    ):
        raise NotImplementedError(
            "The weights are sharded by FSDP1, which gathers them inside its wrapper's own call only. Set "
            "`fsdp_version: 2`, or evaluate the saved model with `ilrec evaluate`."
        )
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())
