"""What the site needs beside its pages: links to files of the repository, and TRL's dialect of docstrings."""

import re
from typing import Any

import griffe
from mkdocs.config.defaults import MkDocsConfig


def on_page_markdown(markdown: str, config: MkDocsConfig, **_: Any) -> str:
    """Files outside docs/ are no part of the site: link to them in the repository, if `repo_url` says where it is."""

    def replace(link: re.Match[str]) -> str:
        text, target = link.groups()
        return f"[{text}]({config.repo_url}/blob/main/{target})" if config.repo_url else text

    return re.sub(r"\[([^\]]+)\]\(\.\./([^)]+)\)", replace, markdown)


class TRLDocstrings(griffe.Extension):
    """Docstrings are written as TRL's are; mkdocstrings reads Google's style."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring:
            obj.docstring.value = to_google_style(obj.docstring.value)


def to_google_style(docstring: str) -> str:
    """
    References become code, and types lose their marks; the signature shows what is optional.

    >>> to_google_style("    k (`int`, *optional*, defaults to `5`):")
    '    k (int):'
    >>> to_google_style("    dataset ([`~datasets.Dataset`]): For [`ILRecTrainer`].")
    '    dataset (Dataset): For `ILRecTrainer`.'
    >>> to_google_style("    `list[int]`: ids.")
    '    list[int]: ids.'
    """
    text = re.sub(r"\[`~?(?:[\w.]+\.)?(\w+)`\](?![\[(])", r"`\1`", docstring)
    text = re.sub(r"^( +)`([^`]+)`: ", r"\1\2: ", text, flags=re.MULTILINE)
    return re.sub(r"^( +[\w*, ]+) \(([`*].*)\):(?= |$)", _without_marks, text, flags=re.MULTILINE)


def _without_marks(entry: re.Match[str]) -> str:
    kind = re.sub(r"(, )?\*optional\*.*", "", entry[2]).replace("`", "")
    return f"{entry[1]} ({kind}):" if kind else f"{entry[1]}:"
