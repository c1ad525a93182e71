"""Imports go one way: no module leads back to itself, and none reaches up the table in CONTRIBUTING.md.

And a class name says which class: no two modules define the same one.
"""

import ast
import re
from collections import defaultdict
from functools import cache
from graphlib import CycleError, TopologicalSorter
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "evit_nas"
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in PACKAGE.rglob("*.py")
}


def only_for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def nodes(tree: ast.AST):
    """All of a module's, but for what is there for type checkers alone; functions import too."""
    for child in ast.iter_child_nodes(tree):
        if not only_for_types(child):
            yield child
            yield from nodes(child)


@cache
def imports(name: str) -> frozenset[str]:
    """The modules of the package that a module imports, itself left out."""
    found = set()
    for node in nodes(ast.parse(MODULES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("evit_nas"):
            found |= {
                full if (full := f"{node.module}.{alias.name}") in MODULES else node.module for alias in node.names
            }
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.startswith("evit_nas")}
    return frozenset(found & MODULES.keys() - {name})


def circle(graph: dict[str, set[str] | frozenset[str]]) -> list[str]:
    """Modules of which each imports the one before, the first one last again; empty if there are none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def test_no_module_leads_back_to_itself():
    assert circle({name: imports(name) for name in MODULES}) == []


def test_a_circle_is_found_out():
    assert set(circle({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}})) == {"a", "b", "c"}


@cache
def layers() -> list[set[str]]:
    """The places of each line of the table, the highest first: folders and files of the package."""
    table: list[str] = re.findall(r"^\| (`[^|]*) \|", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.M)
    return [set(re.findall(r"`([\w/]+(?:\.py)?)`", line)) for line in table]


@cache
def layer_of(name: str) -> int:
    path = MODULES[name].relative_to(PACKAGE)
    place = path.name if len(path.parts) == 1 else f"{path.parts[0]}/"
    return next(number for number, places in enumerate(layers()) if place in places)


@pytest.mark.parametrize("name", sorted(MODULES.keys() - {"evit_nas", "evit_nas.__main__"}))
def test_every_module_has_its_line_and_reaches_no_higher_one(name):
    own = layer_of(name)
    assert not {other for other in imports(name) if other != "evit_nas" and layer_of(other) < own}


def test_no_class_name_is_defined_twice():
    places = defaultdict(list)
    for name, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                places[node.name].append(name)
    assert {name: where for name, where in places.items() if len(where) > 1} == {}


@pytest.mark.parametrize(
    "name", [name for name, path in MODULES.items() if "\n__all__ = " in path.read_text(encoding="utf-8")]
)
def test_what_a_module_says_that_it_has_is_there(name):
    """A name that is imported for type checkers alone is none that can be imported."""
    module = import_module(name)
    assert [word for word in module.__all__ if not hasattr(module, word)] == []
