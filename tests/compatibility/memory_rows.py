"""Rows of the matrix: what saves memory, and number formats."""

import torch

from .rows import Row
from .workbench import dataset, make_model


AREA = "Memory and precision"


def checkpointing(**kwargs):
    return {"activation_checkpointing": True, "activation_checkpointing_kwargs": kwargs or None}


def half(dtype):
    return lambda: {"model": make_model().to(dtype), "eval_dataset": dataset()}


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
        Row(AREA, "activation_offloading", "Needs an accelerator.", gpu="benchmarks/gpu/check_compatibility.py"),
        Row(AREA, "bf16 mixed precision", "Losses are computed in float32.", {"bf16": True}, tolerance=2e-2),
        Row(
            AREA,
            "bf16 model, bf16_full_eval",
            "",
            {"bf16_full_eval": True, "eval_strategy": "steps", "eval_steps": 2},
            half(torch.bfloat16),
            tolerance=5e-2,
        ),
        Row(
            AREA,
            "torch_compile",
            "Compiled code keeps the hooks of the first forward pass.",
            {"torch_compile": True, "torch_compile_backend": "eager", "torch_compile_mode": "default"},
            refused="ILRec reads intermediate layers through hooks.*Set `torch_compile=False`",
            remedy="`torch_compile=False`, or SFTTrainer.",
        ),
        Row(AREA, "neftune_noise_alpha", "Noise on the embeddings during training.", {"neftune_noise_alpha": 1.0}),
        Row(AREA, "use_cache", "Off during training, as in TRL.", {"use_cache": False}),
    ]
