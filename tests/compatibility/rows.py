"""The compatibility matrix: what a script that works with SFTTrainer may hold, and what ILRecTrainer does with it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from .workbench import with_rewards


GPU_CHECK = "benchmarks/gpu/check_compatibility.py"


@dataclass(frozen=True)
class Row:
    """
    One row of the matrix. Without `refused`, `test` or `gpu` it is trained as SFTTrainer does, as ILRecTrainer with
    all weights at zero, which must be equal, and as ILRecTrainer.

    Args:
        area, name, says (`str`):
            Where the row stands on the page, and what it says there. On a refused row `says` is the reason.
        options (`dict`):
            Fields of the configuration, for both trainers.
        arguments (`Callable`):
            Makes the other arguments of both trainers anew: model, data sets, and so on.
        ilrec (`Callable`):
            Makes the arguments of ILRecTrainer alone.
        refused (`str`):
            Regular expression of the error at construction, which names reason and remedy.
        remedy (`str`):
            What the user of a refused row can do.
        test (`str`):
            `file::function` that checks the row, where training three ways is not the point.
        gpu (`str`):
            Script that checks the row on a GPU; it does not run on a CPU.
        parent_fails (`bool`):
            SFTTrainer itself cannot train this row, so that only ILRecTrainer with and without weights is compared.
        warns (`str`):
            Regular expression of a warning that SFTTrainer gives too.
        check (`Callable`):
            More to assert about the trained ILRecTrainer.
        tolerance (`float`):
            Relative difference allowed between SFTTrainer and ILRec's own forward pass.
    """

    area: str
    name: str
    says: str
    options: Mapping[str, Any] = field(default_factory=dict)
    arguments: Callable[[], dict[str, Any]] = dict
    ilrec: Callable[[], dict[str, Any]] = with_rewards
    refused: str = ""
    remedy: str = ""
    test: str = ""
    gpu: str = ""
    parent_fails: bool = False
    warns: str = ""
    check: Callable[[Any], None] | None = None
    tolerance: float = 1e-4

    @property
    def status(self) -> str:
        return "refused" if self.refused else "GPU" if self.gpu else "works"

    @property
    def is_trained(self) -> bool:
        return not (self.refused or self.gpu or self.test)
