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
# What must not go unnoticed: a wait left out, a border not cleared, operands read where they do not lie.
BROKEN = {
    "resident_stage": {
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
        "the entry's input stays on the border": ("  clear_border<S>(room.X);\n", ""),
        "its border is not cleared": ("  clear_border<In>(room.X);\n", ""),
        "its columns are not sorted": ("(col & 1) * (P / 2) + col / 2", "col"),
        "its input is overwritten too early": (
            "                 kAllOpen);\n  sync_threads();\n",
            "                 kAllOpen);\n",
        ),
        "rows are not turned": ("(chunk ^ turn)", "(chunk ^ (turn & 0))"),
        "means are those of the first block": ("if (changed) pool", "if (b == 0) pool"),
    },
    "gated_conv2d": {
        "operands are not waited for": ("wait_pieces<kConvStages - 2>", "wait_pieces<kConvStages - 1>"),
        "a stage is refilled too early": (
            "      sync_threads();\n      // Into the stage",
            "      // Into the stage",
        ),
        "sums are staged too early": ("  wait_pieces<0>();\n  sync_threads();\n", "  wait_pieces<0>();\n"),
        "sums are read too early": ("  sums.stage(staged);\n  sync_threads();\n", "  sums.stage(staged);\n"),
        "rows are not turned": ("(piece ^ (row >> 1))", "(piece ^ 0)"),
        "closed columns are added up": ("if (first_col + at + e >= out_count) v = 0.f;", ""),
        "windows leave the image": ("static_cast<unsigned>(u) < static_cast<unsigned>(s.W)", "u < s.W"),
    },
}
QUICK = {"a copy starts too early", "rows are not turned"}


def compiled(kernel: str, folder: Path, headers: Path = SOURCE) -> Path:
    if shutil.which("g++") is None:
        pytest.skip("g++ is not installed")
    program = folder / kernel
    command = ["g++", "-std=c++17", "-O2", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]
    command += [f"-I{headers}", f"-I{HERE}", HERE / f"{kernel}_check.cpp", "-o", program]
    subprocess.run(command, check=True)
    return program


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("emulated")


def lines_of(program: Path) -> list[str]:
    run = subprocess.run([program], capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stdout
    lines = run.stdout.splitlines()
    assert all(line.endswith(" 0 bank conflicts") for line in lines)
    return lines


def test_gated_conv2d(folder):
    lines = lines_of(compiled("gated_conv2d", folder))
    assert len(lines) == 12
    assert {line.split(":")[0] for line in lines} >= {"128 pixels", "odd channels", "float16", "float32, odd"}


def test_resident_stage(folder):
    check = compiled("resident_stage", folder)
    lines = lines_of(check)
    assert len(lines) == 12
    assert {line.split(":")[0] for line in lines} >= {"64 x 8 x 8 entered", "16 x 32 x 32 gated"}
    weights_lie_where_the_kernel_reads_them(check)


def weights_lie_where_the_kernel_reads_them(check: Path) -> None:
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


@pytest.mark.parametrize(
    "kernel, fault",
    [
        pytest.param(kernel, fault, marks=() if fault in QUICK else pytest.mark.slow)
        for kernel, faults in BROKEN.items()
        for fault in faults
    ],
)
def test_a_broken_kernel_is_found(kernel, fault, tmp_path):
    before, after = BROKEN[kernel][fault]
    headers = {header.name: header.read_text() for header in SOURCE.glob("*.cuh")}
    assert sum(text.count(before) for text in headers.values()) == 1
    for name, text in headers.items():
        (tmp_path / name).write_text(text.replace(before, after))
    program = compiled(kernel, tmp_path, tmp_path)
    run = subprocess.run([program], capture_output=True, text=True, timeout=300)
    assert run.returncode == 1, run.stdout
