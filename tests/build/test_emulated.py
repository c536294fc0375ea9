"""x86 processors that this machine is not: one binary must run on all and pick what each of them has.

Older ones are emulated by qemu; AMX, where it is missing, by the program itself. ARM: test_arm.py.
"""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64"), reason="compiles for this machine, which is no x86"
)

# Features that qemu does not emulate and warns of are switched off.
PROCESSORS = {
    "Nehalem": ("Nehalem", "scalar"),
    "SandyBridge": ("SandyBridge,-x2apic,-tsc-deadline", "scalar"),  # AVX, but no AVX2
    "Haswell": ("Haswell-noTSX,-pcid,-x2apic,-tsc-deadline,-invpcid", "avx2"),
}
LEVELS = ("scalar", "avx2", "avx512", "avx512_vnni", "avx512_bf16", "avx512_amx")

SCRIPT = """
import torch
torch.set_num_threads(1)
from ddi_kernels import _C, gated_conv2d
torch.manual_seed(0)
x, w = torch.randn(2, 5, 9, 9), torch.randn(20, 5, 3, 3)
m, o = torch.rand(2, 5) < 0.5, torch.rand(2, 20) < 0.5
y = gated_conv2d(x, w, in_mask=m, out_mask=o, padding=1)
x = x.double() * m[:, :, None, None]
e = torch.nn.functional.conv2d(x, w.double(), padding=1) * o[:, :, None, None]
print(_C.cpu_isa(), bool((y - e).abs().max() < 1e-5))
"""


def emulate(processor: str, *command: str | Path) -> subprocess.CompletedProcess[str]:
    emulator = shutil.which("qemu-x86_64")
    if emulator is None:
        pytest.skip("qemu-x86_64 is not installed (package qemu-user)")
    return subprocess.run(
        [emulator, "-cpu", PROCESSORS[processor][0], *map(str, command)],
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def driver_check(compile_program: Callable[..., Path]) -> Path:
    return compile_program("driver_check", "-O2")


@pytest.mark.parametrize("processor", PROCESSORS)
def test_drivers_on_an_old_processor(processor: str, driver_check: Path) -> None:
    detected = PROCESSORS[processor][1]
    for isa in LEVELS[: LEVELS.index(detected) + 1]:
        finished = emulate(processor, driver_check, isa, "60")
        assert finished.returncode == 0, finished.stdout + finished.stderr
        assert f"detected {detected}, ran {isa}: 150 cases, 0 failed" in finished.stdout


def test_levels_above_the_processor_are_refused(driver_check: Path) -> None:
    assert emulate("Nehalem", driver_check, "avx2", "1").returncode == 2


def test_drivers_on_amx(driver_check: Path) -> None:
    finished = subprocess.run([driver_check, "avx512_amx", "200"], capture_output=True, text=True)
    if finished.returncode == 2:
        pytest.skip("neither AMX nor AVX512-BF16, which its emulation needs")
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert "ran avx512_amx: 500 cases, 0 failed" in finished.stdout
    on_amx = "detected avx512_amx" in finished.stdout
    assert on_amx or re.search(r"emulated \d{5,} tile products", finished.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("processor", ["Nehalem", "Haswell"])
def test_package_on_an_old_processor(processor: str) -> None:
    pytest.importorskip("ddi_kernels._C", reason="ddi_kernels._C is not built")
    python = Path(sys.executable)
    finished = emulate(processor, python, "-c", SCRIPT)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.split() == [PROCESSORS[processor][1], "True"]


@pytest.mark.slow
@pytest.mark.parametrize("sanitizer", ["address,undefined", "thread"])
@pytest.mark.parametrize("name", ["driver_check", "elementwise_check", "allocation_check", "gate_check"])
def test_drivers_under_a_sanitizer(name: str, sanitizer: str, compile_program: Callable[..., Path]) -> None:
    flags = ("-O1", "-g", f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all")
    program = compile_program(name, *flags)
    cases = ["200"] if name in ("driver_check", "elementwise_check") else []
    for isa in LEVELS:
        finished = subprocess.run([program, isa, *cases], capture_output=True, text=True)
        if finished.returncode == 2:  # more than this machine has
            continue
        assert finished.returncode == 0, finished.stdout + finished.stderr
        assert " 0 failed" in finished.stdout
