"""Hard budgets: all samples of a call halt at the branch classifier that still fits (arXiv 1907.04523).

Multiply-adds, and joules of an energy model, are counted and never exceeded. Milliseconds are a deadline: the
clock is read before every block and compared with what the rest took when it was measured; it is held as well
as the machine allows.
The rule is the engine's (csrc/engine/session.cpp): the pass goes on where the next exit is certainly within
reach, or where what is about to run, known once its gate has decided, leaves enough for the classifier of the
exit before.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real
from time import perf_counter
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor

from ddi_kernels.prices.energy import HOROWITZ_45NM, EnergyModel

from ..backbones.base import Backbone
from ..cost import Joules, Macs, Resource
from ..gating.gate_pass import BlockRecord
from ..gating.site import Gate, GateSite
from .exit_costs import ExitCosts, exit_costs, exit_ms, recorded

__all__ = ["Answer", "Budget", "budget"]


@dataclass(frozen=True)
class Budget:
    """Limits of one call, any of them together.

    Args:
        macs: multiply-adds of a sample, gates and classifiers included; the batch halts on its dearest one.
        ms: milliseconds of the call.
        joules: of a sample, by `energy`, else as macs.
        confidence: in (0, 1]: each sample's answer is that of the first exit where its largest softmax
            probability is at least this, and the call halts when all have theirs. Exits that are asked in
            vain are paid for. Here a sample that has its answer is run on with the others; in the engine
            (`ddi.freeze`) it is not.

    Example:
        >>> ddi.Budget(macs=20_000_000)
        Budget(macs=20000000, ...)
    """

    macs: float | None = None
    ms: float | None = None
    joules: float | None = None
    confidence: float | None = None
    energy: EnergyModel = HOROWITZ_45NM

    def __post_init__(self) -> None:
        for name in ("macs", "ms", "joules"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, Real) and 0 < float(value) < math.inf):
                raise ValueError(f"Budget: {name} must be a positive number or None, got {value!r}")
        value = self.confidence
        if value is not None and not (isinstance(value, Real) and 0 < float(value) <= 1):
            raise ValueError(f"Budget: confidence must lie in (0, 1] or be None, got {value!r}")


@dataclass(frozen=True)
class Answer:
    """What a call under a budget did.

    Args:
        logits: float[N, classes].
        exit: the deepest classifier that answered; the last one is the network's own.
        exits: int64[N], the classifier that answered for each sample; they differ under a confidence alone.
        macs: float64[N], of each sample, gates and classifiers included.
        ms: milliseconds of the call.
        joules: float64[N] as macs, where they were limited; else None.
    """

    logits: Tensor
    exit: int
    exits: Tensor
    macs: Tensor
    ms: float
    joules: Tensor | None = None


class _Halt(Exception):
    """Ends a pass at the last exit it has reached."""


class _Counter:
    """What the samples of a call have spent of a counted resource, and its limit."""

    def __init__(self, costs: ExitCosts, prices: Resource, limit: float | None, x: Tensor) -> None:
        self.costs, self.prices, self.limit = costs, prices, math.inf if limit is None else limit
        self.spent = torch.zeros(len(x), dtype=torch.float64, device=x.device)

    def gate(self, gates: Gate, site: GateSite, shape: torch.Size) -> Any:
        return self.prices.gate(gates, site, shape)

    def block(self, block: BlockRecord, step: int) -> Any:
        cost = self.prices.block(block.block, block.shape, block.decision)
        return cost.round() if self.prices.name == "macs" else cost  # a product of shares is no integer

    def add(self, cost: Any) -> None:
        self.spent = self.spent + cost

    def fits(self, cost: Any) -> bool:
        return self.limit == math.inf or bool(((self.spent + cost) <= self.limit).all())


class _Clock:
    """Milliseconds since the call began, and their limit."""

    def __init__(self, costs: ExitCosts, limit: float) -> None:
        self.costs, self.limit = costs, limit
        self.start = math.nan  # set as the call begins

    def elapsed(self) -> float:
        return (perf_counter() - self.start) * 1e3

    def gate(self, gates: Gate, site: GateSite, shape: torch.Size) -> Any:
        return 0.0  # its time is part of its step's

    def block(self, block: BlockRecord, step: int) -> Any:
        return self.costs.steps[step].total

    def add(self, cost: Any) -> None:
        """Time is spent by itself."""

    def fits(self, cost: Any) -> bool:
        return self.elapsed() + cost <= self.limit


class _Call:
    """A pass under way: where it is, and whether it may go on."""

    def __init__(
        self, model: Backbone, meters: list[Any], confidence: float | None, until: int, x: Tensor
    ) -> None:
        self.model, self.meters, self.confidence, self.until = model, meters, confidence, until
        self.waiting = torch.ones(len(x), dtype=torch.bool, device=x.device)  # for an answer
        self.answers: list[tuple[int, Tensor, Tensor]] = []  # exit, its logits, for which samples
        self.positions = meters[0].costs.positions
        self.step = self.part = 0
        self.exit = -1
        self.features: Tensor | None = None
        self.logits: Tensor | None = None  # of this exit, if its classifier has run
        self._spend([meter.costs.steps[0].fixed for meter in meters])

    def _spend(self, costs: list[Any]) -> None:
        for meter, cost in zip(self.meters, costs, strict=True):
            meter.add(cost)

    def _rest(self, meter: Any) -> float:
        """To the end of the next exit's classifier from here, everything open."""
        costs, last = meter.costs, self.positions[self.exit + 1]
        now = costs.steps[self.step]
        rest = sum(now.gates[self.part :]) + sum(now.blocks[self.part :])
        return rest + sum(s.total for s in costs.steps[self.step + 1 : last]) + costs.heads[self.exit + 1]

    def _head(self, meter: Any) -> float:
        """What the last exit's classifier still costs."""
        return 0.0 if self.logits is not None else meter.costs.heads[self.exit]

    def _go(self, costs: list[Any], rest: list[float]) -> None:
        """Pays for what comes next, or halts. Before the first exit nothing can halt."""
        back = [cost + self._head(meter) for meter, cost in zip(self.meters, costs, strict=True)]
        if self.exit >= 0 and not (self._fit(rest) or self._fit(back)) and self._may_halt():
            raise _Halt
        self._spend(costs)

    def _fit(self, costs: list[Any]) -> bool:
        return all(meter.fits(cost) for meter, cost in zip(self.meters, costs, strict=True))

    def _may_halt(self) -> bool:
        """Whether the last exit can still answer. Not where that would exceed what is counted: that much was
        spent because the next exit is certain to be within it, and a deadline is then missed.
        """
        counters = [meter for meter in self.meters if isinstance(meter, _Counter)]
        return all(counter.fits(self._head(counter)) for counter in counters)

    def before_gate(self, gates: Gate, site: GateSite, shape: torch.Size) -> None:
        costs = [meter.gate(gates, site, shape) for meter in self.meters]
        self._go(costs, [self._rest(meter) for meter in self.meters])

    def before_block(self, block: BlockRecord) -> None:
        rest = [self._rest(m) - m.costs.steps[self.step].gates[self.part] for m in self.meters]
        self._go([meter.block(block, self.step) for meter in self.meters], rest)
        self.part += 1

    def visit(self, features: Tensor) -> None:
        self.step, self.part = self.step + 1, 0
        if self.step == self.positions[self.exit + 1]:
            self._reach(features)
        if self.step < len(self.meters[0].costs.steps):
            fixed = [meter.costs.steps[self.step].fixed for meter in self.meters]
            rest = [self._rest(meter) + cost for meter, cost in zip(self.meters, fixed, strict=True)]
            self._go(fixed, rest)

    def _reach(self, features: Tensor) -> None:
        """Passes an exit, or halts at the one before it."""
        following = self.exit + 1
        heads = [meter.costs.heads[following] for meter in self.meters]
        if following > 0 and not self._fit(heads) and self._may_halt():
            raise _Halt
        self.exit, self.features, self.logits = following, features, None
        if following == self.until < len(self.model.exits):
            raise _Halt
        if self.confidence is not None and following < len(self.model.exits):
            certain = self.answer().softmax(1).amax(1) >= self.confidence
            self._take(self.answer(), certain & self.waiting)
            if not bool(self.waiting.any()):
                raise _Halt

    def _take(self, logits: Tensor, samples: Tensor) -> None:
        """The current exit's logits as the answers of some samples: bool[N]."""
        self.answers.append((self.exit, logits, samples))
        self.waiting = self.waiting & ~samples

    def finish(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """All answers, and the exits that they are of; logits: those of the samples that wait for theirs."""
        self._take(logits, self.waiting)
        exits = torch.zeros(len(logits), dtype=torch.int64, device=logits.device)
        for exit, answers, samples in self.answers:
            logits = torch.where(samples[:, None], answers, logits)
            exits = exits.masked_fill(samples, exit)
        return logits, exits

    def pay_rest(self) -> None:
        """For the network's own classifier, and all that follows the last block."""
        self._spend([meter.costs.heads[-1] for meter in self.meters])

    def answer(self) -> Tensor:
        """The logits of the last exit that was reached, paid for once."""
        if self.logits is None:
            assert self.features is not None
            self._spend([meter.costs.heads[self.exit] for meter in self.meters])
            self.logits = self.model.exits[self.exit](self.features)
        return self.logits


def _meters(model: Backbone, x: Tensor, limits: Budget) -> list[Any]:
    """Multiply-adds, which are always counted, and what else is limited."""
    counted: list[tuple[Resource, float | None]] = [(Macs(), limits.macs)]
    if limits.joules is not None:
        counted.append((Joules(limits.energy), limits.joules))
    meters: list[Any] = [
        _Counter(exit_costs(model, x.shape, prices), prices, limit, x) for prices, limit in counted
    ]
    if limits.ms is not None:
        meters.append(_Clock(exit_ms(model, x), limits.ms))
    for meter in meters:
        if meter.costs.worst(0) > meter.limit:
            unit, least = meter.costs.unit, meter.costs.worst(0)
            without = "" if model.exits else "; the network has no branch classifiers, create it with exits"
            raise ValueError(
                f"budget: no exit fits into {meter.limit:g} {unit}: the first may take {least:g}{without}"
            )
    return meters


def _check(model: nn.Module, x: Tensor, limits: Budget) -> Backbone:
    if not isinstance(limits, Budget):
        raise TypeError(f"budget: limits must be a ddi.Budget, got {type(limits).__name__}")
    if not isinstance(model, Backbone):
        raise TypeError(
            "budget: model must come from ddi.create_model, gated or not, and not be wrapped, "
            f"got {type(model).__name__}"
        )
    if model.training:
        raise ValueError("budget: the model is in training mode; call model.eval() first")
    if limits.confidence is not None and not model.exits:
        raise ValueError("budget: confidence needs branch classifiers; create the model with exits")
    if not isinstance(x, Tensor) or x.dim() != 4:
        got = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(f"budget: x must be a Tensor[N, 3, H, W], got {got}")
    return model


@torch.inference_mode()
def budget(model: nn.Module, x: Tensor, limits: Budget) -> Answer:
    """Runs a backbone under a budget.

    On a CPU all is decided while the pass runs: a gated network gets as far as its open gates allow. On a
    GPU, where looking at what the gates decided would make the host wait, the last exit that certainly fits
    is taken from the start.

    Args:
        model: of `ddi.create_model`, with or without gates and branch classifiers, in eval mode.
        x: float[N, 3, H, W].
        limits: what the call may spend. For `ms`, the steps of the model are measured on x by 23 passes at
            the first call of its shape, batch and number of threads.

    Raises:
        ValueError: no exit certainly fits; or the model is in training mode, or has no branch classifiers
            for a confidence.
        TypeError: another kind of model or limits.

    Example:
        >>> model = ddi.create_model("cifar_resnet20", exits="default").eval()
        >>> answer = ddi.budget(model, torch.randn(4, 3, 32, 32), ddi.Budget(macs=20_000_000))
        >>> answer.exit, answer.macs.max() <= 20_000_000
        (2, tensor(True))
    """
    backbone = _check(model, x, limits)
    meters, until = _meters(backbone, x, limits), len(backbone.exits)
    if x.is_cuda:
        until = min(meter.costs.latest(meter.limit) for meter in meters)
        meters = [_Counter(m.costs, m.prices, None, x) for m in meters if isinstance(m, _Counter)]
    start = perf_counter()
    if isinstance(meters[-1], _Clock):
        meters[-1].start = start
    call = _Call(backbone, meters, limits.confidence, until, x)
    with recorded(backbone, call):
        try:
            logits: Any = backbone(x, visit=call.visit)
            call.pay_rest()
        except _Halt:
            logits = call.answer()
    logits, exits = call.finish(logits)
    ms = (perf_counter() - start) * 1e3
    joules = None if limits.joules is None else meters[1].spent
    return Answer(logits, call.exit, exits, meters[0].spent, ms, joules)
