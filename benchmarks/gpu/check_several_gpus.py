"""
The engines that accelerate runs on GPUs alone, on a machine with at least two. From the root of the repository:
`accelerate launch --config_file examples/accelerate/fsdp2.yaml benchmarks/gpu/check_several_gpus.py`, and likewise
with `ddp.yaml`, `deepspeed_zero2.yaml` and `deepspeed_zero3.yaml`. Fails where the engine's wrapper is not in use or
the loss does not fall.
"""

import os
import sys
from pathlib import Path


sys.path.insert(0, str(Path(__file__).parents[2]))

from ilrec_trl.trainer.ilrec_trainer import ILRecTrainer  # noqa: E402
from tests.compatibility.workbench import make_trainer, with_rewards  # noqa: E402


def expected_wrapper() -> str:
    if os.environ.get("ACCELERATE_USE_FSDP") == "true":
        return "FSDP"
    return "DeepSpeedEngine" if os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true" else "DistributedDataParallel"


def main() -> None:
    options = {"use_cpu": False, "bf16": True, "max_steps": 8, "per_device_train_batch_size": 4}
    with make_trainer(ILRecTrainer, options, with_rewards()) as trainer:
        trainer.train()
        wrapper = type(trainer.model_wrapped).__name__
        losses = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    assert wrapper.startswith(expected_wrapper()), f"got {wrapper}, expected {expected_wrapper()}"
    assert sum(losses[-2:]) < sum(losses[:2]), losses
    print(f"works   {wrapper}: {losses[0]:.3f} -> {losses[-1]:.3f}")  # noqa: T201


if __name__ == "__main__":
    main()
