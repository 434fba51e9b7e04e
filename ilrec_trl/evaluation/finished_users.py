"""Ranks of the users that an evaluation has finished, on disk, so that a killed one can go on."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np


Ranks = dict[int, tuple[float, int]]


class FinishedUsers:
    """
    A folder that holds what was ranked, and of what: `evaluation.json` with the fingerprints of model, tokenizer, data
    set, catalogue and settings, and one `rows-<first row>.npz` for each group of finished batches. A file is written
    beside its place and then moved there, so that none is ever half there.

    Args:
        directory (`str` or `Path`):
            Made where it does not exist.
        about (`dict[str, str]`):
            Fingerprints of this evaluation.
    """

    def __init__(self, directory: str | Path, about: Mapping[str, str]) -> None:
        self.directory = Path(directory)
        self.about = dict(about)

    def load(self) -> Ranks:
        """
        First rank and number of ties of every finished row; empty where nothing is finished.

        Raises:
            `ValueError`: where the folder belongs to another evaluation, or a file of it cannot be read.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        header = self.directory / "evaluation.json"
        paths = sorted(self.directory.glob("rows-*.npz"))
        if not header.exists():
            if paths:
                raise ValueError(f"{self.directory} holds ranks but no evaluation.json, which says whose. Remove it.")
            temporary = header.with_suffix(".tmp")
            temporary.write_text(json.dumps({"format": 1} | self.about, indent=1) + "\n")
            temporary.replace(header)
            return {}
        found = json.loads(header.read_text())
        if others := [name for name, value in self.about.items() if found.get(name) != value]:
            raise ValueError(
                f"{self.directory} holds the ranks of another evaluation: its {', '.join(others)} differed. Give "
                "the same again to go on with it, or name another folder to start anew."
            )
        ranks: Ranks = {}
        for path in paths:
            ranks |= _read(path)
        return ranks

    def add(self, ranks: Ranks) -> None:
        """Write some finished rows, in one file."""
        rows = list(ranks)
        starts, ties = zip(*ranks.values(), strict=True)
        path = self.directory / f"rows-{min(rows)}.npz"
        temporary = path.with_suffix(".tmp")
        with temporary.open("wb") as file:
            np.savez(file, rows=rows, starts=starts, ties=ties)
        temporary.replace(path)


def _read(path: Path) -> Ranks:
    try:
        with path.open("rb") as opened, np.load(opened) as file:
            columns: list[list[Any]] = [file[name].tolist() for name in ("rows", "starts", "ties")]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} cannot be read ({error}). Remove it, and its users will be ranked again.") from error
    rows, starts, ties = columns
    return {row: (start, tie) for row, start, tie in zip(rows, starts, ties, strict=True)}
