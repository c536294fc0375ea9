"""`make test-all` runs every test file there is."""

from __future__ import annotations

from collections import Counter
from fnmatch import fnmatch
from pathlib import Path

import pytest

TESTS = Path(__file__).parent


def left_out(folders: list[str], patterns: list[str]) -> list[str]:
    return [name for name in folders if any(fnmatch(name, pattern) for pattern in patterns)]


def test_no_folder_is_passed_over(pytestconfig: pytest.Config) -> None:
    folders = sorted({path.parent.name for path in TESTS.rglob("test_*.py")})
    assert left_out(["build"], ["*.egg", "build"]) == ["build"]  # as pytest does, left alone
    assert left_out(folders, pytestconfig.getini("norecursedirs")) == []


def test_every_file_has_a_name_of_its_own() -> None:
    # pytest imports them by their basenames, and of two with the same one finds the first.
    names = Counter(path.name for path in TESTS.rglob("*.py") if path.name != "conftest.py")
    assert [name for name, count in names.items() if count > 1] == []
