"""Modules of the tests as two processes on the CPU."""

import os
import subprocess
import sys
from pathlib import Path

import torch


ROOT = Path(__file__).parents[1]


def torchrun(module, *arguments, logs):
    """Runs `module` twice at once; returns the launcher's exit status and the end of what each of the three wrote to
    stderr, each process's apart (in files under `logs`), since the complaints of one hide why the other died."""
    options = ["--standalone", "--nproc_per_node", "2", "--log_dir", str(logs), "--redirects", "3"]
    command = [sys.executable, "-m", "torch.distributed.run", *options, "-m", module, *map(str, arguments)]
    python_path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": python_path, "PYTHONFAULTHANDLER": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)
    said = {f"process {file.parent.name}": file.read_text() for file in sorted(logs.rglob("stderr.log"))}
    ends = []
    for name, text in {**said, "launcher": done.stderr}.items():
        ends += [f"{name}:", *(line[:200] for line in text.splitlines()[-40:])]  # a crash lists every module
    return done.returncode, "\n".join(ends)


def leave():
    """Ends a process whose results are written, once the others have come here too: gloo's threads may abort one that
    ends by itself after its groups ("terminate called without an active exception")."""
    torch.distributed.barrier()
    sys.stdout.flush()
    os._exit(0)
