"""The drivers without torch, on every instruction set that this machine has."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

# AMX is left to test_emulated.py, which does not need a processor that has it.
LEVELS = ("scalar", "avx2", "avx512", "avx512_vnni", "avx512_bf16")


@pytest.mark.parametrize("isa", LEVELS)
def test_no_driver_allocates(isa: str, compile_program: Callable[..., Path]) -> None:
    program = compile_program("allocation_check", "-O2")
    finished = subprocess.run([program, isa], capture_output=True, text=True)
    if finished.returncode == 2:
        pytest.skip(f"this machine has no {isa}")
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert f"ran {isa}: counting works, 0 failed" in finished.stdout
