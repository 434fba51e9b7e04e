"""Rows of the matrix: what saves memory, and number formats."""

import torch

from .rows import GPU_CHECK, Row
from .workbench import dataset, make_model


AREA = "Memory and precision"


def checkpointing(**kwargs):
    return {"activation_checkpointing": True, "activation_checkpointing_kwargs": kwargs or None}


def half(dtype):
    return lambda: {"model": make_model().to(dtype), "eval_dataset": dataset()}


def is_compiled(trainer):
    assert type(trainer.model_wrapped).__name__ == "OptimizedModule"
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0


def rows():
    return [
        Row(AREA, "activation checkpointing", "TRL's default, non-reentrant.", checkpointing(use_reentrant=False)),
        Row(AREA, "activation checkpointing, reentrant", "", checkpointing(use_reentrant=True)),
        Row(AREA, "activation checkpointing, selective", "TRL's `selective`.", checkpointing(selective=True)),
        Row(
            AREA,
            "gradient_checkpointing",
            "The name that transformers deprecates, which TRL still turns on by default.",
            {
                "activation_checkpointing": None,
                "gradient_checkpointing": True,
                "gradient_checkpointing_kwargs": {"use_reentrant": False},
            },
            warns="`gradient_checkpointing",
        ),
        Row(
            AREA,
            "activation_offloading without an accelerator",
            "There is no other memory to take activations from.",
            {"activation_offloading": True},
            refused="torch finds no accelerator. Set `activation_offloading=False`",
            remedy="`activation_offloading=False`.",
        ),
        Row(AREA, "activation_offloading", "", gpu=GPU_CHECK),
        Row(AREA, "bf16 mixed precision", "Losses are computed in float32.", {"bf16": True}, tolerance=2e-2),
        Row(
            AREA,
            "bf16 model, bf16_full_eval",
            "",
            {"bf16_full_eval": True, "eval_strategy": "steps", "eval_steps": 2},
            half(torch.bfloat16),
            tolerance=5e-2,
        ),
        Row(AREA, "fp16 mixed precision", "Losses are computed in float32.", {"fp16": True}, tolerance=2e-2),
        Row(
            AREA,
            "fp16 model, fp16_full_eval",
            "Without loss scaling, as with SFTTrainer.",
            {"fp16_full_eval": True, "adam_epsilon": 1e-4, "eval_strategy": "steps", "eval_steps": 2},
            half(torch.float16),
            tolerance=5e-2,
        ),
        Row(
            AREA,
            "torch_compile",
            "The intermediate layers are read inside the compiled backbone. Here with the backend `eager`.",
            {"torch_compile": True, "torch_compile_backend": "eager", "torch_compile_mode": "default"},
            warns=".*",  # the compiler's own, in TRL's fused head
            check=is_compiled,
        ),
        Row(AREA, "torch_compile with inductor", "", gpu=GPU_CHECK),
        Row(AREA, "neftune_noise_alpha", "Noise on the embeddings during training.", {"neftune_noise_alpha": 1.0}),
        Row(AREA, "use_cache", "Off during training, as in TRL.", {"use_cache": False}),
    ]
