"""Loads and runs frozen plans: a whole dynamic network in one call, with no Python and no torch inside.

`ddi.freeze` writes a plan; csrc/engine runs it. Images are read where they lie, through DLPack, whatever
their strides, and the GIL is released meanwhile.
"""

from __future__ import annotations

import importlib
import json
import os
import threading
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.dlpack import to_dlpack

from ddi_kernels.checks import argument_error

__all__ = ["Engine", "Report", "load"]


@dataclass(frozen=True)
class Report:
    """What one call did.

    Args:
        exit: the classifier that answered; the last one is the whole network's.
        macs: of each sample, gates and classifier included.
        decisions: uint8[N, decision_bytes], the bits of every gate, 0 for those that were not reached.
        step_ms: milliseconds of each step of the network, by name, of those that were run.
    """

    exit: int
    macs: list[int]
    decisions: Tensor
    step_ms: dict[str, float]


def _capsule(array: Any, name: str) -> Any:
    """An array as DLPack has it."""
    if isinstance(array, Tensor):  # three times as fast as the method, which every call would pay
        return to_dlpack(array.detach() if array.requires_grad else array)
    if not hasattr(array, "__dlpack__"):
        raise argument_error("engine", name, type(array).__name__, "a torch.Tensor or numpy.ndarray")
    return array.__dlpack__()


def _budgets(max_macs: Any, deadline_ms: Any) -> tuple[int, float]:
    """Both as the module takes them, negative for none."""
    if max_macs is not None and not (isinstance(max_macs, Integral) and 0 <= int(max_macs) < 2**63):
        raise argument_error("engine", "max_macs", repr(max_macs), "an int from 0 to 2**63 - 1, or None")
    if deadline_ms is not None and not (isinstance(deadline_ms, Real) and float(deadline_ms) >= 0):
        raise argument_error("engine", "deadline_ms", repr(deadline_ms), "milliseconds from 0 on, or None")
    return -1 if max_macs is None else int(max_macs), -1.0 if deadline_ms is None else float(deadline_ms)


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
        classes: logits of a sample.
        gates: of each gated block its name, whether it has a layer bit (`keep`), the bits of its masks
            (`groups`) and the channels a bit stands for; their bits follow one another in a decision.
        decision_bytes: bits of all gates.
        exits: names of the classifiers, the whole network's last.
        exit_worst_macs: of each exit, the MACs of a sample with everything open.
        dense_macs: of the network without its gates.
    """

    def __init__(self, network: Any, max_batch: int, threads: int) -> None:
        self._network = network
        self._size = (max_batch, threads)
        self._sessions = [_module().Session(network, max_batch, threads)]
        self._lock = threading.Lock()
        metadata = json.loads(network.metadata)
        self.input_shape: tuple[int, int, int] = network.input_shape
        self.classes: int = network.classes
        self.decision_bytes: int = network.decision_bytes
        self.gates: list[dict[str, Any]] = metadata["gates"]
        self.exits: list[str] = metadata["exits"]
        self.exit_worst_macs: list[int] = network.exit_worst_macs
        self.dense_macs: int = metadata["dense_macs"]

    def __call__(
        self,
        images: Any,
        *,
        max_macs: int | None = None,
        deadline_ms: float | None = None,
        decisions: Any = None,
        report: bool = False,
    ) -> Any:
        """Runs the network.

        Args:
            images: float32[N, C, H, W] on the CPU, torch.Tensor or numpy.ndarray, of any strides.
            max_macs: multiply-adds of a sample, never exceeded: all samples halt at the last exit that fits.
            deadline_ms: milliseconds of the call; checked before every step, and held as well as the machine
                allows.
            decisions: bool or uint8[N, decision_bytes] in place of the gates' own bits; the gates run all
                the same.
            report: also return what the call did.

        Returns:
            Logits float32[N, classes], an array of the images' kind; with `report`, (logits, Report).

        Raises:
            ValueError: an argument has the wrong shape, type or size, or no exit fits into max_macs.
        """
        x = _capsule(images, "images")
        shape = (len(images) if images.ndim else 0, self.classes)
        is_torch = isinstance(images, Tensor)
        logits: Any = torch.empty(shape, dtype=torch.float32) if is_torch else np.empty(shape, np.float32)
        bits = None if decisions is None else _capsule(decisions, "decisions")
        budgets = _budgets(max_macs, deadline_ms)
        session = self._take()
        try:
            session.run(x, _capsule(logits, "logits"), *budgets, bits, report)
            return (logits, self._report(session, shape[0])) if report else logits
        finally:
            self._give(session)

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
            session.macs(count),
            torch.from_numpy(bits.copy()),
            {name: ms for name, ms in steps if ms >= 0},
        )

    @property
    def memory_bytes(self) -> int:
        """Of the values and the scratch memory of one session."""
        return self._sessions[0].memory_bytes

    def __repr__(self) -> str:
        return f"Engine(input_shape={self.input_shape}, classes={self.classes}, exits={len(self.exits)})"
