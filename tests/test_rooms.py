"""Inside ddi and ddi_kernels: each room imports only rooms below it, nothing is imported in a circle.

Reads import statements wherever they stand, inside functions and under TYPE_CHECKING too, so nothing has to
be importable. test_imports.py has the rules between the packages, build/test_floors.py those of csrc.
"""

from __future__ import annotations

import ast
import graphlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_imports import FOLDERS, imported, package_of

# From the ground up: a room is a folder, or a file at the top, and imports rooms that stand before it.
FLOORS = {
    "ddi": """
        version files eval_mode
        gating gates cost nn blocks convert backbones checkpoint
        data budgets freeze runtime evaluate
        measure train grid report cli
    """.split(),
    "ddi_kernels": """
        geometry checks backends registry engine
        prices collect_env tiles ops triton
    """.split(),
}
# What need not be installed or is not there everywhere: imported where it is used, or for types alone.
OPTIONAL = {"fcntl", "matplotlib", "onnx", "onnxruntime", "onnxscript", "sklearn", "torch.utils.tensorboard"}
# Each verb loads only what it runs; help and errors come without training, plotting and data sets.
LAZY = FOLDERS["ddi"] / "cli"

Graph = dict[str, set[str]]


def modules(package: str) -> dict[str, Path]:
    """Every file of a package by its module's name."""
    names = {}
    for path in sorted(FOLDERS[package].rglob("*.py")):
        stem = "" if path.stem == "__init__" else f".{path.stem}"
        names[f"{package_of(path)}{stem}"] = path
    return names


def graph(sources: dict[str, tuple[str, str]]) -> Graph:
    """What each module imports of the others.

    Args:
        sources: for each module its package and its text.
    """
    arrows: Graph = {}
    for module, (package, text) in sources.items():
        arrows[module] = set()
        for name in imported(ast.parse(text), package):
            # A name is a module's own or, where there is no such module, a member of one.
            target = name if name in sources else name.rpartition(".")[0]
            if target in sources and target != module:
                arrows[module].add(target)
    return arrows


def circle(arrows: Graph) -> list[str]:
    """One circle of modules, empty where there is none."""
    try:
        graphlib.TopologicalSorter(arrows).prepare()
    except graphlib.CycleError as error:
        return error.args[1]
    return []


def upward(arrows: Graph, floors: list[str]) -> list[str]:
    """Imports of a room that does not stand below."""
    found = []
    for module, targets in arrows.items():
        room = room_of(module)
        for target in sorted(targets):
            other = room_of(target)
            # The faces of the packages, and `python -m`, stand on the roof.
            below = not room or (other in floors and floors.index(other) <= floors.index(room))
            if not below:
                found.append(f"{module} -> {target}")
    return found


def room_of(module: str) -> str:
    """The folder, or the file at the top; empty for what stands on the roof."""
    name = (module.split(".") + [""])[1]
    return "" if name == "__main__" else name


def nested_imports(tree: ast.AST, package: str) -> Iterator[str]:
    """Names imported anywhere but at the top of a file or in its try statements."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Try):
            yield from nested_imports(node, package)
        elif not isinstance(node, ast.Import | ast.ImportFrom):
            yield from imported(node, package)


def package_graph(package: str) -> Graph:
    return graph({name: (package_of(path), path.read_text()) for name, path in modules(package).items()})


@pytest.mark.parametrize("package", FLOORS)
def test_every_room_has_a_floor(package):
    rooms = {room_of(name) for name in modules(package)} - {""}
    assert rooms == set(FLOORS[package])
    assert len(FLOORS[package]) == len(rooms)


@pytest.mark.parametrize("package", FLOORS)
def test_rooms_import_only_downward(package):
    assert upward(package_graph(package), FLOORS[package]) == []


@pytest.mark.parametrize("package", FLOORS)
def test_nothing_is_imported_in_a_circle(package):
    assert circle(package_graph(package)) == []


@pytest.mark.parametrize("package", FLOORS)
def test_imports_stand_at_the_top(package):
    found = []
    for path in modules(package).values():
        if not path.is_relative_to(LAZY):
            nested = nested_imports(ast.parse(path.read_text()), package_of(path))
            found += [f"{path}: {name}" for name in nested if not optional(name)]
    assert found == []


def optional(name: str) -> bool:
    return any(f"{name}.".startswith(f"{package}.") for package in OPTIONAL)


def test_few_files_lie_at_the_top_of_ddi():
    top = {path.stem for path in FOLDERS["ddi"].glob("*.py")}
    assert top == {"__init__", "__main__", "checkpoint", "eval_mode", "files", "version"}


@pytest.mark.parametrize("package", FLOORS)
def test_faces_define_nothing(package):
    allowed = ast.Import | ast.ImportFrom | ast.Expr | ast.Assign  # a docstring; __all__
    for path in FOLDERS[package].rglob("__init__.py"):
        for node in ast.parse(path.read_text()).body:
            assert isinstance(node, allowed), path
            if isinstance(node, ast.Assign):
                assert ast.unparse(node.targets[0]) == "__all__", path


def test_the_rules_find_what_breaks_them():
    lazy = "def f():\n    from ..high import g"
    typed = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from ..high.g import G"
    below = "from ..low import f\nfrom ..low.f import x\nimport p.low.f"
    for text in (lazy, typed):
        arrows = graph({"p.low": ("p.low", ""), "p.low.f": ("p.low", text)} | {
            name: ("p.high", below) for name in ("p.high", "p.high.g")
        })  # fmt: skip
        assert len(upward(arrows, ["low", "high"])) == 1
        assert upward(arrows, ["high", "low"]) != []
        assert circle(arrows) != []
        assert list(nested_imports(ast.parse(text), "p.low")) != []
    face = "from .high import g"
    straight = graph({"p.low.f": ("p.low", ""), "p.high.g": ("p.high", below), "p": ("p", face)})
    assert straight == {"p.low.f": set(), "p.high.g": {"p.low.f"}, "p": {"p.high.g"}}
    assert upward(straight, ["low", "high"]) == [] and circle(straight) == []
    assert upward(straight, ["high"]) == ["p.high.g -> p.low.f"]  # a room without a floor
    tried = "import a\ntry:\n    import b\nexcept ImportError:\n    c = 1"
    assert list(nested_imports(ast.parse(tried), "p")) == []
    assert optional("onnx") and optional("onnx.helper") and not optional("onnxtools")
