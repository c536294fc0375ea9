"""The engine as `make engine` builds it, without Python and torch, and programs that use it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from built import ROOT, Build, run
from frozen_models import seeded

import ddi


@pytest.fixture(scope="session")
def engine_build() -> Build:
    """Up to date with the sources: only what has changed since the last time is compiled."""
    for program in ("make", "g++"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    jobs = f"-j{len(os.sched_getaffinity(0))}"
    made = run("make", jobs, "engine", "CXX=g++", cwd=ROOT)
    assert made.returncode == 0, made.stdout + made.stderr
    return Build(ROOT / "build" / "engine" / "g++")


@pytest.fixture(scope="session")
def compile_c(engine_build: Build, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """compile_c(name): tests/engine/<name>.c, linked to libddi.so."""

    def compile_one(name: str) -> Path:
        compiler = shutil.which("gcc")
        if compiler is None:
            pytest.skip("gcc is not installed")
        program = tmp_path_factory.mktemp("c") / name
        flags = ["-std=c99", "-O1", "-Wall", "-Wextra", "-Werror", f"-I{ROOT / 'csrc/engine'}", "-pthread"]
        link = [f"-L{engine_build.folder}", "-lddi", f"-Wl,-rpath,{engine_build.folder}"]
        compiled = run(compiler, *flags, ROOT / "tests" / "engine" / f"{name}.c", "-o", program, *link)
        assert compiled.returncode == 0, compiled.stderr
        return program

    return compile_one


@pytest.fixture(scope="session")
def large_plan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A gated network with enough work for more than one thread, for images of 3 x 32 x 32."""
    path = tmp_path_factory.mktemp("plan") / "large.ddi"
    torch.manual_seed(0)
    model = seeded(ddi.create_model("cifar_resnet8", gates=ddi.DDIConfig(group_size=4), num_classes=3))
    ddi.freeze(model, torch.zeros(1, 3, 32, 32), path)
    return path
