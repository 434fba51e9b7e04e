"""A report of semantic IDs: how codes are used, how IDs are shared, and whether neighbours are alike."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .markdown import table


SHOWN_PREFIXES = 5  # of the first level and of the second
SHOWN_ITEMS = 6  # below a prefix
SHOWN_WORDS = 3


def semantic_id_figures(
    index: Mapping[str, Sequence[str]],
    titles: Mapping[str, str] | None = None,
    built: Mapping[str, Any] | None = None,
    codebook_sizes: Sequence[int] | None = None,
) -> dict[str, Any]:
    """
    Figures of semantic IDs, whoever made them.

    Args:
        index (`dict[str, list[str]]`): `{item: tokens}`; IDs may differ in length.
        titles (`dict[str, str]`, *optional*): What items are called; without it examples show ids.
        built (`dict`, *optional*): [`SemanticIds.figures`] of IDs that were built here.
        codebook_sizes (`list[int]`, *optional*): Codes that each level has, used or not.

    Returns:
        `dict`: `items`, `distinct`, `collisions` (items whose ID an item before them has too), `levels` (a list of
        dicts: `codes_used`, `entropy_bits`, `perplexity`, `largest_code`, `prefixes`, `mean_children`,
        `mean_group`, `median_group`, `largest_group`), `prefixes` (examples), and `built`.

    Raises:
        ValueError: For an empty catalogue.
    """
    if not index:
        raise ValueError("Got no semantic IDs, expected at least one item's.")
    codes = numbered_tokens(index)  # (I, L), -1 after the end of an ID
    groups = prefix_groups(codes)
    levels = []
    for level in range(codes.shape[1]):
        figures = _level_figures(codes[:, level], groups[level], groups[level - 1] if level else None)
        if codebook_sizes is not None:
            figures["codebook_size"] = codebook_sizes[level]
        levels.append(figures)
    distinct = len(set(map(tuple, index.values())))
    return {
        "items": len(index),
        "distinct": distinct,
        "collisions": len(index) - distinct,
        "levels": levels,
        "prefixes": _examples(index, groups, dict(titles or {})),
        "built": None if built is None else dict(built),
    }


def numbered_tokens(index: Mapping[str, Sequence[str]]) -> NDArray[np.int64]:
    """Tokens as numbers `(I, L)`, counted in each level by itself; -1 after the end of a shorter ID."""
    depth = max(map(len, index.values()))
    columns = []
    for level in range(depth):
        tokens = [ids[level] if level < len(ids) else None for ids in index.values()]
        numbers = {token: number for number, token in enumerate(sorted({token for token in tokens if token}))}
        columns.append([-1 if token is None else numbers[token] for token in tokens])
    return np.array(columns, np.int64).T


def prefix_groups(codes: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Number of the prefix of each item in each level, `(I,)` each; -1 for an item whose ID has ended."""
    groups: list[NDArray[np.int64]] = []
    before = np.zeros(len(codes), np.int64)
    for column in codes.T:
        keys = before * (codes.max() + 2) + column
        number = np.unique(keys, return_inverse=True)[1].astype(np.int64)
        number[column < 0] = -1
        groups.append(number)
        before = np.maximum(number, 0)
    return groups


def distinctive_words(texts: Sequence[str], group: Sequence[str], number: int = SHOWN_WORDS) -> list[str]:
    """Words that most of the group have in their titles, and few others: by the difference of the two shares."""
    inside, everywhere = (Counter(word for text in part for word in _words(text)) for part in (group, texts))
    share = {word: count / len(group) - everywhere[word] / len(texts) for word, count in inside.items()}
    return [word for word in sorted(share, key=lambda word: (-share[word], word)) if share[word] > 0][:number]


def _words(text: str) -> set[str]:
    return set(re.findall(r"[^\W\d_]{3,}", text.lower()))


def _level_figures(
    column: NDArray[np.int64], group: NDArray[np.int64], parent: NDArray[np.int64] | None
) -> dict[str, Any]:
    there = column >= 0
    uses = np.bincount(column[there])
    shares = uses[uses > 0] / there.sum()
    entropy = float(-(shares * np.log2(shares)).sum()) + 0.0  # not -0.0
    sizes = np.unique(group[there], return_counts=True)[1]
    parents = 1 if parent is None else len(np.unique(parent[there]))
    return {
        "codes_used": int((uses > 0).sum()),
        "entropy_bits": entropy,
        "perplexity": float(2**entropy),
        "largest_code": int(uses.max()),
        "prefixes": len(sizes),
        "mean_children": len(sizes) / parents,
        "mean_group": float(sizes.mean()),
        "median_group": float(np.median(sizes)),
        "largest_group": int(sizes.max()),
    }


def _examples(
    index: Mapping[str, Sequence[str]], groups: Sequence[NDArray[np.int64]], titles: Mapping[str, str]
) -> list[dict[str, Any]]:
    """A few prefixes of the first two levels, from the largest to one of median size, with items below them."""
    item_ids = list(index)
    texts = [titles.get(item_id, "") for item_id in item_ids]
    examples = []
    for level, group in enumerate(groups[:2]):
        numbers, sizes = np.unique(group[group >= 0], return_counts=True)
        ranked = numbers[np.argsort(-sizes, kind="stable")]
        places = np.unique(np.linspace(0, (len(ranked) - 1) // 2, SHOWN_PREFIXES).astype(int))
        for number in ranked[places]:
            rows = np.flatnonzero(group == number)
            spread = rows[np.unique(np.linspace(0, len(rows) - 1, SHOWN_ITEMS).astype(int))]
            examples.append(
                {
                    "prefix": "".join(index[item_ids[rows[0]]][: level + 1]),
                    "items": len(rows),
                    "words": distinctive_words(texts, [texts[row] for row in rows]),
                    "examples": [{"item": item_ids[row], "title": texts[row]} for row in spread],
                }
            )
    return examples


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
        folder (`str` or `Path`): Receives `report.md` and `report.json`.
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
    (folder / "report.json").write_text(json.dumps(figures, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / "report.md").write_text(render_semantic_id_report(figures), encoding="utf-8")
    return figures


def render_semantic_id_report(figures: Mapping[str, Any]) -> str:
    """The report as Markdown."""
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
