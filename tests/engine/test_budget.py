"""Exits and budgets: every exit answers as the model's own, multiply-adds and joules are never exceeded."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from time import perf_counter
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from frozen_models import freeze, make
from tiny_plans import CORPUS, SIZE
from tolerances import assert_close
from torch import Tensor

import ddi
from bench.decisions import forced
from ddi_kernels import engine

pytest.importorskip("ddi_kernels._engine", reason="ddi_kernels._engine is not built")

MODELS = {
    "resnet": ("cifar_resnet38", ddi.DDIConfig(group_size=4)),
    "plain": ("cifar_resnet38", None),
    "densenet": ("densenet_bc40", ddi.DenseDDIConfig(group_size=4)),
}


@pytest.fixture(params=MODELS, scope="module")
def case(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Any, engine.Engine]:
    model = make(*MODELS[request.param], exits="default")
    return model, freeze(model, 32, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def any_network() -> engine.Engine:
    return engine.load(CORPUS / "exits.ddi", max_batch=2)


@torch.no_grad()
def test_each_exit_answers_as_the_models(case: tuple[Any, engine.Engine]) -> None:
    model, frozen = case
    x = torch.randn(2, 3, 32, 32)
    expected = model.forward_exits(x)
    assert len(expected) == len(frozen.exits) > 3
    assert_close(frozen(x), expected[-1])
    seen = set()
    for macs in frozen.exit_worst_macs:
        logits, report = frozen(x, max_macs=macs, report=True)
        assert_close(logits, expected[report.exit])
        assert max(report.macs) <= macs
        seen.add(report.exit)
    if frozen.decision_bytes == 0:  # what may be spent is spent
        assert seen == set(range(len(frozen.exits)))


@torch.no_grad()
def test_budgets_are_never_exceeded_at_any_decisions(case: tuple[Any, engine.Engine]) -> None:
    model, frozen = case
    if frozen.decision_bytes == 0:
        pytest.skip("has no gates")
    low, high = frozen.exit_worst_macs[0], frozen.exit_worst_macs[-1]
    exits = set()
    for i in range(60):
        x = torch.randn(3, 3, 32, 32)
        share = torch.rand(3, 1)
        bits = (torch.rand(3, frozen.decision_bytes) < share).to(torch.uint8)
        budget = low + (high - low) * i // 59
        logits, report = frozen(x, max_macs=budget, decisions=bits, report=True)
        assert max(report.macs) <= budget
        exits.add(report.exit)
        if i % 12 == 0:
            with forced(model, bits):
                assert_close(logits, model.forward_exits(x)[report.exit])
    assert len(exits) > 2


def test_macs_of_exits_count_their_heads(case: tuple[Any, engine.Engine]) -> None:
    model, frozen = case
    x = torch.zeros(1, 3, 32, 32)
    open = torch.ones(1, frozen.decision_bytes, dtype=torch.uint8)
    for index, worst in enumerate(frozen.exit_worst_macs):
        _, report = frozen(x, decisions=open, max_macs=worst, report=True)
        if report.exit == index:
            assert report.macs == [worst]
    assert frozen.exit_worst_macs[-1] >= frozen.dense_macs


def test_deadlines_halt_early_and_never_fail(case: tuple[Any, engine.Engine]) -> None:
    _, frozen = case
    x = torch.randn(1, 3, 32, 32)
    _, none = frozen(x, deadline_ms=0.0, report=True)
    assert none.exit == 0
    _, all = frozen(x, deadline_ms=1e6, report=True)
    assert all.exit == len(frozen.exits) - 1


def test_a_budget_that_no_exit_fits_is_refused(case: tuple[Any, engine.Engine]) -> None:
    _, frozen = case
    first = frozen.exit_worst_macs[0]
    with pytest.raises(ValueError, match=f"no exit fits into {first - 1} MACs: the first may take {first}"):
        frozen(torch.zeros(1, 3, 32, 32), max_macs=first - 1)


@pytest.mark.parametrize("budget", [-1, 2**63, 2**70, 1.5, "all"])
def test_bad_macs(budget: Any, any_network: engine.Engine) -> None:
    with pytest.raises(ValueError, match="argument 'max_macs': expected an int from 0 to"):
        any_network(torch.randn(1, 3, SIZE, SIZE), max_macs=budget)


@pytest.mark.parametrize("budget", [-0.5, float("nan"), "soon"])
def test_bad_deadlines(budget: Any, any_network: engine.Engine) -> None:
    with pytest.raises(ValueError, match="argument 'deadline_ms': expected milliseconds from 0 on"):
        any_network(torch.randn(1, 3, SIZE, SIZE), deadline_ms=budget)


DTYPES = (torch.float32, torch.bfloat16, torch.int8)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_joules_are_never_exceeded_at_any_decisions(dtype: torch.dtype, tmp_path: Path) -> None:
    calibration = {"calibration": torch.randn(4, 3, 20, 20)} if dtype == torch.int8 else {}
    model = make("cifar_resnet14", ddi.DDIConfig(group_size=4), exits="default")
    frozen = freeze(model, 20, tmp_path, dtype=dtype, **calibration)
    exits = set()
    for i in range(120):
        energy = tuple((10 ** (torch.rand(3) * 4 - 13)).tolist())
        low, high = (joules(frozen.exit_worst_work[at], energy) for at in (0, -1))
        limit = low + (high - low) * (i % 40) / 39
        share = torch.rand(3, 1)
        bits = (torch.rand(3, frozen.decision_bytes) < share).byte()
        limits: dict[str, Any] = {"max_joules": limit}
        if i >= 40:  # several at once
            worst = frozen.exit_worst_macs
            limits["max_macs"] = int(worst[0] + (worst[-1] - worst[0]) * torch.rand(1).item())
        if i >= 80:
            limits["deadline_ms"] = torch.rand(1).item()
        _, report = frozen(torch.randn(3, 3, 20, 20), **limits, energy=energy, decisions=bits, report=True)
        work = zip(report.macs, report.weight_bytes, report.activation_bytes, strict=True)
        assert report.joules == [joules(counts, energy) for counts in work]
        assert max(report.joules) <= limit and max(report.macs) <= limits.get("max_macs", 2**63)
        exits.add(report.exit)
    assert len(exits) > 3


def joules(work: tuple[int, int, int], energy: tuple[float, ...]) -> float:
    return energy[0] * work[0] + energy[1] * work[1] + energy[2] * work[2]


def test_joules_halt_where_macs_do(case: tuple[Any, engine.Engine]) -> None:
    _, frozen = case
    x = torch.randn(2, 3, 32, 32)
    model = SimpleNamespace(coefficients=lambda dtype: (1, 0, 0.0) if dtype == "fp32" else None)
    for before, after in pairwise(frozen.exit_worst_macs):
        for macs in {before, (before + after) // 2, after}:
            logits, expected = frozen(x, max_macs=macs, report=True)
            got, report = frozen(x, max_joules=np.float64(macs), energy=model, report=True)
            assert torch.equal(got, logits) and report.exit == expected.exit
            assert expected.joules is None and report.joules == report.macs == expected.macs


def test_joules_that_no_exit_fits_are_refused(case: tuple[Any, engine.Engine]) -> None:
    _, frozen = case
    x, energy = torch.zeros(1, 3, 32, 32), [3e-12, 2e-11, 7e-12]
    first = joules(frozen.exit_worst_work[0], tuple(energy))
    _, report = frozen(x, max_joules=first, energy=energy, report=True)
    assert report.joules[0] <= first
    with pytest.raises(ValueError, match=f"no exit fits into .* joules: the first may take {first:.9g}"):
        frozen(x, max_joules=math.nextafter(first, 0), energy=energy)


def test_a_late_run_spends_no_more_than_it_may(tmp_path: Path) -> None:
    """Where the exit behind is too dear to fall back on, a run that is late goes on to the next one."""
    frozen = freeze(Dear().eval(), 64, tmp_path)
    dear, cheap, _ = frozen.exit_worst_macs
    budget = max(dear, cheap) + 1
    x = torch.randn(1, 3, 64, 64)
    start = perf_counter()
    for _ in range(20):
        frozen(x)
    ms = (perf_counter() - start) / 20 * 1e3
    for i in range(100):
        _, report = frozen(x, max_macs=budget, deadline_ms=1.5 * ms * i / 100, report=True)
        assert max(report.macs) <= budget


class Dear(nn.Module):
    """Its first classifier takes more than all that leads to the second."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(3, 3, 3, 1, 1) for _ in range(12))
        self.exits = nn.ModuleList([nn.Conv2d(3, 40, 3, 1, 1), nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)])
        self.linears = nn.ModuleList(nn.Linear(head.out_channels, 2) for head in self.exits)

    def forward_exits(self, x: Tensor) -> tuple[Tensor, ...]:
        logits = []
        for i, conv in enumerate(self.convs):
            x = F.relu(conv(x))
            if i in (0, 8, 11):
                head = len(logits)
                logits.append(self.linears[head](self.exits[head](x).mean((2, 3))))
        return tuple(logits)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_exits(x)[-1]


@pytest.mark.parametrize("limit", [-1e-9, float("nan"), float("inf"), "all", [1.0]])
def test_bad_joules(limit: Any, any_network: engine.Engine) -> None:
    with pytest.raises(ValueError, match="argument 'max_joules': expected finite joules from 0 on"):
        any_network(torch.randn(1, 3, SIZE, SIZE), max_joules=limit, energy=(1, 1, 1))


@pytest.mark.parametrize(
    "energy",
    [
        (1.0, 1.0),
        (1.0,) * 4,
        (1.0, -1e-30, 1.0),
        (1.0, float("nan"), 1.0),
        (float("inf"), 1.0, 1.0),
        ("a", "b", "c"),
        1.0,
        SimpleNamespace(coefficients=lambda dtype: (1.0, -1.0, 1.0)),
    ],
    ids=["two", "four", "negative", "nan", "inf", "text", "number", "model"],
)
def test_bad_energy(energy: Any, any_network: engine.Engine) -> None:
    for limit in (None, 1.0):
        with pytest.raises(ValueError, match="argument 'energy': expected three finite numbers from 0 on"):
            any_network(torch.randn(1, 3, SIZE, SIZE), max_joules=limit, energy=energy)


def test_joules_need_a_model(any_network: engine.Engine) -> None:
    with pytest.raises(ValueError, match="argument 'energy': .*max_joules needs"):
        any_network(torch.randn(1, 3, SIZE, SIZE), max_joules=1.0)


def test_budgets_of_numpy(any_network: engine.Engine) -> None:
    x = torch.randn(1, 3, SIZE, SIZE)
    budget = np.int64(any_network.exit_worst_macs[0])
    _, report = any_network(x, max_macs=budget, deadline_ms=np.float32(1e6), report=True)
    assert max(report.macs) <= budget
