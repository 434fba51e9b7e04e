"""House rules that hold for the package as a whole."""

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import ilrec_trl


ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "ilrec_trl"
# A module imports only from rooms at or before its own place in this list.
ROOMS = ["_version", "data", "items", "rewards", "trainer", "evaluation", "report", "pipeline", "cli", "__init__"]
MODULES = sorted(PACKAGE.rglob("*.py"))


def room_of(parts):
    """Room of a module, given the parts of its path or dotted name below the package."""
    return Path(parts[0]).stem if parts else "__init__"


def imported_modules(path):
    """Dotted names, as tuples below `ilrec_trl`, that a source file imports anywhere in it, functions included."""
    package = path.relative_to(PACKAGE).parent.parts
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [tuple(alias.name.split(".")) for alias in node.names]
            yield from (name[1:] for name in names if name[0] == "ilrec_trl")
        elif isinstance(node, ast.ImportFrom):
            module = tuple(node.module.split(".")) if node.module else ()
            if node.level:
                parent = package[: len(package) - node.level + 1]
                # `from . import name`: the names are modules.
                yield from [(*parent, *module)] if module else [(*parent, alias.name) for alias in node.names]
            elif module[0] == "ilrec_trl":
                yield from [module[1:]] if module[1:] else [(alias.name,) for alias in node.names]


def test_all_is_sorted_and_complete():
    assert ilrec_trl.__all__ == sorted(ilrec_trl.__all__)
    assert set(ilrec_trl.__all__) == set(ilrec_trl._MODULES) | {"__version__"}
    assert dir(ilrec_trl) == ilrec_trl.__all__


@pytest.mark.parametrize("name", ilrec_trl.__all__)
def test_every_public_name_is_there(name):
    value = getattr(ilrec_trl, name)
    if name != "__version__":
        assert value.__module__ == "ilrec_trl" + ilrec_trl._MODULES[name]


def test_the_names_for_type_checkers_are_the_lazy_ones():
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    names = {alias.name: f".{node.module}" for node in block.body for alias in node.names}
    assert names == ilrec_trl._MODULES


def test_an_unknown_name_is_refused():
    with pytest.raises(AttributeError, match="no attribute 'ILRecTrainr'"):
        _ = ilrec_trl.ILRecTrainr


@pytest.mark.parametrize("statement", ["import ilrec_trl", "import ilrec_trl; dir(ilrec_trl)", "import ilrec_trl.cli"])
def test_import_is_light(statement):
    script = f"{statement}; import sys; print(sorted({{'torch', 'transformers', 'trl', 'numpy'}} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_one_way(path):
    own = ROOMS.index(room_of(path.relative_to(PACKAGE).parts))
    for name in imported_modules(path):
        room = room_of(name)
        if room in ("__version__", "__init__"):  # `from ilrec_trl import __version__`
            room = "_version"
        assert room in ROOMS, f"{path.name} imports the unknown room {room}"
        assert ROOMS.index(room) <= own, f"{path.name} is in {ROOMS[own]} and must not import from {room}"


@pytest.mark.parametrize("name", ilrec_trl.__all__)
def test_every_public_name_is_documented(name):
    if name == "__version__":
        return
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    assert any(re.search(rf"\b{name}\b", page.read_text()) for page in pages), f"{name} is in no page of docs/"
    assert importlib.import_module("ilrec_trl" + ilrec_trl._MODULES[name]).__doc__ or getattr(ilrec_trl, name).__doc__


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_modules_stay_small_and_are_named_for_what_they_hold(path):
    assert len(path.read_text().splitlines()) <= 300
    assert path.stem not in {"utils", "common", "base", "helpers"}
