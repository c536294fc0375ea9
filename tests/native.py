"""Which compiled kernels a test may ask for, by instruction set."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from ddi_kernels import backends

ON_ARM = platform.machine() in ("aarch64", "arm64", "armv7l")
ISAS = ("scalar", "neon") if ON_ARM else ("scalar", "avx2", "avx512")
# All names, each level with what those before it have.
LEVELS = {
    "aarch64": ("scalar", "neon", "neon_dot", "neon_bf16"),
    "arm64": ("scalar", "neon", "neon_dot", "neon_bf16"),
    "armv7l": ("scalar", "neon"),
}.get(platform.machine(), ("scalar", "avx2", "avx512", "avx512_vnni", "avx512_bf16", "avx512_amx"))


def require_native() -> None:
    """Skips a test that needs the compiled library, saying why it is missing."""
    ok, reason = backends.native_available()
    if not ok:
        pytest.skip(reason)


@contextmanager
def forced_isa(name: str) -> Iterator[None]:
    """The compiled kernels of one instruction set; skips the test where the machine has it not."""
    require_native()
    try:
        backends.native_library.set_cpu_isa(name)
    except ValueError as missing:
        pytest.skip(f"{name}: {missing}")
    try:
        yield
    finally:
        backends.native_library.set_cpu_isa(None)
