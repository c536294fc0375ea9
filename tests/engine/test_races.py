"""Sessions of one network at the same time, under ThreadSanitizer."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from built import ROOT, run
from tiny_plans import CORPUS, PLANS


@pytest.mark.slow
def test_sessions_do_not_race(large_plan: Path, tmp_path: Path) -> None:
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("neither g++ nor clang++ is installed")
    sources = [path for path in (ROOT / "csrc/engine").rglob("*.cpp") if path.parent.name != "cli"]
    sources += [*(ROOT / "csrc/cpu").rglob("*.cpp"), ROOT / "tests/engine/thread_check.cpp"]
    flags = ["-std=c++17", "-O1", "-g", "-ffp-contract=off", "-fsanitize=thread", "-pthread"]
    folders = [f"-I{ROOT / 'csrc/cpu'}", f"-I{ROOT / 'csrc/engine'}"]
    program = tmp_path / "thread_check"
    compiled = run(compiler, *flags, *folders, *sources, "-o", program)
    assert compiled.returncode == 0, compiled.stderr
    plans = [large_plan, *(CORPUS / f"{name}.ddi" for name in PLANS)]
    finished = run(program, *plans)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert finished.stdout.splitlines() == [f"{plan}: 0 wrong of 40" for plan in plans]
