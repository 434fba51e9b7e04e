"""The page of the matrix, written from the rows: `python -m tests.compatibility.page`."""

import configparser
from pathlib import Path

from .fields import UNSET
from .matrix import MATRIX


ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "compatibility.md"
INTRODUCTION = """\
# Compatibility

Whatever a script that works with `SFTTrainer` uses goes on working with `ILRecTrainer`, or is refused at construction
with the reason and what to do. This page is written from the rows that the tests run (`tests/compatibility`): do not
edit it, run `python -m tests.compatibility.page`.

**works**: trained in the tests with `SFTTrainer`, with `ILRecTrainer` at zero weights (losses, gradient norms, metrics
and weights equal), and with ILRec's terms (the loss falls, the metrics are finite and sensible), or checked by a test
that the row names. **refused**: an error at construction. **GPU**: cannot run on a CPU; the script that the row names
checks it on a GPU, and until you have run it, take it as not checked.
"""
FIELDS = """\
## Fields of `SFTConfig` that no row sets

All other fields are set by at least one row.

| Field | Where, or why not |
| --- | --- |
"""


def write_page() -> str:
    """The page as Markdown."""
    areas = list(dict.fromkeys(row.area for row in MATRIX))
    versions = f"Supported: {', '.join(f'`{version}`' for version in supported_versions())}.\n"
    parts = [INTRODUCTION, versions]
    for area in areas:
        lines = [describe(row) for row in MATRIX if row.area == area]
        parts.append("\n".join([f"## {area}", "", "| What | | Notes |", "| --- | --- | --- |", *lines, ""]))
    parts.append(FIELDS + "".join(f"| `{name}` | {reason} |\n" for name, reason in sorted(UNSET.items())))
    return "\n".join(parts)


def supported_versions() -> list[str]:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    requirements = setup["options"]["install_requires"].split()
    return [line for line in requirements if line.startswith(("trl", "transformers", "peft", "torch", "accelerate"))]


def describe(row) -> str:
    notes = [row.says, row.remedy and f"Instead: {row.remedy}"]
    if row.parent_fails:
        notes.append("SFTTrainer cannot train this.")
    notes += [f"`{place}`" for place in (row.test, row.gpu) if place]
    return f"| {row.name} | {row.status} | {' '.join(note for note in notes if note)} |"


if __name__ == "__main__":
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(write_page(), encoding="utf-8")
