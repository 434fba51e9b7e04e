"""The files of the laboratory: what they import is there, no circle of imports, none too long."""

import ast
import importlib.util
from pathlib import Path

from tests.test_architecture import LINES_OF_A_FILE, circles


ROOT = Path(__file__).parents[3]
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): path
    for path in (ROOT / "benchmarks").rglob("*.py")
    if "tests" not in path.parts
}


def imported_names(path):
    """Modules that a file imports anywhere in it: in functions and for type checkers, too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


IMPORTS = {name: set(imported_names(path)) for name, path in FILES.items()}


OF_ANOTHER_ENVIRONMENT = {"implicit", "pytorch_lightning", "rectools"}


def test_what_is_imported_is_there():
    packages = {other.split(".")[0] for imported in IMPORTS.values() for other in imported} - OF_ANOTHER_ENVIRONMENT
    assert [name for name in sorted(packages) if importlib.util.find_spec(name) is None] == []


def test_scripts_find_the_repository():
    """`python benchmarks/...` puts the script's own folder on the path, not the root that imports count from."""
    scripts = {name for name, path in FILES.items() if f"python {path.relative_to(ROOT)}" in path.read_text()}
    missing = [name for name in scripts if "sys.path.insert(0, " not in FILES[name].read_text()]
    assert sorted(missing) == []


def test_no_circle():
    assert circles({name: imported & FILES.keys() for name, imported in IMPORTS.items()}) == []


def test_sizes():
    assert [name for name, path in FILES.items() if len(path.read_text().splitlines()) > LINES_OF_A_FILE] == []
