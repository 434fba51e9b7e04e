"""What a run ran on: versions, revision, device."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from .._version import __version__


if TYPE_CHECKING:
    import torch

PACKAGES = (
    *("torch", "transformers", "trl", "peft", "datasets"),
    *("accelerate", "safetensors", "evaluate", "numpy", "pyarrow"),
)


def versions() -> dict[str, str]:
    """Versions of Python, of this package and of what it stands on."""
    found = {"python": platform.python_version(), "ilrec-trl": __version__}
    return found | {name: _version(name) for name in PACKAGES}


def revision() -> str:
    """Commit of the source tree this package runs from, with `+` where files differ; `released` outside one."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return "released"
    try:
        commit = _git(root, "rev-parse", "--short=12", "HEAD")
        return commit + ("+" if _git(root, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def device() -> str:
    """The accelerator, or the CPU with its number of usable cores and threads."""
    import torch

    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name(0)} x {torch.cuda.device_count()}"
    return f"CPU, {len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()} cores, " + (
        f"{torch.get_num_threads()} threads"
    )


def default_device() -> torch.device:
    """Where models are trained and ranked: what transformers' Trainer takes, an accelerator where there is one."""
    from accelerate import PartialState

    return PartialState().device


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=True, timeout=10)
    return done.stdout.strip()


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
