"""Who may import whom: bench, tests, examples -> ddi -> ddi_kernels -> compiled modules.

Reads import statements and dotted names only, so nothing has to be importable.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = {
    "bench": ROOT / "bench",
    "tests": ROOT / "tests",
    "examples": ROOT / "examples",
    "ddi": ROOT / "python" / "ddi",
    "ddi_kernels": ROOT / "ddi_kernels",
}
# What each may import of ours, beside itself.
ALLOWED = {
    "bench": {"ddi", "ddi_kernels"},
    "tests": {"ddi", "ddi_kernels", "bench", "examples"},
    "examples": {"ddi", "ddi_kernels"},
    "ddi": {"ddi_kernels"},
    "ddi_kernels": set(),
}


def imported(tree: ast.AST, package: str) -> Iterator[str]:
    """Full names of the modules and members that a file imports; `package` is the one it lies in."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")
            base = parts[: len(parts) - node.level + 1] if node.level else []
            module = ".".join([*base, *filter(None, [node.module])])
            yield from (f"{module}.{alias.name}" for alias in node.names)


def package_of(path: Path) -> str:
    """The package that a file of ddi or ddi_kernels lies in."""
    return ".".join(path.relative_to(ROOT).parent.parts).removeprefix("python.")


def dotted_names(tree: ast.Module) -> Iterator[str]:
    """Every `a.b.c` that a file names."""
    yield from (ast.unparse(n) for n in ast.walk(tree) if isinstance(n, ast.Attribute))


def files(folder: str) -> list[tuple[Path, ast.Module]]:
    return [
        (path.relative_to(ROOT), ast.parse(path.read_text()))
        for path in sorted(FOLDERS[folder].rglob("*.py"))
    ]


def offences(folder: str, is_wrong: Callable[[str], bool]) -> list[str]:
    return [
        f"{path}: {name}"
        for path, tree in files(folder)
        for name in imported(tree, package_of(ROOT / path))
        if is_wrong(name)
    ]


@pytest.mark.parametrize("folder", FOLDERS)
def test_nothing_imports_upward(folder):
    forbidden = FOLDERS.keys() - ALLOWED[folder] - {folder}
    assert offences(folder, lambda name: name.split(".")[0] in forbidden) == []


def test_the_packages_are_found():
    assert files("ddi") and files("ddi_kernels") and files("tests")


def public_names() -> set[str]:
    """`ddi_kernels.x` and `ddi_kernels.module.x` for what an `__all__` there lists."""
    names = {"ddi_kernels"}
    for path, tree in files("ddi_kernels"):
        module = ".".join(path.with_suffix("").parts).removesuffix(".__init__")
        for node in tree.body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
                names |= {module, *(f"{module}.{name}" for name in ast.literal_eval(node.value))}
    return names


def test_ddi_uses_ddi_kernels_through_public_names_only():
    public = public_names()
    assert {"ddi_kernels.gated_conv2d", "ddi_kernels.collect_env.format_env"} <= public
    assert "ddi_kernels.ops.gated_conv2d.reference" not in public

    def is_private(name: str) -> bool:
        return name.split(".")[0] == "ddi_kernels" and name not in public

    assert offences("ddi", is_private) == []
    for path, tree in files("ddi"):
        assert not [n for n in dotted_names(tree) if is_private(n)], path


def test_ddi_names_no_torch_operator():
    for path, tree in files("ddi"):
        assert not [n for n in dotted_names(tree) if n.startswith("torch.ops.ddi")], path


def test_ddi_kernels_holds_no_modules_of_networks():
    def is_network_code(name: str) -> bool:
        return name.startswith("torch.nn") and not name.startswith("torch.nn.functional")

    assert offences("ddi_kernels", is_network_code) == []
    for path, tree in files("ddi_kernels"):
        assert not [n for n in dotted_names(tree) if n.startswith("torch.nn.Module")], path


def test_the_rules_see_all_forms_of_import():
    text = "import a.b\nfrom c import d as e\nfrom . import f\nfrom .g import h\ntorch.ops.ddi.k()"
    tree = ast.parse(text)
    assert list(imported(tree, "p")) == ["a.b", "c.d", "p.f", "p.g.h"]
    assert list(imported(ast.parse("from ..a import b\nfrom .c import d"), "p.q")) == ["p.a.b", "p.q.c.d"]
    assert "torch.ops.ddi" in list(dotted_names(tree))
