"""CUDA kernels on the CPU (emulate.h): fragments, copies, barriers, addresses; no GPU and no nvcc."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from ddi_kernels import pack_stage

HERE = Path(__file__).parent
SOURCE = HERE.parents[1] / "csrc" / "cuda"
# What must not go unnoticed: a wait left out, a border not cleared, weights read where they do not lie.
BROKEN = {
    "weights are not waited for": ("      weights.wait(1);\n", ""),
    "threads do not wait for the interior": (
        "      sync_threads();\n      if (b + 1 < d.blocks) weights.start(2 * b + 2, 0);\n",
        "      if (b + 1 < d.blocks) weights.start(2 * b + 2, 0);\n",
    ),
    "a copy starts too early": (
        "    } else if (b + 1 < d.blocks) {\n      sync_threads();\n",
        "    } else if (b + 1 < d.blocks) {\n",
    ),
    "the border holds junk": ("X[i] = Y[i] = 0;", "X[i] = 0;"),
    "rows are not turned": ("(chunk ^ turn)", "(chunk ^ (turn & 0))"),
    "means are those of the first block": ("if (changed) pool", "if (b == 0) pool"),
}


def compiled(folder: Path, headers: Path = SOURCE) -> Path:
    if shutil.which("g++") is None:
        pytest.skip("g++ is not installed")
    program = folder / "check"
    command = ["g++", "-std=c++17", "-O2", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]
    command += [f"-I{headers}", f"-I{HERE}", HERE / "resident_stage_check.cpp", "-o", program]
    subprocess.run(command, check=True)
    return program


@pytest.fixture(scope="module")
def check(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled(tmp_path_factory.mktemp("emulated"))


def test_resident_stage(check):
    run = subprocess.run([check], capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stdout
    lines = run.stdout.splitlines()
    assert len(lines) == 8 and all(line.endswith(" 0 bank conflicts") for line in lines)
    assert {line.split(":")[0] for line in lines} >= {"64 x 8 x 8 gated", "16 x 32 x 32 gated"}


def test_weights_lie_where_the_kernel_reads_them(check):
    printed = subprocess.run([check, "elements"], capture_output=True, text=True, check=True).stdout
    for c in (16, 32, 64):
        weight = torch.arange(c * c, dtype=torch.float32).reshape(1, c, c, 1, 1).expand(1, c, c, 3, 3)
        packed = pack_stage(weight, -weight)
        assert torch.equal(packed[:, 0], -packed[:, 1])
        first = packed[0, 0, 4].flatten()
        for line in printed.splitlines():
            channels, row, chunk, at = map(int, line.split())
            if channels == c:
                assert first[at : at + 8].tolist() == [row * c + chunk * 8 + i for i in range(8)]


QUICK = {"a copy starts too early", "rows are not turned"}


@pytest.mark.parametrize(
    "fault", [pytest.param(f, marks=() if f in QUICK else pytest.mark.slow) for f in BROKEN]
)
def test_a_broken_kernel_is_found(fault, tmp_path):
    before, after = BROKEN[fault]
    text = (SOURCE / "resident_stage.cuh").read_text()
    assert text.count(before) == 1
    for name in ("warp.cuh", "resident_stage.cuh"):
        (tmp_path / name).write_text((SOURCE / name).read_text().replace(before, after))
    run = subprocess.run([compiled(tmp_path, tmp_path)], capture_output=True, text=True, timeout=300)
    assert run.returncode == 1, run.stdout
