"""What README, CHANGELOG, CONTRIBUTING and docs name is there: paths of the project, names of packages."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
# Up to where a pattern begins: csrc/cpu/<op>.cpp is looked for as csrc/cpu.
PATH = re.compile(r"(?<![\w./-])(?:csrc|ddi_kernels|python/ddi|bench|tests|examples|docs)/[\w./*<>{}-]+")
NAME = re.compile(r"`((?:ddi|ddi_kernels)(?:\.\w+)+)")
WRITTEN = {"ddi_kernels/tables/tiles"}  # by `make tune-gpu`, which has not run yet
SUFFIXES = {".py", ".md", ".h", ".json", ".jsonl", ".toml", ".cpp"}


def named_paths(text: str) -> list[str]:
    """The paths that a text names, each cut off where a placeholder begins."""
    found = []
    for match in PATH.findall(text):
        whole = re.split(r"[<*{]", match)[0]
        found.append(whole.rpartition("/")[0] if whole != match else whole.rstrip("."))
    return found


def is_there(name: str) -> bool:
    """Whether a dotted name is a module, or an attribute of one or of a class in it."""
    parts = name.split(".")
    for i in range(len(parts), 0, -1):
        try:
            value = importlib.import_module(".".join(parts[:i]))
        except ModuleNotFoundError:
            continue
        for part in parts[i:]:
            if not hasattr(value, part):
                return False
            value = getattr(value, part)
        return True
    return False


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_paths_are_there(page):
    paths = set(named_paths(page.read_text())) - WRITTEN
    assert [path for path in sorted(paths) if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_names_are_there(page):
    names = {name for name in NAME.findall(page.read_text()) if Path(name).suffix not in SUFFIXES}
    assert [name for name in sorted(names) if not is_there(name)] == []


def test_something_is_looked_for():
    assert sum(len(named_paths(page.read_text())) for page in PAGES) > 30
    text = "see `csrc/cpu/<op>.cpp`, docs/none.md, tests/test_docs.py. And bench/results/*.jsonl"
    assert named_paths(text) == ["csrc/cpu", "docs/none.md", "tests/test_docs.py", "bench/results"]
    assert is_there("ddi.gates.Gate.decide") and is_there("ddi_kernels.prices.energy.EnergyModel.loads")
    assert not is_there("ddi.gates.Gat") and not is_there("ddi_kernels.energy")
