"""Programs that check the drivers without torch."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CPU_SOURCES = sorted((ROOT / "csrc" / "cpu").rglob("*.cpp"))
CORES = len(os.sched_getaffinity(0))


def run_compiler(command: list[str | Path], folder: Path) -> None:
    finished = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stdout + finished.stderr


def objects_of_the_engine(compiler: str) -> list[Path]:
    """csrc/cpu as `make engine` compiles it, which other tests ask for, too: with -O2."""
    run_compiler(["make", f"-j{CORES}", "engine", f"CXX={compiler}"], ROOT)
    folder = ROOT / "build" / "engine" / compiler
    return [folder / source.relative_to(ROOT / "csrc").with_suffix(".o") for source in CPU_SOURCES]


def compile_objects(command: list[str | Path], folder: Path) -> list[Path]:
    def compile_one(source: Path) -> Path:
        compiled = folder / f"{source.stem}.o"
        run_compiler([*command, "-c", source, "-o", compiled], folder)
        return compiled

    with ThreadPoolExecutor(CORES) as pool:
        return list(pool.map(compile_one, CPU_SOURCES))


@pytest.fixture(scope="session")
def compile_program(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """compile_program(name, *flags): tests/build/<name>.cpp with csrc/cpu, once for the same flags."""
    objects: dict[tuple[str, ...], list[Path]] = {}

    @cache
    def compile_one(name: str, *flags: str) -> Path:
        compiler = next((name for name in ("g++", "clang++") if shutil.which(name)), None)
        if compiler is None:
            pytest.skip("neither g++ nor clang++ is installed")
        options = ["-std=c++17", "-ffp-contract=off", *flags, "-pthread", f"-I{ROOT / 'csrc/cpu'}"]
        folder = tmp_path_factory.mktemp("drivers")
        if flags not in objects:
            shared = flags == ("-O2",) and shutil.which("make") is not None
            command = [compiler, *options]
            objects[flags] = objects_of_the_engine(compiler) if shared else compile_objects(command, folder)
        source, program = ROOT / "tests" / "build" / f"{name}.cpp", folder / name
        run_compiler([compiler, *options, source, *objects[flags], "-o", program], folder)
        return program

    return compile_one
