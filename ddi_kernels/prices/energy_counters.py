"""Measured joules, of the counters that processors and GPUs keep: RAPL and NVML.

RAPL counts what each processor package takes (Intel's and AMD's; /sys/class/powercap), NVML what a GPU does
(Volta and newer). Both count everything that runs there, idle time included.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch

__all__ = ["MeasuredJoules", "counter_availability", "measure_joules"]

_POWERCAP = "/sys/class/powercap"
_NVML = "libnvidia-ml.so.1"


class _Unavailable(RuntimeError):
    """Why there are no counters of a kind."""


class _Counter(Protocol):
    name: str

    def read(self) -> int:
        """Microjoules since some moment."""

    def between(self, before: int, after: int) -> int:
        """Microjoules from one reading to a later one."""


@dataclass(frozen=True)
class _RaplPackage:
    name: str
    path: Path
    span: int  # the counter begins anew behind it

    def read(self) -> int:
        return int((self.path / "energy_uj").read_text())

    def between(self, before: int, after: int) -> int:
        return after - before if after >= before else after + self.span - before


def _rapl_packages(powercap: str | Path) -> list[_RaplPackage]:
    """The packages' counters; none of their parts and of "psys", which would count twice."""
    found = []
    for path in sorted(Path(powercap).glob("intel-rapl:*")):
        try:
            name = (path / "name").read_text().strip()
            if not name.startswith("package"):
                continue
            found.append(_RaplPackage(name, path, int((path / "max_energy_range_uj").read_text())))
            found[-1].read()
        except PermissionError as error:
            raise _Unavailable(
                f"{error.filename} may not be read; as root: chmod a+r {powercap}/intel-rapl:*/energy_uj"
            ) from error
        except (OSError, ValueError) as error:
            raise _Unavailable(f"{path} cannot be read ({error})") from error
    if not found:
        raise _Unavailable(f"no {powercap}/intel-rapl:* of a processor package")
    return found


@dataclass(frozen=True)
class _Gpu:
    name: str
    library: Any
    handle: ctypes.c_void_p

    def read(self) -> int:
        millijoules = ctypes.c_ulonglong()
        code = self.library.nvmlDeviceGetTotalEnergyConsumption(self.handle, ctypes.byref(millijoules))
        _check(self.library, code, f"the energy counter of {self.name}")
        return 1000 * millijoules.value

    def between(self, before: int, after: int) -> int:
        return after - before


def _check(library: Any, code: int, what: str) -> None:
    if code:
        library.nvmlErrorString.restype = ctypes.c_char_p
        raise _Unavailable(f"{what}: {library.nvmlErrorString(code).decode()} (NVML error {code})")


def _gpus(nvml: str) -> list[_Gpu]:
    """The counters of all GPUs that the driver knows."""
    try:
        library = ctypes.CDLL(nvml)
        # The end of the process shuts it down. An old driver has no counter.
        initialise, _ = library.nvmlInit_v2, library.nvmlDeviceGetTotalEnergyConsumption
    except (OSError, AttributeError) as error:
        raise _Unavailable(f"{nvml}, which comes with NVIDIA's driver, cannot be used ({error})") from error
    _check(library, initialise(), nvml)
    count = ctypes.c_uint()
    _check(library, library.nvmlDeviceGetCount_v2(ctypes.byref(count)), nvml)
    found = []
    for index in range(count.value):
        handle = ctypes.c_void_p()
        _check(library, library.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(handle)), f"gpu {index}")
        found.append(_Gpu(f"gpu {index}", library, handle))
        found[-1].read()
    if not found:
        raise _Unavailable(f"{nvml} knows no GPU")
    return found


def _find(powercap: str | Path, nvml: str) -> tuple[list[_Counter], dict[str, str]]:
    """All counters, and for each kind which it has or why none."""
    counters: list[_Counter] = []
    said = {}
    for kind, find in (("rapl", lambda: _rapl_packages(powercap)), ("nvml", lambda: _gpus(nvml))):
        try:
            found: Any = find()
            counters += found
            said[kind] = "available: " + ", ".join(counter.name for counter in found)
        except _Unavailable as reason:
            said[kind] = str(reason)
    return counters, said


def counter_availability(powercap: str | Path = _POWERCAP, nvml: str = _NVML) -> dict[str, str]:
    """For "rapl" and "nvml" what they count here, or why they cannot.

    Example:
        >>> from ddi_kernels.prices.energy_counters import counter_availability
        >>> counter_availability("/nowhere")["rapl"]
        'no /nowhere/intel-rapl:* of a processor package'
    """
    return _find(powercap, nvml)[1]


@dataclass
class MeasuredJoules:
    """What a `with measure_joules()` block took; filled at its end.

    Attributes:
        by_counter: joules, e.g. of "package-0" and "gpu 0".
        seconds: that it lasted.
    """

    by_counter: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def joules(self) -> float:
        """Of all counters together.

        Raises:
            RuntimeError: the block has not ended.
        """
        if not self.by_counter:
            raise RuntimeError("measure_joules: nothing is measured before the end of the with block")
        return sum(self.by_counter.values())


@contextmanager
def measure_joules(powercap: str | Path = _POWERCAP, nvml: str = _NVML) -> Iterator[MeasuredJoules]:
    """Measures the joules that this machine's processors and NVIDIA GPUs take inside a `with` block.

    They count whatever runs, other processes too, and are renewed every millisecond (RAPL) to 100 ms (NVML):
    have the block last for seconds, on a quiet machine, and take off what as long a pause takes. Work on the
    current GPU is waited for. A block must end before a RAPL counter has gone around twice, which at full
    load takes many minutes.

    Args:
        powercap: folder of the RAPL counters.
        nvml: name of NVIDIA's management library.

    Yields:
        MeasuredJoules.

    Raises:
        RuntimeError: there is no counter that can be read; says what was looked for.

    Example:
        >>> with ddi.measure_joules() as measured:  # doctest: +SKIP
        ...     for _ in range(1000):
        ...         _ = model(images)
        >>> measured.joules / 1000  # doctest: +SKIP
        0.21
    """
    counters, said = _find(powercap, nvml)
    if not counters:
        reasons = "; ".join(f"{kind}: {reason}" for kind, reason in said.items())
        raise RuntimeError(
            f"measure_joules: no energy counter can be read here. {reasons}. ddi.energy estimates joules "
            "from a model instead"
        )
    measured = MeasuredJoules()
    _wait_for_gpu()
    start, before = time.perf_counter(), [counter.read() for counter in counters]
    yield measured
    _wait_for_gpu()
    after = [counter.read() for counter in counters]
    measured.seconds = time.perf_counter() - start
    for counter, first, last in zip(counters, before, after, strict=True):
        measured.by_counter[counter.name] = 1e-6 * counter.between(first, last)


def _wait_for_gpu() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
