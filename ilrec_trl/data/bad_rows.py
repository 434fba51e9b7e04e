"""Rows of a source that cannot be used: how many of each kind, and which."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray


logger = logging.getLogger(__name__)

_NAMED = 5  # rows of one kind that a message names


@dataclass
class BadRows:
    """
    Rows that cannot be used.

    Args:
        source (`str`): File or table they are in.
        unit (`str`, *optional*, defaults to `"row"`): What `numbers` name: `"line"` of a text file, the first being 1;
            `"record"` of a CSV file with line breaks inside quotation marks, the first being 1; `"row"` of a table,
            the first being 0; `"user"` of a file of sequences.
        numbers (`dict[str, np.ndarray]`, *optional*): The rows, ascending, by what is wrong with them. A row is in
            one kind only.
    """

    source: str
    unit: str = "row"
    numbers: dict[str, NDArray[Any]] = field(default_factory=dict)

    def __len__(self) -> int:
        return sum(map(len, self.numbers.values()))

    @property
    def counts(self) -> dict[str, int]:
        """Number of rows of each kind."""
        return {kind: len(numbers) for kind, numbers in self.numbers.items()}

    def add(self, kind: str, numbers: Any) -> None:
        """Add rows of a kind."""
        if len(numbers):
            new = np.asarray(numbers)
            self.numbers[kind] = np.sort(np.concatenate([self.numbers.get(kind, new[:0]), new]))

    def __str__(self) -> str:
        kinds = "; ".join(
            f"{len(numbers):,} {kind} ({self._named(numbers)})" for kind, numbers in self.numbers.items()
        )
        return f"{len(self):,} bad row{'s' if len(self) > 1 else ''} in {self.source}: {kinds}"

    def _named(self, numbers: NDArray[Any]) -> str:
        shown = ", ".join(map(str, numbers[:_NAMED].tolist()))
        more = f" and {len(numbers) - _NAMED:,} more" if len(numbers) > _NAMED else ""
        return f"{self.unit}{'s' if len(numbers) > 1 else ''} {shown}{more}"

    def settle(self, bad_rows: str) -> None:
        """
        Stop, or say what is left out.

        Args:
            bad_rows (`str`): `"raise"` or `"drop"`.

        Raises:
            ValueError: If there are bad rows and they may not be dropped.
        """
        if bad_rows not in ("raise", "drop"):
            raise ValueError(f'Got bad_rows={bad_rows!r}; expected "raise" or "drop".')
        if len(self) and bad_rows == "raise":
            raise ValueError(f'{self}. Mend or remove them, or pass bad_rows="drop" to go on without them.')
        if len(self):
            logger.warning("Left out %s.", self)
