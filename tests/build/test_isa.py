"""The instruction set: detection, the cap of DDI_CPU_ISA, the override for tests."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

_C = pytest.importorskip("ddi_kernels._C", reason="ddi_kernels._C is not built")

X86 = ("scalar", "avx2", "avx512", "avx512_vnni", "avx512_bf16", "avx512_amx")
LEVELS = {
    "aarch64": ("scalar", "neon", "neon_dot", "neon_bf16"),
    "armv7l": ("scalar", "neon"),
}.get(platform.machine(), X86)
NAMES = ", ".join(LEVELS[:-1]) + " or " + LEVELS[-1]
AVAILABLE = LEVELS[: LEVELS.index(_C.detected_cpu_isa()) + 1]
HIGHEST_DEFAULT = "avx512_bf16" if LEVELS is X86 else LEVELS[-1]
DEFAULT = min(_C.detected_cpu_isa(), HIGHEST_DEFAULT, key=LEVELS.index)


@pytest.fixture(autouse=True)
def default_isa():
    yield
    _C.set_cpu_isa(None)


def in_new_process(isa: str, *options: str) -> subprocess.CompletedProcess[str]:
    code = "from ddi_kernels import _C; print(_C.cpu_isa())"
    return subprocess.run(
        [sys.executable, *options, "-c", code],
        capture_output=True,
        text=True,
        env=os.environ | {"DDI_CPU_ISA": isa},
    )


@pytest.mark.parametrize("isa", AVAILABLE)
def test_override(isa: str) -> None:
    assert _C.set_cpu_isa(isa) == isa
    assert _C.cpu_isa() == isa


def test_none_returns_to_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DDI_CPU_ISA", "scalar")
    assert _C.set_cpu_isa(None) == "scalar"
    monkeypatch.delenv("DDI_CPU_ISA")
    assert _C.set_cpu_isa(None) == DEFAULT


# A process imports torch, seconds: the ends quickly, what lies between in test-all.
@pytest.mark.parametrize(
    "isa", [pytest.param(n, marks=() if n in (LEVELS[0], LEVELS[-1]) else pytest.mark.slow) for n in LEVELS]
)
def test_environment_caps_but_never_raises_the_level(isa: str) -> None:
    expected = min(isa, _C.detected_cpu_isa(), key=LEVELS.index)
    assert in_new_process(isa).stdout.strip() == expected


def test_unknown_environment_value_is_ignored_with_a_warning() -> None:
    finished = in_new_process("sse9")
    assert finished.stdout.strip() == DEFAULT
    assert f"DDI_CPU_ISA='sse9' is ignored: expected {NAMES}; using {DEFAULT}" in finished.stderr


def test_amx_is_taken_only_if_asked_for() -> None:
    assert in_new_process("").stdout.strip() == DEFAULT
    asked = in_new_process(LEVELS[-1]).stdout.strip()
    assert asked == _C.detected_cpu_isa()


@pytest.mark.parametrize("name", ["sse9", "", "AVX2"])
def test_unknown_names_are_errors(name: str) -> None:
    before = _C.cpu_isa()
    with pytest.raises(ValueError, match=f"expected {NAMES}, or None"):
        _C.set_cpu_isa(name)
    assert _C.cpu_isa() == before


def test_names_of_another_type_are_errors() -> None:
    with pytest.raises(TypeError):
        _C.set_cpu_isa(2)
