"""What this device is called, by which tables of measurements are told apart."""

from __future__ import annotations

import platform
from pathlib import Path

from ddi_kernels import backends

__all__ = ["current_isa", "device_name"]


def current_isa() -> str:
    """The instruction set that the compiled kernels use here; "none" without them.

    "avx512" for all its levels, which differ in half precision and int8 only: tables hold float32.
    """
    if backends.native_library is None:
        return "none"
    return str(backends.native_library.cpu_isa()).partition("_")[0]


def device_name() -> str:
    """The processor's name, as tables carry it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
