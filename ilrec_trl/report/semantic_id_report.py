"""`report.md`, `report.json` and `tree.png` of a catalogue's semantic IDs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .markdown import table
from .semantic_id_figures import semantic_id_figures
from .semantic_id_tree import draw_tree


def write_semantic_id_report(
    folder: str | Path,
    index: Mapping[str, Sequence[str]],
    titles: Mapping[str, str] | None = None,
    built: Mapping[str, Any] | None = None,
    codebook_sizes: Sequence[int] | None = None,
) -> dict[str, Any]:
    """
    Write the report of a catalogue's semantic IDs, built here or anywhere else.

    Args:
        folder (`str` or `Path`): Receives `report.md`, `report.json` and `tree.png`.
        index, titles, built, codebook_sizes: As in
            [`~ilrec_trl.report.semantic_id_figures.semantic_id_figures`].

    Returns:
        `dict`: What `report.json` holds.

    Raises:
        ImportError: If matplotlib is missing.
        ValueError: For an empty catalogue.
    """
    figures = semantic_id_figures(index, titles, built, codebook_sizes)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    draw_tree(index, folder / "tree.png", titles)
    (folder / "report.json").write_text(json.dumps(figures, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / "report.md").write_text(render_semantic_id_report(figures), encoding="utf-8")
    return figures


def render_semantic_id_report(figures: Mapping[str, Any]) -> str:
    """The report as Markdown, with the picture `tree.png` beside it."""
    parts = [
        "# Semantic IDs",
        _summary(figures),
        "## Use of the codes",
        "Entropy is that of one level's codes over the items; perplexity is 2 to that power, the number of codes that "
        "would give it if all were used alike.",
        table(*_usage(figures["levels"])),
        "## The tree",
        "A group is the items below one prefix; children are the different codes that follow a prefix.",
        table(*_groups(figures)),
        "![Tree of the semantic IDs](tree.png)",
        "## What prefixes stand for",
        "The largest prefix of a level first, the last one of median size. Words are those that the titles below a "
        "prefix share and others do not.",
        *(_prefix(example) for example in figures["prefixes"]),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def summary_rows(figures: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of a short table for the terminal, one row a level."""
    names = ["codes_used", "entropy_bits", "largest_code", "prefixes", "mean_children", "largest_group"]
    rows = [
        [
            str(number),
            *(f"{level[name]:.2f}" if isinstance(level[name], float) else f"{level[name]:,}" for name in names),
        ]
        for number, level in enumerate(figures["levels"], 1)
    ]
    return ["level", *(name.replace("_", " ") for name in names)], rows


def _summary(figures: Mapping[str, Any]) -> str:
    lines = [
        f"{figures['items']:,} items, {figures['distinct']:,} different semantic IDs of "
        f"{len(figures['levels'])} levels. {_collisions(figures['collisions'])}"
    ]
    if built := figures["built"]:
        lines += [
            f"By their nearest codes {built['collisions']:,} items would have had the ID of an item before them; "
            f"{built['moved']:,} were given another code than their nearest, so that all differ.",
            "Settings: " + ", ".join(f"{name} = {value}" for name, value in built["settings"].items()) + ".",
        ]
    return "\n\n".join(lines)


def _collisions(number: int) -> str:
    return f"**{number:,} items have the ID of an item before them.**" if number else "No two items share one."


def _usage(levels: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    header = ["level", "codes", "used", "entropy in bits", "perplexity", "items of the largest code"]
    rows = [
        [
            str(number),
            str(level.get("codebook_size", "-")),
            str(level["codes_used"]),
            f"{level['entropy_bits']:.2f}",
            f"{level['perplexity']:.0f}",
            f"{level['largest_code']:,}",
        ]
        for number, level in enumerate(levels, 1)
    ]
    return header, rows


def _groups(figures: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    errors = (figures["built"] or {}).get("reconstruction_error", [])
    header = ["level", "prefixes", "children a prefix", "mean group", "median", "largest", "variance left over"]
    rows = [
        [
            str(number),
            f"{level['prefixes']:,}",
            f"{level['mean_children']:.1f}",
            f"{level['mean_group']:.1f}",
            f"{level['median_group']:.0f}",
            f"{level['largest_group']:,}",
            f"{errors[number - 1]:.1%}" if number <= len(errors) else "-",
        ]
        for number, level in enumerate(figures["levels"], 1)
    ]
    return header, rows


def _prefix(example: Mapping[str, Any]) -> str:
    words = f": {', '.join(example['words'])}" if example["words"] else ""
    rows = [[entry["item"], entry["title"]] for entry in example["examples"]]
    return f"### `{example['prefix']}`, {example['items']:,} items{words}\n\n{table(['item', 'title'], rows)}"
