"""
A picture of the tree of semantic IDs: all items as blocks, the use of the codes, and one branch with its titles.

    python -m benchmarks.accuracy.semantic_id_tree --data FOLDER --output tree.png
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.accuracy.command import run_command
from ilrec_trl.items.item_catalog import ItemCatalog
from ilrec_trl.pipeline.prepare import input_errors
from ilrec_trl.report.console import show
from ilrec_trl.report.semantic_id_report import distinctive_words, numbered_tokens, prefix_groups


if TYPE_CHECKING:
    from matplotlib.axes import Axes

LABELS = 12  # of the first level's largest prefixes
LINE_WIDTH = 0.011  # of an upright line of text, as a share of the picture's width
BRANCH_LEAVES = 24  # items of the branch that is shown with titles


@dataclass
class TreeOptions:
    """A catalogue with semantic IDs, and where its picture goes."""

    data: str = field(metadata={"help": "Folder with index.json and, where items have titles, item.json."})
    output: str = field(default="tree.png", metadata={"help": "The PNG to write."})


PROGRAM = "benchmarks.accuracy.semantic_id_tree"
OPTIONS = [TreeOptions]


def draw_tree(index: Mapping[str, Sequence[str]], path: str | Path, titles: Mapping[str, str] | None = None) -> None:
    """
    Draw the whole tree as blocks, how much each code is used, and one branch with its items.

    Args:
        index (`dict[str, list[str]]`): `{item: tokens}`.
        path (`str` or `Path`): The PNG to write.
        titles (`dict[str, str]`, *optional*): What items are called.

    Raises:
        ImportError: If matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("The picture needs matplotlib: pip install 'ilrec-trl[report]'") from error
    codes = numbered_tokens(index)
    groups = prefix_groups(codes)
    figure = Figure(figsize=(13, 11), layout="constrained")
    grid = figure.add_gridspec(2, 2, height_ratios=(1, 1.25), width_ratios=(1, 2.1))
    names = [titles.get(item, "") if titles else "" for item in index]
    _draw_blocks(figure.add_subplot(grid[0, :]), index, groups, names)
    _draw_use(figure.add_subplot(grid[1, 0]), codes)
    _draw_branch(figure.add_subplot(grid[1, 1]), index, groups, names)
    figure.savefig(path, dpi=110)


def _draw_blocks(
    axes: Axes, index: Mapping[str, Sequence[str]], groups: list[NDArray[np.int64]], names: list[str]
) -> None:
    """One row of blocks a level, as wide as the items below them, the largest first."""
    order = _by_size(groups)
    for level, group in enumerate(groups):
        ordered = group[order]
        starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
        widths = np.diff(np.r_[starts, len(ordered)])
        there = ordered[starts] >= 0
        # one item is pale, many are dark, by the logarithm
        shade = 0.12 + 0.75 * np.log2(widths) / max(1.0, np.log2(widths.max()))
        axes.bar(
            starts[there],
            0.9,
            widths[there],
            bottom=-level - 0.9,
            align="edge",
            color=_colours(shade[there]),
            edgecolor="white",
            linewidth=np.clip(widths[there] / len(order) * 60, 0, 0.8),
        )
    _label_blocks(axes, index, groups[0], order, names)
    axes.set(xlim=(0, len(order)), ylim=(-len(groups), 0.05), xlabel="items", yticks=-np.arange(len(groups)) - 0.45)
    axes.set_yticklabels([f"level {level + 1}" for level in range(len(groups))])
    axes.set_title(
        f"All {len(order):,} items: one block a prefix; the palest hold one item, the darkest the most", loc="left"
    )
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)


def _label_blocks(
    axes: Axes,
    index: Mapping[str, Sequence[str]],
    group: NDArray[np.int64],
    order: NDArray[np.int64],
    names: list[str],
) -> None:
    item_ids = list(index)
    ordered = group[order]
    for number in list(dict.fromkeys(ordered.tolist()))[:LABELS]:
        rows = np.flatnonzero(group == number)
        places = np.flatnonzero(ordered == number)
        lines = int(len(rows) / len(order) / LINE_WIDTH)  # as many as the block has room for
        if lines:
            words = (
                distinctive_words(names, [names[row] for row in rows], lines - 1) if any(names) and lines > 1 else []
            )
            text = "\n".join([index[item_ids[rows[0]]][0], *words[:2]])
            axes.text(
                places.mean() + 0.5, -0.45, text, ha="center", va="center", rotation=90, fontsize=8, color="white"
            )


def _draw_use(axes: Axes, codes: NDArray[np.int64]) -> None:
    for level, numbers in enumerate(codes.T):
        uses = np.sort(np.bincount(numbers[numbers >= 0]))[::-1]
        axes.step(np.arange(1, len(uses) + 1), uses, where="mid", label=f"level {level + 1}")
    axes.set(xlabel="codes, the most used first", ylabel="items", yscale="log")
    axes.set_title("Use of the codes", loc="left")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_branch(
    axes: Axes, index: Mapping[str, Sequence[str]], groups: list[NDArray[np.int64]], names: list[str]
) -> None:
    """The items below one prefix of the first level, in the order of the tree, with what they are called."""
    item_ids = list(index)
    rows = _branch(groups, names)
    axes.set_title(f"One branch: {len(rows)} items below {index[item_ids[rows[0]]][0]}", loc="left")
    depth = len(groups)
    for level in range(depth):
        previous: Any = None
        for line, row in enumerate(rows):
            tokens = index[item_ids[row]]
            key = tuple(tokens[: level + 1])
            if level < len(tokens) and key != previous:
                last = max(
                    place for place, other in enumerate(rows) if tuple(index[item_ids[other]][: level + 1]) == key
                )
                axes.plot([level + 0.05] * 2, [line - 0.3, last + 0.3], color="tab:blue", linewidth=1.5)
                axes.text(level + 0.1, line, tokens[level], va="center", fontsize=8, family="monospace")
            previous = key
    for line, row in enumerate(rows):
        text = names[row] or item_ids[row]
        axes.text(depth + 0.05, line, text if len(text) <= 75 else text[:74] + "…", va="center", fontsize=8)
    axes.set(xlim=(0, depth + 5.5), ylim=(len(rows) - 0.3, -0.7))
    axes.axis("off")


def _branch(groups: list[NDArray[np.int64]], names: list[str]) -> NDArray[np.int64]:
    """Rows of the largest prefix of the first level that fits, or of the smallest where none does."""
    sizes = np.bincount(groups[0])
    fitting = np.flatnonzero(sizes <= BRANCH_LEAVES)
    number = fitting[sizes[fitting].argmax()] if len(fitting) else sizes.argmin()
    rows = np.flatnonzero(groups[0] == number)
    return rows[np.lexsort([group[rows] for group in groups[::-1]])][:BRANCH_LEAVES]


def _by_size(groups: list[NDArray[np.int64]]) -> NDArray[np.int64]:
    """Rows in the order of the tree, larger groups first in every level."""
    keys: list[NDArray[np.int64]] = []
    for group in groups:
        sizes = np.bincount(group + 1)[group + 1]
        keys += [-sizes, group]
    return np.lexsort(keys[::-1])


def _colours(shades: NDArray[np.float64]) -> Any:
    from matplotlib import colormaps

    return colormaps["Blues"](shades)


def picture(options: TreeOptions) -> None:
    """Draw the semantic IDs of a folder."""
    with input_errors():
        catalog = ItemCatalog.from_lc_rec(options.data)
    titles = None if catalog.titles is None else dict(zip(catalog.item_ids, catalog.titles, strict=True))
    draw_tree(dict(zip(catalog.item_ids, catalog.semantic_ids, strict=True)), options.output, titles)
    show(f"Picture: {options.output}")


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns 0, or 2 where something the user gave cannot be used."""
    return run_command(PROGRAM, "Draw the tree of semantic IDs", OPTIONS, picture, argv)


if __name__ == "__main__":
    sys.exit(main())
