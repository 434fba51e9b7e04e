"""What ILRec adds to TRL's model card: the settings that were in force, and the last metrics."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def add_ilrec_section(path: str | Path, settings: dict[str, Any], log_history: list[dict[str, Any]]) -> None:
    """
    Add a section before the card's framework versions, in place.

    Args:
        path (`str` or `Path`):
            The card that TRL wrote.
        settings (`dict`):
            Names and values.
        log_history (`list[dict]`):
            What the trainer logged, see [`~transformers.TrainerState`]. The last value of each metric is shown.
    """
    last: dict[str, float] = {}
    for log in log_history:
        last.update(log)
    shown = {name: last[name] for name in sorted(last) if _is_shown(name)}
    lines = ["### ILRec settings", "", *_table("Setting", settings), ""]
    if shown:
        lines += ["### Last metrics", "", *_table("Metric", {name: f"{x:.4g}" for name, x in shown.items()}), ""]
    card = Path(path)
    before, heading, after = card.read_text(encoding="utf-8").partition("### Framework versions")
    card.write_text("".join([before, "\n".join(lines), "\n", heading, after]), encoding="utf-8")


def _is_shown(name: str) -> bool:
    return (
        name in ("loss", "eval_loss") or "ilrec/" in name or name.startswith(("eval_hit@", "eval_ndcg@", "eval_mrr"))
    )


def _table(name: str, values: dict[str, Any]) -> list[str]:
    return [f"| {name} | Value |", "| --- | --- |", *(f"| `{key}` | {value} |" for key, value in values.items())]
