"""The environment, collected and as text."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
from typing import Any

import torch

from ddi_kernels import backends
from ddi_kernels.prices.device import device_name
from ddi_kernels.prices.energy_counters import counter_availability

__all__ = ["collect_env", "format_env"]

_PACKAGES = ("ddi-kernels", "numpy", "triton", "onnxruntime", "openvino", "scikit-learn")
_VARIABLES = (
    "DDI_BACKEND",
    "DDI_BUILD",
    "DDI_CPU_ISA",
    "DDI_LATENCY_TABLE",
    "DDI_REQUIRE_C",
    "OMP_NUM_THREADS",
    "TRITON_INTERPRET",
)


def collect_env() -> dict[str, Any]:
    """The environment as a dictionary that json can write.

    Returns:
        Sections "system", "torch", "kernels", "energy" (counters of joules), "packages" and "variables",
        each a dictionary of names to text, numbers or None (absent).

    Example:
        >>> from ddi_kernels import collect_env
        >>> sorted(collect_env())
        ['energy', 'kernels', 'packages', 'system', 'torch', 'variables']
    """
    return {
        "system": {
            "platform": platform.platform(),
            "python": platform.python_version(),
            "cpu": device_name(),
            "cpus": os.cpu_count(),
            "compiler": _compiler(),
        },
        "torch": {
            "version": torch.__version__,
            "threads": torch.get_num_threads(),
            "cuda": torch.version.cuda,
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
        "kernels": _kernels(),
        "energy": counter_availability(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "variables": {name: os.environ.get(name) for name in _VARIABLES},
    }


def _kernels() -> dict[str, Any]:
    native = backends.native_library
    section: dict[str, Any] = {
        "cpu_isa_detected": native.detected_cpu_isa() if native else None,
        "cpu_isa_used": native.cpu_isa() if native else None,
        "default_backend": _default_backend(),
    }
    if section["cpu_isa_detected"] == "avx512_amx":
        section["amx"] = "here, but never run on such a processor; DDI_CPU_ISA=avx512_amx asks for it"
    for name, available in backends.AVAILABILITY.items():
        ok, reason = available()
        section[name] = "available" if ok else reason
    section["build"] = backends.build_info() or None
    return section


def _default_backend() -> str:
    try:
        return backends.current_backend()
    except ValueError as wrong_variable:
        return str(wrong_variable)


def _compiler() -> str | None:
    """First line of `--version` of the C++ compiler that a build would take."""
    for name in (os.environ.get("CXX"), "c++", "g++", "clang++"):
        path = shutil.which(name) if name else None
        if path:
            try:
                run = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=9)
            except (OSError, subprocess.SubprocessError):
                continue
            return run.stdout.partition("\n")[0] or None
    return None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def format_env(env: dict[str, Any]) -> str:
    """The dictionary of `collect_env` as aligned text, a section after the other.

    Example:
        >>> from ddi_kernels.collect_env import format_env
        >>> print(format_env({"torch": {"version": "2.13.0", "cuda": None}}))
        torch
          version  2.13.0
          cuda     -
    """
    lines = []
    for section, entries in env.items():
        lines.append(section)
        width = max(len(name) for name in entries)
        lines += [f"  {name:<{width}}  {'-' if value is None else value}" for name, value in entries.items()]
    return "\n".join(lines)
