"""What the commands of the laboratory share: options from flags and a YAML file, and one line for a user's mistake."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from ilrec_trl.cli import parse_options
from ilrec_trl.pipeline.options import InputError


def run_command(
    program: str,
    summary: str,
    dataclasses: Sequence[Any],
    function: Callable[..., None],
    arguments: Sequence[str] | None = None,
) -> int:
    """
    Parse options and call a function with them.

    Args:
        program (`str`): What `python -m` runs, for messages.
        summary (`str`): What it does, for `--help`.
        dataclasses (`list[type]`): One options class a parameter of `function`.
        function (`Callable`): The work.
        arguments (`list[str]`, *optional*): Arguments without the program's name; by default those of the process.

    Returns:
        `int`: 0, or 2 where something the user gave cannot be used; one line on standard error then says what.
    """
    # As `ilrec` sets them: the processes of a study read both when they begin. Threads that spin while they wait slow
    # down every other process, and TRL refuses several GPUs in one process.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if "LOCAL_RANK" not in os.environ:
        os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")
    try:
        function(*parse_options(program, summary, dataclasses, list(sys.argv[1:] if arguments is None else arguments)))
    except InputError as error:
        sys.stderr.write(f"{program}: error: {error}\n")
        return 2
    return 0
