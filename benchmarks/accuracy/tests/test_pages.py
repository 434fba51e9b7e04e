"""The pages of the laboratory: their code runs, their commands are understood, and their links lead somewhere."""

import importlib
import re
import shlex
from pathlib import Path

import pytest

from ilrec_trl.cli import parse_options
from tests.docs import test_pages as of_docs


ROOT = Path(__file__).parents[3]
BENCHMARKS = ROOT / "benchmarks"
REPORTS = sorted((BENCHMARKS / "accuracy/results").glob("*.md"))
PAGES = sorted(set(BENCHMARKS.rglob("*.md")) - set(REPORTS))
# DataLoader says that there is no accelerator to pin memory for (torch/utils/data/dataloader.py).
pytestmark = pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true:UserWarning")


def name_of(page):
    return page.relative_to(BENCHMARKS).with_suffix("").as_posix()


def commands(page):
    """Words of every command that a page shows, in blocks and in lines."""
    for _, source in of_docs.blocks(page, "bash"):
        for command in source.replace("\\\n", " ").splitlines():
            yield shlex.split(command, comments=True)
    for command in re.findall(r"`(python [^`]+)`", page.read_text()):
        yield shlex.split(command)


@pytest.mark.parametrize("page", [page for page in PAGES if list(of_docs.blocks(page, "python"))], ids=name_of)
def test_python_runs(page, tmp_path, monkeypatch):
    of_docs.test_python_runs(page, tmp_path, monkeypatch)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_of_the_library_are_understood(page, monkeypatch):
    of_docs.test_commands_are_understood(page, monkeypatch)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_of_the_laboratory_are_understood(page, monkeypatch):
    monkeypatch.chdir(ROOT)
    for words in commands(page):
        scripts = [word for word in words if word.startswith("benchmarks/") and word.endswith(".py")]
        if words[:2] == ["python", "-m"] and words[2].startswith("benchmarks."):
            module = importlib.import_module(words[2])
            assert len(parse_options(module.PROGRAM, "", module.OPTIONS, words[3:])) == len(module.OPTIONS)
        for script in scripts:
            source = (ROOT / script).read_text()
            flags = [word for word in words[words.index(script) :] if word.startswith("--")]
            assert [flag for flag in flags if f'"{flag}"' not in source] == [], words


@pytest.mark.parametrize("page", [*PAGES, *REPORTS], ids=name_of)
def test_links_lead_somewhere(page):
    of_docs.test_links_lead_somewhere(page)


def test_the_indexes_name_every_page_and_report():
    index = (BENCHMARKS / "accuracy/README.md").read_text()
    pages = (BENCHMARKS / "accuracy/docs").glob("*.md")
    assert [page.name for page in [*pages, *REPORTS] if f"{page.parent.name}/{page.name})" not in index] == []
    configs = {path.stem for path in (BENCHMARKS / "accuracy/configs").glob("*.yaml")}
    assert configs <= {report.stem for report in REPORTS}
