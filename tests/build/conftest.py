"""Programs that check the drivers without torch."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def run_compiler(command: list[str | Path], folder: Path) -> None:
    finished = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr


@pytest.fixture(scope="session")
def compile_program(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """compile_program(name, *flags): tests/build/<name>.cpp with csrc/cpu, compiled once for the flags."""
    folders: dict[tuple[str, ...], Path] = {}

    def compile_one(name: str, *flags: str) -> Path:
        compiler = shutil.which("g++") or shutil.which("clang++")
        if compiler is None:
            pytest.skip("neither g++ nor clang++ is installed")
        options = ["-std=c++17", "-ffp-contract=off", *flags, "-pthread", f"-I{ROOT / 'csrc/cpu'}"]
        if flags not in folders:
            folder = tmp_path_factory.mktemp("drivers")
            run_compiler([compiler, *options, "-c", *(ROOT / "csrc/cpu").rglob("*.cpp")], folder)
            folders[flags] = folder
        folder = folders[flags]
        source, program = ROOT / "tests" / "build" / f"{name}.cpp", folder / name
        run_compiler([compiler, *options, source, *folder.glob("*.o"), "-o", program], folder)
        return program

    return compile_one
