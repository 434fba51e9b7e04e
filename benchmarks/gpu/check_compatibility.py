"""
Rows of the compatibility matrix that a CPU cannot run: `python benchmarks/gpu/check_compatibility.py` on a machine
with a GPU, from the root of the repository. Prints one line a row and fails if one does.
"""

import sys
import traceback
from pathlib import Path


sys.path.insert(0, str(Path(__file__).parents[2]))

import torch  # noqa: E402

from tests.compatibility.rows import Row  # noqa: E402
from tests.compatibility.test_compatibility import test_row_works  # noqa: E402


AREA = "GPU"
ON_GPU = {"use_cpu": False, "activation_checkpointing": True}
ROWS = [
    Row(AREA, "float32", "", {**ON_GPU}),
    Row(AREA, "tf32", "", {**ON_GPU, "tf32": True}, tolerance=1e-2),
    Row(AREA, "bf16", "", {**ON_GPU, "bf16": True}, tolerance=3e-2),
    Row(AREA, "fp16", "", {**ON_GPU, "fp16": True}, tolerance=3e-2),
    Row(AREA, "activation_offloading", "", {**ON_GPU, "activation_offloading": True}),
    Row(AREA, "torch_compile", "", {**ON_GPU, "torch_compile": True}, tolerance=1e-3),
    Row(AREA, "use_liger_kernel", "", {**ON_GPU, "use_liger_kernel": True}, warns=".*", tolerance=1e-2),
]


def main() -> int:
    if not torch.cuda.is_available():
        print("no GPU found: nothing was checked", file=sys.stderr)  # noqa: T201
        return 2
    failed = 0
    for row in ROWS:
        try:
            test_row_works(row)
            print(f"works   {row.name}")  # noqa: T201
        except Exception:
            failed += 1
            print(f"FAILED  {row.name}\n{traceback.format_exc()}")  # noqa: T201
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
