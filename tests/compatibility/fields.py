"""Fields of SFTConfig that no row sets, each with the test that sets it or the reason why none does."""

from .rows import GPU_CHECK


LIFE = "set in `tests/compatibility/test_life_cycle.py`"
PROCESSES = "set in `tests/compatibility/test_several_processes.py`"
GPU = f"needs a GPU: `{GPU_CHECK}`"
REPORTING = "read by a reporting service; ILRec logs through the same calls as SFTTrainer"
SCRIPT = "read by scripts, not by the trainer"
CLUSTER = "read by transformers in a cluster or by a launcher, outside what ILRec adds"

UNSET = {
    "accelerator_config": "read by accelerate while it builds data loaders, which ILRec leaves to it",
    "ddp_backend": PROCESSES,
    "ddp_broadcast_buffers": PROCESSES,
    "ddp_bucket_cap_mb": PROCESSES,
    "ddp_find_unused_parameters": PROCESSES,
    "ddp_static_graph": "as SFTTrainer: DDP reads it, and the forward pass uses the same parameters in every step",
    "ddp_timeout": PROCESSES,
    "deepspeed": "configuration in `examples/accelerate`; the engine does not run through accelerate on a CPU",
    "do_eval": SCRIPT,
    "do_predict": SCRIPT,
    "do_train": SCRIPT,
    "enable_jit_checkpoint": CLUSTER,
    "eval_use_gather_object": CLUSTER,
    "fsdp": "`fully_shard` itself is tested; through accelerate it needs GPUs",
    "fsdp_config": "as `fsdp`",
    "full_determinism": "sets torch's switches for the whole process; ILRec draws no random numbers",
    "hub_always_push": LIFE,
    "hub_model_id": LIFE,
    "hub_private_repo": LIFE,
    "hub_revision": "passed on to the hub, as in SFTTrainer",
    "hub_strategy": LIFE,
    "hub_token": LIFE,
    "ignore_data_skip": LIFE,
    "length_column_name": "names a column that SFTTrainer drops from the data too",
    "liger_kernel_config": GPU,
    "local_rank": CLUSTER,
    "optim_args": "read by optimisers of other packages",
    "optim_target_modules": "read by GaLore and Apollo, which other packages bring",
    "parallelism_config": "context and sequence parallelism are refused",
    "project": REPORTING,
    "push_to_hub": LIFE,
    "restore_callback_states_from_checkpoint": LIFE,
    "resume_from_checkpoint": SCRIPT,
    "run_name": REPORTING,
    "save_on_each_node": CLUSTER,
    "tf32": GPU,
    "trackio_bucket_id": REPORTING,
    "trackio_space_id": REPORTING,
    "trackio_static_space_id": REPORTING,
    "use_liger_kernel": GPU,
}
