"""The site that `make docs` builds: its links lead somewhere, and it asks no other host for anything."""

import doctest
import importlib.util
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest


ROOT = Path(__file__).parents[2]
pytest.importorskip("mkdocs")


class _Page(HTMLParser):
    """Ids of a page, where its links lead, and what a browser loads to show it."""

    def __init__(self, file):
        super().__init__()
        self.ids, self.links, self.loaded = set(), [], []
        self.feed(file.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.ids.add(values.get("id"))
        if tag == "a":
            self.links.append(values.get("href") or "")
        elif values.get("rel") not in ("canonical", "next", "prev"):
            self.loaded += [values[name] for name in ("src", "href") if values.get(name)]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site):
    # 404.html names pages from the root of wherever the site is put.
    return {file: _Page(file) for file in site.rglob("*.html") if file.name != "404.html"}


def test_links_lead_somewhere(pages):
    broken = []
    for file, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            target = (file.parent / unquote(parts.path)).resolve() if parts.path else file
            if parts.scheme or (target.is_dir() and (target / "index.html").is_file()):
                continue
            known = target in pages and (not parts.fragment or unquote(parts.fragment) in pages[target].ids)
            if not known and not (target.is_file() and target not in pages):
                broken.append(f"{file.name}: {link}")
    assert broken == []


def test_nothing_is_loaded_from_elsewhere(site, pages):
    assert [address for page in pages.values() for address in page.loaded if urlsplit(address).netloc] == []
    styles = [file.read_text(encoding="utf-8") for file in site.rglob("*.css")]
    assert [found for text in styles for found in re.findall(r"(?:url\(|@import)[^;)]*//[^;)]*", text)] == []


def test_pictures_are_there(pages):
    missing = [f"{file.name}: {name}" for file, page in pages.items() for name in page.loaded
               if not (file.parent / urlsplit(name).path).exists()]  # fmt: skip
    assert missing == []


def test_every_public_name_has_its_place(site, pages):
    names = re.findall(r"^::: (\S+)$", (ROOT / "docs/api.md").read_text(), flags=re.MULTILINE)
    assert set(names) <= pages[site / "api.html"].ids


def test_docstrings_are_translated():
    spec = importlib.util.spec_from_file_location("mkdocs_hooks", ROOT / "docs/mkdocs_hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert doctest.testmod(module).failed == 0
