"""What it costs to reach each classifier of a backbone with everything open: what budgets count with.

A pass is cut into steps, one for each block: what lies between the block before and the end of this one. In
multiply-adds and in joules of an energy model a step is known exactly, part by part; in milliseconds it is
measured as a whole, here, now.
"""

from __future__ import annotations

import copy
import itertools
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from ..backbones.base import Backbone
from ..cost import Macs, Resource
from ..cost.record import Record, record
from ..cost.shapes import on_each_layer, plain_copy
from ..eval_mode import eval_mode
from ..gating.gate_pass import BlockRecord
from ..gating.site import Gate, GateSite
from ..gating.stand_in import is_converted

__all__ = ["ExitCosts", "Step", "exit_costs", "exit_ms", "recorded"]

_UNITS = {"macs": "MACs", "joules": "joules"}
_ROUNDING = 1 + 1e-12  # more than sums of the same terms in another order differ by
_WARM_UP, _PASSES = 3, 20


@dataclass(frozen=True)
class Step:
    """The cost of one step with everything open.

    Args:
        fixed: of what no gate decides over.
        gates: of each gate in it.
        blocks: of what each of these decides over.
    """

    fixed: float
    gates: tuple[float, ...] = ()
    blocks: tuple[float, ...] = ()

    @property
    def total(self) -> float:
        return self.fixed + sum(self.gates) + sum(self.blocks)


@dataclass(frozen=True)
class ExitCosts:
    """Of a sample in multiply-adds or joules, or of a call in milliseconds.

    Args:
        unit: "MACs", "joules" or "ms".
        positions: how many blocks run before each exit; the last one is the network's own classifier.
        steps: of each block, in order.
        heads: of each exit's classifier; of the last one with all that follows the last block.

    Example:
        >>> costs = exit_costs(ddi.create_model("cifar_resnet20", exits=2), (1, 3, 32, 32))
        >>> [costs.worst(exit) for exit in range(3)]
        [14475904, 27681152, 40813184]
    """

    unit: str
    positions: tuple[int, ...]
    steps: tuple[Step, ...]
    heads: tuple[float, ...]

    def worst(self, exit: int) -> float:
        """Up to and with the classifier of an exit, everything open."""
        total = sum(step.total for step in self.steps[: self.positions[exit]]) + self.heads[exit]
        return total if self.unit == "MACs" else total * _ROUNDING

    def latest(self, limit: float) -> int | None:
        """The last exit that certainly fits into a limit; None if none does."""
        fitting = [exit for exit in range(len(self.heads)) if self.worst(exit) <= limit]
        return max(fitting, default=None)


def recorded(model: Backbone, watch: Any) -> AbstractContextManager[Record | None]:
    """`ddi.record` for a gated model, nothing for a plain one."""
    return record(model, watch) if is_converted(model) else nullcontext()


@dataclass
class _Parts:
    """What gates and their blocks of each step cost, seen in a pass."""

    prices: Resource
    steps: list[Step] = field(default_factory=list)
    gates: list[float] = field(default_factory=list)
    blocks: list[float] = field(default_factory=list)

    def before_gate(self, gates: Gate, site: GateSite, shape: torch.Size) -> None:
        self.gates.append(self.prices.gate(gates, site, shape))

    def before_block(self, block: BlockRecord) -> None:
        self.blocks.append(self.prices.dense_block(block.block, block.shape))

    def visit(self, features: Tensor) -> None:
        self.steps.append(Step(0, tuple(self.gates), tuple(self.blocks)))
        self.gates, self.blocks = [], []


def exit_costs(
    model: Backbone, shape: torch.Size | tuple[int, ...], prices: Resource | None = None
) -> ExitCosts:
    """Of a sample in a resource that is counted, for inputs of shape (N, C, H, W).

    Looked up after the first call of a size. That one runs the model on one image if it is gated: only so the
    order of its gates is known.

    Args:
        prices: `ddi.cost.Macs()`, the default, or `ddi.cost.Joules(...)`.
    """
    prices = prices or Macs()
    size, weight = (int(shape[2]), int(shape[3])), next(model.parameters())
    key = (size, weight.dtype, _gates_of(model), prices.name, getattr(prices, "model", None))
    cache: list[tuple[Any, ExitCosts]] = model.__dict__.setdefault("_ddi_exit_costs", [])
    found = [costs for known, costs in cache if known == key]  # energy models have no hash
    if not found:
        found = [_count(model, size, prices)]
        cache.append((key, found[0]))
    return found[0]


def _gates_of(model: Backbone) -> Any:
    return model.__dict__.get("_ddi_hooks")


def _count(model: Backbone, size: tuple[int, int], prices: Resource) -> ExitCosts:
    layers, heads = _plain_costs(model, size, prices)
    parts, weight = _Parts(prices), next(model.parameters())
    zeros = torch.zeros(1, 3, *size, device=weight.device, dtype=weight.dtype)
    with recorded(model, parts), eval_mode(model), torch.inference_mode():
        model(zeros, visit=parts.visit)
    steps = [
        Step(cost - sum(seen.blocks), seen.gates, seen.blocks)
        for seen, cost in zip(parts.steps, layers, strict=True)
    ]
    return ExitCosts(_UNITS[prices.name], (*model.exit_positions, len(steps)), tuple(steps), tuple(heads))


def _plain_costs(model: Backbone, size: tuple[int, int], prices: Resource) -> tuple[list[float], list[float]]:
    """Of the layers up to the end of each block, and of each classifier, without gates; computes nothing."""
    plain = plain_copy(model)
    steps: list[float] = []
    heads: list[float] = []
    run: list[float] = []  # since the last look
    on_each_layer(plain, lambda _, layer, size: run.append(prices.layer(layer, size)))

    def taken() -> float:
        cost = sum(run)
        run.clear()
        return cost

    def visit(features: Tensor) -> None:
        steps.append(taken())
        if len(steps) in plain.exit_positions:
            plain.exits[len(heads)](features)
            heads.append(taken())

    with torch.no_grad():
        plain(torch.empty(1, 3, *size, device="meta", dtype=next(plain.parameters()).dtype), visit=visit)
    return steps, [*heads, taken()]


class _Stopwatch:
    """Milliseconds of each step of a pass, and of the classifiers on the way."""

    def __init__(self, model: Backbone, device: torch.device) -> None:
        self.model, self.device = model, device
        self.steps: list[float] = []
        self.heads: list[float] = []
        self.start = self.now()

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return perf_counter() * 1e3

    def visit(self, features: Tensor) -> None:
        self.steps.append(self.now() - self.start)
        if len(self.steps) in self.model.exit_positions:
            start = self.now()
            self.model.exits[len(self.heads)](features)
            self.heads.append(self.now() - start)
        self.start = self.now()


def exit_ms(model: Backbone, x: Tensor) -> ExitCosts:
    """Milliseconds of a call on x: float[N, 3, H, W], measured with every gate open; those that 95 % of 20
    passes keep to. Measured once for a size, a batch and a number of threads.
    """
    key = (tuple(x.shape), x.dtype, x.device, torch.get_num_threads(), _gates_of(model))
    cache: dict[Any, ExitCosts] = model.__dict__.setdefault("_ddi_exit_ms", {})
    if key not in cache:
        cache[key] = _measure(model, x)
    return cache[key]


def _measure(model: Backbone, x: Tensor) -> ExitCosts:
    open: Any = copy.deepcopy(model).eval()
    if is_converted(open):
        open.ddi_gates.set_threshold(1e-12)
    seen: list[list[float]] = []
    with torch.inference_mode():
        for _ in range(_WARM_UP + _PASSES):
            watch = _Stopwatch(open, x.device)
            open(x, visit=watch.visit)
            seen.append([*watch.steps, *watch.heads, watch.now() - watch.start])
    parts = torch.tensor(seen[_WARM_UP:], dtype=torch.float64).quantile(0.95, dim=0).tolist()
    count = len(parts) - len(open.exits) - 1
    counted = exit_costs(model, x.shape)
    steps = [
        Step(0, (0.0,) * len(like.gates), (ms, *(0.0,) * (len(like.blocks) - 1))) if like.blocks else Step(ms)
        for ms, like in zip(parts[:count], counted.steps, strict=True)
    ]
    return ExitCosts("ms", counted.positions, tuple(steps), tuple(itertools.islice(parts, count, None)))
