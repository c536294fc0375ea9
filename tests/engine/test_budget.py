"""Exits and budgets: every exit answers as the model's own, multiply-adds are never exceeded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from frozen_models import freeze, make
from tolerances import assert_close

import ddi
from bench.decisions import forced
from ddi_kernels import engine

pytest.importorskip("ddi_kernels._engine", reason="ddi_kernels._engine is not built")

MODELS = {
    "resnet": ("cifar_resnet38", ddi.DDIConfig(group_size=4)),
    "plain": ("cifar_resnet38", None),
    "densenet": ("densenet_bc40", ddi.DenseDDIConfig(group_size=4)),
}


@pytest.fixture(params=MODELS)
def case(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Any, engine.Engine]:
    model = make(*MODELS[request.param], exits="default")
    return model, freeze(model, 32, tmp_path)


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
def test_bad_macs(budget: Any, case: tuple[Any, engine.Engine]) -> None:
    _, frozen = case
    with pytest.raises(ValueError, match="argument 'max_macs': expected an int from 0 to"):
        frozen(torch.randn(1, 3, 32, 32), max_macs=budget)


@pytest.mark.parametrize("budget", [-0.5, float("nan"), "soon"])
def test_bad_deadlines(budget: Any, case: tuple[Any, engine.Engine]) -> None:
    _, frozen = case
    with pytest.raises(ValueError, match="argument 'deadline_ms': expected milliseconds from 0 on"):
        frozen(torch.randn(1, 3, 32, 32), deadline_ms=budget)


def test_budgets_of_numpy(case: tuple[Any, engine.Engine]) -> None:
    _, frozen = case
    x = torch.randn(1, 3, 32, 32)
    budget = np.int64(frozen.exit_worst_macs[0])
    _, report = frozen(x, max_macs=budget, deadline_ms=np.float32(1e6), report=True)
    assert max(report.macs) <= budget
