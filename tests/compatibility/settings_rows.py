"""Rows of the matrix: optimiser, evaluation, saving, data loading, and every field that a row does not exercise."""

from pathlib import Path

import torch
from transformers import TrainerCallback

from .peft_rows import saved_model
from .rows import GPU_CHECK, Row
from .workbench import dataset, make_model, make_tokenizer


AREA = "Settings"
LIFE_CYCLE = "tests/compatibility/test_life_cycle.py"
LIFE = [
    ("resume_from_checkpoint", "Bit-equal to a run that was not interrupted.", "test_resuming_is_bit_equal"),
    (
        "a kill while a checkpoint is saved",
        "`resume_from_checkpoint=True` takes the last whole one, and the run goes on bit-equal.",
        "test_a_killed_run_is_resumed_bit_equal",
    ),
    ("model card", "Tags, paper, settings, metrics.", "test_the_model_card_names_method_paper_and_settings"),
    ("push_to_hub", "", "test_push_to_hub"),
    ("YAML through TrlParser", "", "test_a_yaml_file_as_trl_reads_it"),
]
PROCESSES = "tests/compatibility/test_several_processes.py"
ENGINES = [
    (
        "DDP, 1x8, 2x4, 8x1",
        "One trajectory of losses, gradient norms and weights, with one process and two, with and without "
        "`average_tokens_across_devices`.",
        "test_every_split_of_a_step_is_one_trajectory",
    ),
    ("DDP, LoRA, reentrant checkpointing", "", "test_lora_with_reentrant_checkpointing_on_two_processes"),
    (
        "DDP, average_tokens_across_devices=False, rows of unequal length",
        "Each process divides by its own tokens, as with SFTTrainer.",
        "test_own_tokens_of_each_process_are_counted_as_the_parent_does",
    ),
    (
        "DeepSpeed ZeRO-2, ZeRO-3, the engine itself",
        "Run where the extra `deepspeed` is installed.",
        "test_zero_gives_the_losses_of_one_process",
    ),
    ("FSDP2", "`fully_shard` itself.", "test_fully_sharded_gives_the_gradients_of_one_process"),
]
SEVERAL_GPUS = "benchmarks/gpu/check_several_gpus.py"


def evaluated():
    return {"eval_dataset": dataset()}


def own_optimizer():
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return {"model": model, "optimizers": (optimizer, torch.optim.lr_scheduler.ConstantLR(optimizer, 0.5, 2))}


class StopsAtFour(TrainerCallback):
    seen = frozenset()

    def on_log(self, args, state, control, logs, **kwargs):
        self.seen |= set(logs)
        control.should_training_stop = state.global_step == 4


def was_stopped(trainer):
    (callback,) = (own for own in trainer.callback_handler.callbacks if isinstance(own, StopsAtFour))
    assert trainer.state.global_step == 4
    assert {"loss", "ilrec/negatives", "train_loss"} <= callback.seen


def mean_loss(outputs, labels, num_items_in_batch=None):
    logits, labels = outputs.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
    loss = torch.nn.functional.cross_entropy(logits, labels, ignore_index=-100, reduction="sum")
    return loss / ((labels != -100).sum() if num_items_in_batch is None else num_items_in_batch)


def from_path():
    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(saved_model())
    return {"model": saved_model(), "processing_class": None}


def rows():
    every = {"eval_strategy": "steps", "eval_steps": 2}
    return [
        Row(
            AREA,
            "optimiser and schedule",
            "",
            {
                "optim": "adamw_torch",
                "weight_decay": 0.1,
                "adam_beta1": 0.8,
                "adam_beta2": 0.9,
                "adam_epsilon": 1e-6,
                "max_grad_norm": 0.5,
                "lr_scheduler_type": "cosine_with_min_lr",
                "lr_scheduler_kwargs": {"min_lr": 1e-2},
                "warmup_steps": 1,
            },
        ),
        Row(AREA, "optimizers", "An optimiser and a schedule of one's own.", {"max_steps": 6}, own_optimizer),
        Row(
            AREA,
            "optimizer_cls_and_kwargs",
            "",
            arguments=lambda: {"optimizer_cls_and_kwargs": (torch.optim.RMSprop, {"lr": 0.01})},
        ),
        Row(
            AREA,
            "callbacks",
            "They see ILRec's metrics, and can stop the run.",
            {"max_steps": 8},
            lambda: {"callbacks": [StopsAtFour()]},
            check=was_stopped,
        ),
        Row(
            AREA,
            "gradient accumulation",
            "1x8, 2x4 and 8x1 are one trajectory, see below.",
            {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4},
        ),
        Row(
            AREA,
            "average_tokens_across_devices=False",
            "As in SFTTrainer each process divides by its own tokens.",
            {"average_tokens_across_devices": False, "gradient_accumulation_steps": 2},
        ),
        Row(AREA, "epochs", "", {"num_train_epochs": 3, "max_steps": -1}),
        Row(AREA, 'loss_type="dft"', "ILRec's terms are added to that loss.", {"loss_type": "dft"}),
        Row(
            AREA,
            "label_smoothing_factor",
            "ILRec's terms are added to that loss.",
            {"label_smoothing_factor": 0.1},
            warns="`label_smoothing_factor` is deprecated",
        ),
        Row(
            AREA,
            "compute_loss_func",
            "ILRec's terms are added to that loss.",
            arguments=lambda: {"compute_loss_func": mean_loss},
            warns="`compute_loss_func` is deprecated",
        ),
        Row(
            AREA,
            "evaluation",
            "",
            {**every, "eval_delay": 1, "eval_on_start": True, "eval_accumulation_steps": 1, "label_names": ["labels"]},
            evaluated,
        ),
        Row(
            AREA,
            "saving and the best model",
            "",
            {
                **every,
                "save_strategy": "steps",
                "save_steps": 2,
                "save_total_limit": 1,
                "save_only_model": True,
                "load_best_model_at_end": True,
                "metric_for_best_model": "eval_loss",
                "greater_is_better": False,
            },
            evaluated,
        ),
        Row(
            AREA,
            "logging",
            "",
            {
                "logging_strategy": "steps",
                "logging_first_step": True,
                "logging_nan_inf_filter": False,
                "include_num_input_tokens_seen": "all",
                "log_level": "error",
                "log_level_replica": "error",
                "log_on_each_node": False,
                "skip_memory_metrics": False,
                "debug": "underflow_overflow",
            },
        ),
        Row(
            AREA,
            "data loading",
            "",
            {
                "dataloader_drop_last": True,
                "dataloader_num_workers": 1,
                "dataloader_persistent_workers": True,
                "dataloader_prefetch_factor": 2,
                "dataloader_multiprocessing_context": "fork",
                "dataloader_in_order": True,
                "seed": 7,
                "data_seed": 8,
            },
        ),
        Row(
            AREA,
            "group_by_length",
            "",
            {"train_sampling_strategy": "group_by_length", "auto_find_batch_size": True, "torch_empty_cache_steps": 1},
        ),
        Row(
            AREA,
            "model and tokenizer by path",
            "",
            {"model_init_kwargs": {"dtype": "float32"}, "trust_remote_code": False},
            from_path,
        ),
        Row(
            AREA,
            "chat_template_path",
            "A Jinja file.",
            {"chat_template_path": str(Path(__file__).parent / "template.jinja")},
        ),
        Row(
            AREA,
            "context and sequence parallelism",
            "They cut sequences apart, and with them the items.",
            test="tests/compatibility/test_refusals.py::test_context_and_sequence_parallelism_are_refused",
        ),
        *(Row("Life cycle", name, says, test=f"{LIFE_CYCLE}::{test}") for name, says, test in LIFE),
        *(Row("Several processes", name, says, test=f"{PROCESSES}::{test}") for name, says, test in ENGINES),
        Row("Several processes", "FSDP2 through accelerate", "`examples/accelerate/fsdp2.yaml`.", gpu=SEVERAL_GPUS),
        Row(
            "Several processes",
            "DeepSpeed through accelerate",
            "`examples/accelerate/deepspeed_zero*.yaml`.",
            gpu=SEVERAL_GPUS,
        ),
        Row(AREA, "tf32", "", gpu=GPU_CHECK),
        Row(AREA, "use_liger_kernel", "Layer kernels alone, as in SFTTrainer.", gpu=GPU_CHECK),
    ]
