"""Runs the Triton kernels on the CPU, in Triton's interpreter, which needs a process of its own.

Whether kernels are interpreted is decided when they are defined, so the `interpreted_*.py` files
beside this one are run by a pytest with TRITON_INTERPRET=1.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

import ddi_kernels  # noqa: F401, registers the operators

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
FILES = sorted(HERE.glob("interpreted_*.py"))
LONGER = [file for file in FILES if "mark.slow" in file.read_text()]


def interpret(file: Path, marked: str) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join([str(ROOT), *sys.path])
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    options = ["-q", "-p", "no:cacheprovider", "--tb=short", "-m", marked]
    command = [sys.executable, "-m", "pytest", *options, file]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def runs(request) -> Iterator[dict[Path, Future]]:
    """Of the files asked for, a core each: the interpreter takes one."""
    pytest.importorskip("triton", reason="triton is not installed")
    asked = [
        i.callspec.params["file"]
        for i in request.session.items
        if getattr(i, "originalname", "") == "test_interpreted"
    ]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield {file: pool.submit(interpret, file, "not slow") for file in asked}


@pytest.mark.parametrize("file", FILES, ids=lambda path: path.stem)
def test_interpreted(file: Path, runs: dict[Path, Future]) -> None:
    run = runs[file].result()
    assert run.returncode == 0, run.stdout[-20000:] + run.stderr[-5000:]
    summary = run.stdout.splitlines()[-1]
    assert re.search(r"\b[1-9]\d* passed", summary) and "skipped" not in summary, summary


@pytest.mark.slow
@pytest.mark.parametrize("file", LONGER, ids=lambda path: path.stem)
def test_more_is_interpreted(file: Path) -> None:
    pytest.importorskip("triton", reason="triton is not installed")
    run = interpret(file, "slow")
    assert run.returncode == 0, run.stdout[-20000:] + run.stderr[-5000:]


@pytest.mark.parametrize("file", sorted((ROOT / "ddi_kernels" / "triton").glob("*.py")), ids=lambda p: p.stem)
def test_launchers_never_wait_for_the_device(file: Path) -> None:
    waiting = {"item", "tolist", "cpu", "numpy", "nonzero", "masked_select", "synchronize"}
    names = {node.attr for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Attribute)}
    assert not names & waiting


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="CPU tensors are interpreted")
def test_a_cpu_call_is_refused_and_shapes_are_computed() -> None:
    def call(device: str) -> torch.Tensor:
        x, weight = torch.empty(2, 16, 8, 8, device=device), torch.empty(32, 16, 3, 3, device=device)
        geometry = [2, 2, 1, 1, 1, 1, 1, 16, 16, 0]
        return torch.ops.ddi_triton.gated_conv2d(x, weight, *[None] * 6, geometry)

    with pytest.raises(NotImplementedError, match="ddi_triton::gated_conv2d.*'CPU' backend"):
        call("cpu")
    assert call("meta").shape == (2, 32, 4, 4)
