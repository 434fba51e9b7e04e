"""The options at the end of docs/cli.md, written from the dataclasses: `python -m tests.docs.options`."""

import dataclasses
from pathlib import Path

from ilrec_trl.cli import COMMANDS


PAGE = Path(__file__).parents[2] / "docs/cli.md"
MARK = "<!-- The rest of this page is written by `make page`. -->\n"


def write_options() -> str:
    """Tables of all options of `ilrec run`, one a group, as Markdown."""
    parts = []
    for options in COMMANDS["run"][1]:
        rows = [_row(field) for field in dataclasses.fields(options)]
        heading = options._argument_group_name.capitalize()
        parts.append(
            "\n".join([f"### {heading}", "", "| option | default | what it is |", "| --- | --- | --- |", *rows])
        )
    return "\n" + "\n\n".join(parts) + "\n"


def _row(field: dataclasses.Field) -> str:
    default = field.default_factory() if field.default is dataclasses.MISSING else field.default
    shown = "" if default is None else f"`{' '.join(map(str, default)) if isinstance(default, list) else default}`"
    text = field.metadata["help"].replace("|", "\\|").replace("<", "&lt;")
    return f"| `{field.name}` | {shown} | {text} |"


def hand_written(page: str) -> str:
    """The part of the page before the tables."""
    return page.partition(MARK)[0]


if __name__ == "__main__":
    PAGE.write_text(hand_written(PAGE.read_text()) + MARK + write_options())
