"""The page of the matrix, written from the rows: `python -m tests.compatibility.page`."""

import json

from .fields import UNSET
from .matrix import MATRIX
from .versions import RESULTS, ROOT, requirements


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
VERSIONS = """\
## Versions

`make versions` runs the tests of the trainer and of this page on the oldest and on the newest supported versions, each
in an environment of its own, on a CPU. Both take the torch of the Makefile. The newest has DeepSpeed too; what the
oldest skips are its tests.
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
    parts = [INTRODUCTION, describe_versions()]
    for area in areas:
        lines = [describe(row) for row in MATRIX if row.area == area]
        parts.append("\n".join([f"## {area}", "", "| What | | Notes |", "| --- | --- | --- |", *lines, ""]))
    parts.append(FIELDS + "".join(f"| `{name}` | {reason} |\n" for name, reason in sorted(UNSET.items())))
    return "\n".join(parts)


def describe_versions() -> str:
    """The supported ranges, and what `make versions` saw at their ends."""
    seen = json.loads(RESULTS.read_text(encoding="utf-8"))
    names = [name for name in seen["newest"]["versions"] if name in seen["oldest"]["versions"]]
    names += [name for name in seen["newest"]["versions"] if name not in names]
    ranges = {"python": ">=3.11", **requirements(), **requirements("quantization"), **requirements("deepspeed")}
    rows = [[name, f"`{ranges[name]}`", *(seen[kind]["versions"].get(name, "") for kind in seen)] for name in names]
    rows += [
        [count, "", *(str(seen[kind][count]) for kind in seen)] for count in ("passed", "failed", "skipped", "date")
    ]
    lines = [f"| {' | '.join(row)} |" for row in [["", "supported", *seen], ["---"] * 4, *rows]]
    return "\n".join([VERSIONS, *lines, ""])


def describe(row) -> str:
    notes = [row.says, row.remedy and f"Instead: {row.remedy}"]
    if row.parent_fails:
        notes.append("SFTTrainer cannot train this.")
    notes += [f"`{place}`" for place in (row.test, row.gpu) if place]
    return f"| {row.name} | {row.status} | {' '.join(note for note in notes if note)} |"


if __name__ == "__main__":
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(write_page(), encoding="utf-8")
