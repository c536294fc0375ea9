"""The drivers without torch, on every instruction set that this machine has."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

# AMX is left to test_emulated.py, which does not need a processor that has it.
LEVELS = ("scalar", "avx2", "avx512", "avx512_vnni", "avx512_bf16")


def run(program: Path, isa: str, *arguments: str) -> str:
    finished = subprocess.run([program, isa, *arguments], capture_output=True, text=True)
    if finished.returncode == 2:
        pytest.skip(f"this machine has no {isa}")
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert f"ran {isa}: " in finished.stdout
    return finished.stdout


@pytest.mark.parametrize("isa", LEVELS)
def test_no_driver_allocates(isa: str, compile_program: Callable[..., Path]) -> None:
    assert "counting works, 0 failed" in run(compile_program("allocation_check", "-O2"), isa)


@pytest.mark.parametrize("isa", LEVELS)
def test_the_functions_of_gates(isa: str, compile_program: Callable[..., Path]) -> None:
    assert "95197 values, 0 failed" in run(compile_program("gate_check", "-O2"), isa)


@pytest.mark.parametrize("isa", LEVELS[:3])  # those above have the kernels of avx512
def test_what_stands_between_convolutions(isa: str, compile_program: Callable[..., Path]) -> None:
    assert " 0 failed" in run(compile_program("elementwise_check", "-O2"), isa, "300")
