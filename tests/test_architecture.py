"""The floors of the package: a file imports only from floors below its own room, or from its room; no circle."""

import ast
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "ilrec_trl"
# From the ground up. A room may use every room of the floors below it, and none beside it.
FLOORS = [
    {"_version"},
    {"data"},
    {"model"},
    {"items"},
    {"evaluation", "rewards", "semantic_ids"},
    {"trainer", "report"},
    {"pipeline"},
    {"cli"},
]
FLOOR_OF = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
FILES = {
    path.relative_to(PACKAGE).with_suffix("").as_posix().replace("/", "."): path for path in PACKAGE.rglob("*.py")
}
MODULES = sorted(name for name in FILES if name != "__init__")
MOST_LINES, MOST_FILES, LINES_OF_A_FILE = 16_500, 95, 600


def imported_modules(source, module):
    """
    Modules of the package that a source imports anywhere in it: in functions and for type checkers, too.

    >>> sorted(imported_modules("from ..items.item_trie import ItemTrie\\nfrom . import losses", "trainer.ilrec_loss"))
    ['items.item_trie', 'trainer.losses']
    """
    package = module.split(".")[:-1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
            yield from (".".join(name[1:]) for name in names if name[0] == "ilrec_trl")
        elif isinstance(node, ast.ImportFrom):
            parts = node.module.split(".") if node.module else []
            if node.level:
                parts = package[: len(package) - node.level + 1] + parts
            elif parts[0] != "ilrec_trl":
                continue
            else:
                parts = parts[1:]
            for alias in node.names:
                inner = ".".join([*parts, alias.name])
                yield inner if inner in FILES else ".".join(parts) or "__init__"


IMPORTS = {module: set(imported_modules(FILES[module].read_text(), module)) for module in MODULES}


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_down(module):
    room = module.split(".")[0]
    assert room in FLOOR_OF, f"{room} stands on no floor"
    for imported in IMPORTS[module]:
        other = imported.split(".")[0]
        assert other == room or FLOOR_OF[other] < FLOOR_OF[room], f"{module} must not import {imported}"


def circles(imports):
    """
    Modules that lead back to themselves.

    >>> circles({"a": {"b"}, "b": {"c"}, "c": {"b"}})
    ['b', 'c']
    """
    reached = {module: set(imported) for module, imported in imports.items()}
    for _ in imports:
        for module, seen in reached.items():
            reached[module] = seen.union(*(reached.get(other, set()) for other in seen))
    return [module for module, seen in reached.items() if module in seen]


def test_no_circle():
    assert circles(IMPORTS) == []


def test_the_library_does_not_know_the_laboratory():
    assert [name for name, path in FILES.items() if "benchmarks" in path.read_text().replace("benchmarks/", "")] == []


def test_sizes():
    lines = {name: len(path.read_text().splitlines()) for name, path in FILES.items()}
    assert len(lines) <= MOST_FILES
    assert sum(lines.values()) <= MOST_LINES
    assert {name: number for name, number in lines.items() if number > LINES_OF_A_FILE} == {}


@pytest.mark.parametrize("module", MODULES)
def test_names_say_what_a_file_holds(module):
    assert module.split(".")[-1] not in {"utils", "common", "base", "helpers"}
