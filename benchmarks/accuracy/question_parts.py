"""Parts of the test questions, by how often the target was trained on and by the length of the history."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray


def question_parts(path: Path, questions: list[tuple[str, str]]) -> dict[str, NDArray[np.bool_]]:
    """
    Parts of the test questions: thirds by how often the target was trained on, halves by the length of the history.

    Args:
        path (`Path`): Parquet table with the columns `user`, `item`, `count` and `history`.
        questions (`list[tuple[str, str]]`): Users and targets in the order of the ranks.
    """
    table = pq.read_table(path).to_pydict()
    rows = {question: row for row, question in enumerate(zip(table["user"], table["item"], strict=True))}
    order = [rows[question] for question in questions]
    counts, lengths = np.array(table["count"])[order], np.array(table["history"])[order]  # (Q,), (Q,)
    low, high = (int(value) for value in np.quantile(counts, [1 / 3, 2 / 3], method="lower"))
    half = int(np.quantile(lengths, 0.5, method="lower"))
    parts = {
        f"tail targets (trained on {_span(0, low)} times)": counts <= low,
        f"middle targets ({_span(low + 1, high)} times)": (counts > low) & (counts <= high),
        f"head targets (over {high} times)": counts > high,
        f"short histories (up to {half} items)": lengths <= half,
        f"long histories (over {half} items)": lengths > half,
    }
    return {name: inside for name, inside in parts.items() if inside.any()}


def _span(first: int, last: int) -> str:
    return str(last) if first >= last else f"{first} to {last}"
