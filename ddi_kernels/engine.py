"""Loads and runs frozen plans: a whole dynamic network in one call, with no Python and no torch inside.

`ddi.freeze` writes a plan; csrc/engine runs it. Images are read where they lie, through DLPack, whatever
their strides, and the GIL is released meanwhile.
"""

from __future__ import annotations

import importlib
import json
import math
import os
import sys
import threading
from dataclasses import dataclass
from numbers import Integral, Real
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.dlpack import to_dlpack

from ddi_kernels.checks import argument_error

__all__ = ["Engine", "Report", "load"]


_WAY_BACK_MS = 0.02  # of a hundred calls two take longer from the end of a run to their own end


@dataclass(frozen=True)
class Report:
    """What one call did.

    Args:
        exit: the deepest classifier that answered; the last one is the whole network's.
        exits: of each sample the classifier that answered; they differ under a confidence alone.
        macs: of each sample, gates and classifiers included.
        weight_bytes, activation_bytes: of each sample, that its multiply-adds need (docs/engine.md).
        joules: of each sample by the call's energy, None without it.
        decisions: uint8[N, decision_bytes], the bits of every gate, 0 for those that were not reached.
        step_ms: milliseconds of each step of the network, by name, of those that were run.
    """

    exit: int
    exits: list[int]
    macs: list[int]
    weight_bytes: list[int]
    activation_bytes: list[int]
    joules: list[float] | None
    decisions: Tensor
    step_ms: dict[str, float]


def _capsule(array: Any, name: str) -> Any:
    """An array as DLPack has it."""
    if isinstance(array, Tensor):  # three times as fast as the method, which every call would pay
        return to_dlpack(array.detach() if array.requires_grad else array)
    if not hasattr(array, "__dlpack__"):
        raise argument_error("engine", name, type(array).__name__, "a torch.Tensor or numpy.ndarray")
    return array.__dlpack__()


def _whole(name: str, value: Any) -> int:
    """As the module takes it, negative for None."""
    if value is None:
        return -1
    if not (isinstance(value, Integral) and 0 <= int(value) < 2**63):
        raise argument_error("engine", name, repr(value), "an int from 0 to 2**63 - 1, or None")
    return int(value)


def _real(name: str, value: Any, most: float, expected: str) -> float:
    """As the module takes it, negative for None."""
    if value is None:
        return -1.0
    if not (isinstance(value, Real) and 0 <= float(value) <= most):
        raise argument_error("engine", name, repr(value), f"{expected}, or None")
    return float(value)


def _coefficients(energy: Any, dtype: str) -> tuple[float, ...]:
    """As the module takes them, negative for None."""
    if energy is None:
        return (-1.0, -1.0, -1.0)
    values = energy.coefficients(dtype) if hasattr(energy, "coefficients") else energy
    try:
        found = tuple(float(value) for value in values)
    except (TypeError, ValueError):
        found = ()
    if len(found) != 3 or not all(0 <= value < math.inf for value in found):
        expected = (
            "three finite numbers from 0 on, joules per MAC, weight byte and activation byte, or a model"
        )
        remedy = "A model has coefficients(dtype), which returns them." if values is energy else ""
        raise argument_error("engine", "energy", repr(values), expected, remedy)
    return found


def _left(deadline_ms: float, begin: float) -> float:
    """What is left of a call's deadline, less its way back to the caller; none (negative) stays none."""
    if deadline_ms < 0:
        return deadline_ms
    return max(0.0, deadline_ms - (perf_counter() - begin) * 1e3 - _WAY_BACK_MS)


def _module() -> Any:
    try:
        return importlib.import_module("ddi_kernels._engine")
    except ImportError as error:
        raise RuntimeError(
            f"engine: ddi_kernels._engine is not built ({error}); `ddi env` says why"
        ) from error


def load(path: str | os.PathLike[str], max_batch: int = 1, threads: int = 1) -> Engine:
    """A frozen network, ready to run.

    Args:
        path: of a plan that `ddi.freeze` wrote.
        max_batch: images that a call may have at most; memory is taken for as many.
        threads: that a call uses.

    Raises:
        ValueError: the file is no plan, is damaged, or is of another version; or a number is out of range.
        OSError: there is no such file.
        RuntimeError: the engine is not built.

    Example:
        >>> engine = ddi_kernels.engine.load("resnet.ddi", max_batch=8)  # doctest: +SKIP
        >>> logits = engine(images)  # doctest: +SKIP
    """
    with open(path, "rb"):  # the usual exceptions of files that cannot be read
        pass
    return Engine(_module().Network.load(os.fspath(path)), max_batch, threads)


class Engine:
    """A loaded network. Calls from several threads at a time each get memory of their own.

    Attributes:
        input_shape: (channels, height, width) of an image.
        dtype: "fp32", "bf16" or "int8", as the network was frozen.
        classes: logits of a sample.
        gates: of each gated block its name, whether it has a layer bit (`keep`), the bits of its masks
            (`groups`) and the channels a bit stands for; their bits follow one another in a decision.
        decision_bytes: bits of all gates.
        exits: names of the classifiers, the whole network's last.
        exit_worst_work: of each exit, (MACs, weight bytes, activation bytes) of a sample, everything open.
        exit_worst_macs: the MACs of these.
        dense_macs: of the network without its gates.
    """

    def __init__(self, network: Any, max_batch: int, threads: int) -> None:
        self._network = network
        self._size = (max_batch, threads)
        self._sessions = [_module().Session(network, max_batch, threads)]
        self._lock = threading.Lock()
        metadata = json.loads(network.metadata)
        self.input_shape: tuple[int, int, int] = network.input_shape
        self.dtype: str = network.dtype
        self.classes: int = network.classes
        self.decision_bytes: int = network.decision_bytes
        self.gates: list[dict[str, Any]] = metadata["gates"]
        self.exits: list[str] = metadata["exits"]
        self.exit_worst_work: list[tuple[int, int, int]] = network.exit_worst_work
        self.exit_worst_macs: list[int] = [macs for macs, _, _ in self.exit_worst_work]
        self.dense_macs: int = metadata["dense_macs"]

    def __call__(
        self,
        images: Any,
        *,
        max_macs: int | None = None,
        max_joules: float | None = None,
        energy: Any = None,
        deadline_ms: float | None = None,
        confidence: float | None = None,
        decisions: Any = None,
        report: bool = False,
    ) -> Any:
        """Runs the network.

        Args:
            images: float32[N, C, H, W] on the CPU, torch.Tensor or numpy.ndarray, of any strides.
            max_macs: multiply-adds of a sample, never exceeded: all samples halt at the last exit that fits.
            max_joules: of a sample by `energy`, never exceeded, in the same way.
            energy: joules per (MAC, byte of weights, byte of activations), or an object whose
                coefficients(Engine.dtype) returns them.
            deadline_ms: milliseconds of the call, Python's part of it included, but for a report; checked
                before every step, and held as well as the machine allows. Limits may be combined.
            confidence: 0 to 1; each sample halts at the first exit where its largest probability is at least
                as large, and the call goes on with the others. Exits that are asked in vain are paid for.
            decisions: bool or uint8[N, decision_bytes] in place of the gates' own bits; the gates run all
                the same.
            report: also return what the call did.

        Returns:
            Logits float32[N, classes], an array of the images' kind; with `report`, (logits, Report).

        Raises:
            ValueError: an argument has the wrong shape, type or size, or no exit fits into max_macs or
                max_joules.

        Example:
            >>> logits = engine(images, max_joules=2e-3, energy=(3e-12, 2e-11, 2e-11))  # doctest: +SKIP
            >>> logits, report = engine(images, confidence=0.9, report=True)  # doctest: +SKIP
        """
        begin = perf_counter()
        x = _capsule(images, "images")
        shape = (len(images) if images.ndim else 0, self.classes)
        is_torch = isinstance(images, Tensor)
        logits: Any = torch.empty(shape, dtype=torch.float32) if is_torch else np.empty(shape, np.float32)
        bits = None if decisions is None else _capsule(decisions, "decisions")
        options = self._options(max_macs, max_joules, energy, deadline_ms, confidence)
        session = self._take()
        try:
            *counted, deadline, sure = options
            session.run(x, _capsule(logits, "logits"), *counted, _left(deadline, begin), sure, bits, report)
            return (logits, self._report(session, shape[0])) if report else logits
        finally:
            self._give(session)

    def _options(self, macs: Any, joules: Any, energy: Any, ms: Any, confidence: Any) -> tuple[Any, ...]:
        if joules is not None and energy is None:
            raise argument_error("engine", "energy", "None", "a model, which max_joules needs")
        return (
            _whole("max_macs", macs),
            _real("max_joules", joules, sys.float_info.max, "finite joules from 0 on"),
            _coefficients(energy, self.dtype),
            _real("deadline_ms", ms, math.inf, "milliseconds from 0 on"),
            _real("confidence", confidence, 1, "a probability from 0 to 1"),
        )

    def _take(self) -> Any:
        with self._lock:
            if self._sessions:
                return self._sessions.pop()
        return _module().Session(self._network, *self._size)

    def _give(self, session: Any) -> None:
        with self._lock:
            self._sessions.append(session)

    def _report(self, session: Any, count: int) -> Report:
        bits = np.frombuffer(session.decisions(count), np.uint8).reshape(count, self.decision_bytes)
        steps = zip(self._network.steps, session.step_ms, strict=True)
        return Report(
            session.exit,
            session.exits(count),
            session.macs(count),
            session.weight_bytes(count),
            session.activation_bytes(count),
            session.joules(count),
            torch.from_numpy(bits.copy()),
            {name: ms for name, ms in steps if ms >= 0},
        )

    @property
    def memory_bytes(self) -> int:
        """Of the values and the scratch memory of one session."""
        return self._sessions[0].memory_bytes

    def __repr__(self) -> str:
        return f"Engine(input_shape={self.input_shape}, classes={self.classes}, exits={len(self.exits)})"
