"""The pages of docs/: their code runs, their commands are understood, their links lead somewhere, all is named."""

import dataclasses
import doctest
import re
import shlex
from pathlib import Path

import pytest
from trl import SFTConfig

import ilrec_trl
from ilrec_trl import ILRecConfig
from ilrec_trl.cli import COMMANDS, parse_options


DOCS = Path(__file__).parents[2] / "docs"
PAGES = sorted(DOCS.glob("*.md"))
# DataLoader says that there is no accelerator to pin memory for (torch/utils/data/dataloader.py).
pytestmark = pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true:UserWarning")


def blocks(page, language):
    """Line number and text of each fenced block that is not marked as not run."""
    text = page.read_text()
    pattern = rf"(<!-- not run:[^\n]*-->\n+)?^```{language}\n(.*?)^```$"
    for found in re.finditer(pattern, text, flags=re.MULTILINE | re.DOTALL):
        if not found[1]:
            yield text[: found.start()].count("\n") + 2, found[2]


@pytest.mark.parametrize("page", [page for page in PAGES if list(blocks(page, "python"))], ids=lambda page: page.stem)
def test_python_runs(page, tmp_path, monkeypatch):
    """The blocks of a page are one program; those with prompts must print what they show."""
    monkeypatch.chdir(tmp_path)
    names = {"__name__": page.stem}
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    for line, source in blocks(page, "python"):
        if ">>>" in source:
            case = doctest.DocTestParser().get_doctest(source, names, page.name, str(page), line - 1)
            report = []
            result = runner.run(case, out=report.append, clear_globs=False)
            names |= case.globs
            assert result.failed == 0, "".join(report)
        else:
            exec(compile("\n" * (line - 1) + source, str(page), "exec"), names)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_are_understood(page, monkeypatch):
    monkeypatch.chdir(DOCS.parent)  # where the files of --config are named from
    for line, source in blocks(page, "bash"):
        for command in source.replace("\\\n", " ").splitlines():
            words = shlex.split(command, comments=True)
            if words[:1] != ["ilrec"] or "--help" in words:
                continue
            name = next(name for name in COMMANDS if words[1:][: len(name.split())] == name.split())
            summary, options, _ = COMMANDS[name]
            rest = words[1 + len(name.split()) :]
            assert len(parse_options(name, summary, options, rest)) == len(options), f"{page.name}:{line}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    targets = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text)
    missing = [target for target in targets if "://" not in target and not (page.parent / target).exists()]
    assert not missing


def test_the_index_names_every_page():
    index = (DOCS / "index.md").read_text()
    assert [page.name for page in PAGES if page.stem != "index" and f"({page.name})" not in index] == []


def test_every_public_name_is_in_the_pages():
    text = "\n".join(page.read_text() for page in PAGES)
    assert [name for name in ilrec_trl.__all__ if not re.search(rf"\b{name}\b", text)] == []


def test_the_trainer_page_has_every_option_with_its_default():
    text = (DOCS / "trainer.md").read_text()
    own = {field.name for field in dataclasses.fields(ILRecConfig)}
    own -= {field.name for field in dataclasses.fields(SFTConfig)}
    rows = dict(re.findall(r"^\| `(\w+)` \| `([^`]+)` \|", text, flags=re.MULTILINE))
    defaults = {field.name: repr(field.default).replace("'", '"') for field in dataclasses.fields(ILRecConfig)}
    assert rows == {name: defaults[name] for name in own}


def test_the_cli_page_has_every_command():
    text = (DOCS / "cli.md").read_text()
    assert [command for command in COMMANDS if f"\nilrec {command}" not in text] == []
