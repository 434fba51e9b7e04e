"""Templates of prompts: Jinja text, shipped or the user's own, checked when it is loaded."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias


if TYPE_CHECKING:
    from jinja2 import Template

FOLDER = Path(__file__).parent / "templates"

#: Jinja text, the name of a shipped template or set, a file, a folder of files, or a list of these.
TemplateSource: TypeAlias = str | Path | Sequence[str | Path]

VARIABLES = ("history", "separator", "item")

# Lengths of the histories that a template is tried with, and an item's text that must stay as it is
TRIED_LENGTHS = (1, 2, 3, 60, 200)
TRIED_ITEM = 'Rock & <Roll> {number}\'s "Pen".'


@dataclass(frozen=True)
class PromptTemplate:
    """
    One template. It is tried on histories of several lengths when it is made.

    Args:
        name (`str`): The file, or "The template", for error messages.
        source (`str`): Jinja text with the variables `history` (list of item texts, oldest first) and `separator`
            (text after each); or, for prompts about one item, `item` (its text).

    Raises:
        ValueError: If the source is no Jinja, has another variable, or does not show every item, unchanged and oldest
            first.
    """

    name: str
    source: str
    compiled: Template = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "compiled", self._compile())
        for length in (1,) if self.shows_one else TRIED_LENGTHS:
            self._check_order([_tried_item(number) for number in range(length)])

    def render(self, history: Sequence[str], separator: str) -> str:
        """The prompt that shows these texts."""
        return self.compiled.render(history=history, separator=separator, item=history[-1])

    @cached_property
    def shows_one(self) -> bool:
        """Whether prompts are about one item, not a history."""
        return {"item", "history"} & self._variables == {"item"}

    @property
    def uses_separator(self) -> bool:
        """Whether the text after each item can be set from outside."""
        return "separator" in self._variables

    @cached_property
    def appends(self) -> bool:
        """Whether a longer history only adds to the text of a shorter one, so that a row can hold several targets."""
        items = [_tried_item(number) for number in range(1 if self.shows_one else max(TRIED_LENGTHS))]
        text = self.render(items[:1], "|")
        for number, item in enumerate(items[1:], start=1):
            longer = self.render(items[: number + 1], "|")
            if not longer.startswith(text + item):
                return False
            text = longer
        return not self.shows_one

    @cached_property
    def _variables(self) -> set[str]:
        from jinja2 import Environment, meta

        return meta.find_undeclared_variables(Environment().parse(self.source))

    def _compile(self) -> Template:
        from jinja2 import StrictUndefined, TemplateSyntaxError
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        environment = ImmutableSandboxedEnvironment(keep_trailing_newline=True, undefined=StrictUndefined)
        try:
            unknown = self._variables - set(VARIABLES)
            compiled = environment.from_string(self.source)
        except TemplateSyntaxError as error:
            raise ValueError(f"{self.name} is not a Jinja template: {error.message} (line {error.lineno}).") from error
        if unknown:
            name = min(unknown)
            lines = enumerate(self.source.splitlines(), start=1)
            line = next(number for number, text in lines if re.search(rf"\b{name}\b", text))
            raise ValueError(
                f"{self.name}: {name!r} is undefined (line {line}). A template may use {', '.join(VARIABLES)}."
            )
        return compiled

    def _check_order(self, items: list[str]) -> None:
        try:
            text = self.render(items, "\n")
        except Exception as error:  # a filter or a method in a template may raise anything
            raise ValueError(f"{self.name} fails for a history of {len(items)} items: {error}") from error
        place = 0
        for number, item in enumerate(items, start=1):
            found = text.find(item, place)
            if found < 0:
                fault = "shows the history in another order" if item in text else "drops or changes items"
                raise ValueError(
                    f"{self.name} {fault}: of a history of {len(items)}, item {number} is not where it should be. "
                    "Show every text of `history` as it is, oldest first; `max_history` and `max_length` limit their "
                    "number."
                )
            place = found + len(item)


def load_templates(template: TemplateSource) -> list[PromptTemplate]:
    """
    Load one or several templates.

    Args:
        template (`str`, `Path` or a list of these): Jinja text (it has `{{` or `{%`), the name of a shipped template
            or set of templates (see [`shipped_templates`]), a file, or a folder whose `.jinja` files are taken in the
            order of their names.

    Raises:
        FileNotFoundError: If there is no such file, folder or shipped template.
        ValueError: If a template cannot be used, see [`PromptTemplate`]; with its name.
    """
    if not isinstance(template, str | Path):
        if not template:
            raise ValueError("Got an empty list of templates; give at least one.")
        return [loaded for each in template for loaded in load_templates(each)]
    if isinstance(template, str) and ("{{" in template or "{%" in template):
        return [PromptTemplate("The template", template)]
    path = _find(template)
    files = sorted(path.glob("*.jinja")) if path.is_dir() else [path]
    if not files:
        raise FileNotFoundError(f"The folder {path} holds no template; name the files <something>.jinja.")
    return [PromptTemplate(f"Template {file}", file.read_text(encoding="utf-8")) for file in files]


def shipped_templates() -> dict[str, list[str]]:
    """
    Names of the templates that come with the package, and the texts behind each.

    ```python
    >>> shipped_templates()["titles"]
    ['The user bought, in order:\\n{% for item in history %}{{ item }}{{ separator }}{% endfor -%}\\n']

    ```
    """
    names: dict[str, list[str]] = {}
    for file in sorted(FOLDER.rglob("*.jinja")):
        name = file.stem if file.parent == FOLDER else file.parent.name
        names.setdefault(name, []).append(file.read_text(encoding="utf-8"))
    return names


def _find(template: str | Path) -> Path:
    for path in (FOLDER / f"{template}.jinja", FOLDER / template, Path(template)):
        if str(template).strip() and path.exists():
            return path
    raise FileNotFoundError(
        f"Got the template {str(template)!r}, which is neither Jinja text (without {{{{ or {{% it shows no item), nor "
        f"a file or folder, nor one of the shipped {', '.join(sorted(shipped_templates()))}."
    )


def _tried_item(number: int) -> str:
    return TRIED_ITEM.format(number=number)
