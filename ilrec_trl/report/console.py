"""Tables on the terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .results import METRICS, MethodResult


def metrics_table(methods: Mapping[str, MethodResult]) -> Table:
    """Every method's metrics, each with one standard error."""
    table = Table(title="Full ranking, mean over users ± one standard error")
    table.add_column("method")
    for metric in METRICS:
        table.add_column(metric, justify="right", no_wrap=True)
    for name, method in methods.items():
        cells = (f"{method.metrics[metric]:.4f} ±{_number(method.standard_error[metric])}" for metric in METRICS)
        table.add_row(escape(name), *cells)
    return table


def seconds_table(title: str, seconds: Mapping[str, float]) -> Table:
    """Seconds of each stage, and their sum."""
    table = Table(title=title)
    table.add_column("stage")
    table.add_column("time", justify="right")
    for stage, value in seconds.items():
        table.add_row(escape(stage), duration(value))
    table.add_section()
    table.add_row("total", duration(sum(seconds.values())))
    return table


def list_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """A plain table."""
    table = Table(*header)
    for row in rows:
        table.add_row(*map(escape, row))
    return table


def duration(seconds: float) -> str:
    """Seconds as a reader says them: `48 s`, `3 min 20 s`."""
    whole = round(seconds)
    return f"{whole} s" if whole < 60 else f"{whole // 60} min {whole % 60} s"


def show(content: Any) -> None:
    """Print to standard output; wide enough for a table when it is not a terminal."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=120)
    console.print(content)


def _number(value: float) -> str:
    # `.0123`: six columns of figures are to fit one line.
    return "-" if math.isnan(value) else f"{value:.4f}".removeprefix("0")
