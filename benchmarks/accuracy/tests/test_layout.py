"""The files of the laboratory: no circle of imports, none too long."""

import ast
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


def test_no_circle():
    assert circles({name: imported & FILES.keys() for name, imported in IMPORTS.items()}) == []


def test_sizes():
    assert [name for name, path in FILES.items() if len(path.read_text().splitlines()) > LINES_OF_A_FILE] == []
