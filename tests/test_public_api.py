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


def test_all_is_sorted_and_complete():
    # As ruff sorts: constants, classes, functions
    kind = {name: 0 if name.isupper() else 1 if name[0].isupper() else 2 for name in ilrec_trl.__all__}
    assert ilrec_trl.__all__ == sorted(ilrec_trl.__all__, key=lambda name: (kind[name], name))
    assert set(ilrec_trl.__all__) == set(ilrec_trl._MODULES) | {"__version__"}
    assert dir(ilrec_trl) == sorted(ilrec_trl.__all__)


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


@pytest.mark.parametrize("name", ilrec_trl.__all__)
def test_every_public_name_is_documented(name):
    if name == "__version__":
        return
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    assert any(re.search(rf"\b{name}\b", page.read_text()) for page in pages), f"{name} is in no page of docs/"
    assert importlib.import_module("ilrec_trl" + ilrec_trl._MODULES[name]).__doc__ or getattr(ilrec_trl, name).__doc__
