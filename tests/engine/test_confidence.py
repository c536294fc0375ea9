"""Confidence: a call halts where all of its samples are certain, and pays for the exits that were asked."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from frozen_models import freeze, make_outspoken, random_images
from torch import Tensor

import ddi
from bench.decisions import forced
from ddi_kernels import engine

pytest.importorskip("ddi_kernels._engine", reason="ddi_kernels._engine is not built")

SIZE = 20
MODELS = {
    "resnet": ("cifar_resnet14", ddi.DDIConfig(group_size=4)),
    "plain": ("cifar_resnet14", None),
    "densenet": ("densenet_bc40", ddi.DenseDDIConfig(group_size=4)),
}


@pytest.fixture(params=MODELS, scope="module")
def case(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Any, engine.Engine]:
    model = make_outspoken(*MODELS[request.param])
    return model, freeze(model, SIZE, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> engine.Engine:
    return freeze(make_outspoken(*MODELS["plain"]), SIZE, tmp_path_factory.mktemp("plain"))


def certainty(logits: Tensor) -> float:
    """Of the least certain sample."""
    return logits.double().softmax(1).amax(1).min().item()


def all_logits(plain: engine.Engine, x: Tensor) -> list[Tensor]:
    """Of every exit, from the engine itself: without gates a run halts where its budget says."""
    answers = [plain(x, max_macs=macs, report=True) for macs in plain.exit_worst_macs]
    assert [report.exit for _, report in answers] == list(range(len(plain.exits)))
    return [logits for logits, _ in answers]


def test_halts_exactly_where_the_softmax_says(plain: engine.Engine) -> None:
    halted = set()
    for i in range(60):
        x = random_images(1 + i % 3, SIZE)
        logits = all_logits(plain, x)
        sure = [certainty(answer) for answer in logits]
        # At what an exit gives itself as well: double precision leaves a few of the last digits open.
        for threshold in (0.4 + 0.01 * i, sure[i % len(sure)] - 1e-12, sure[i % len(sure)] + 1e-12):
            threshold = min(threshold, 1.0)
            expected = next((at for at, s in enumerate(sure) if s >= threshold), len(sure) - 1)
            got, report = plain(x, confidence=threshold, report=True)
            assert report.exit == expected and torch.equal(got, logits[expected])
            halted.add(report.exit)
    assert len(halted) > 3


@torch.no_grad()
def test_answers_are_the_models(case: tuple[Any, engine.Engine]) -> None:
    model, frozen = case
    halted = set()
    for i in range(6):
        x = random_images(1 + i % 3, SIZE)
        threshold = 0.3 + 0.12 * i
        logits, report = frozen(x, confidence=threshold, report=True)
        bits = report.decisions  # of gates that were not reached none matters
        if frozen.decision_bytes == 0:
            expected = model.forward_exits(x)
        else:
            with forced(model, bits):
                expected = model.forward_exits(x)
        torch.testing.assert_close(logits, expected[report.exit], atol=2e-4, rtol=2e-4)
        unsure = [certainty(answer) for answer in expected[: report.exit]]
        assert max(unsure, default=0.0) < threshold + 1e-4
        assert report.exit == len(expected) - 1 or certainty(logits) >= threshold - 1e-4
        halted.add(report.exit)
    assert len(halted) > 1


def test_asking_exits_changes_nothing_behind_them(case: tuple[Any, engine.Engine]) -> None:
    _, frozen = case
    x = random_images(3, SIZE)
    x[0] = 0.01 * torch.randn(3, SIZE, SIZE)  # of which no exit is certain
    logits, report = frozen(x, confidence=1.0, report=True)
    expected, unasked = frozen(x, report=True)
    assert report.exit == len(frozen.exits) - 1
    assert torch.equal(logits, expected) and torch.equal(report.decisions, unasked.decisions)
    assert all(more > less for more, less in zip(report.macs, unasked.macs, strict=True))


def test_one_that_is_not_certain_takes_its_batch_along(plain: engine.Engine) -> None:
    x = random_images(40, SIZE)
    alone = [plain(image, confidence=0.8, report=True)[1].exit for image in x.split(1)]
    assert len(set(alone)) > 1
    for first in range(0, 40, 5):
        _, report = plain(x[first : first + 5], confidence=0.8, report=True)
        sure = [
            [certainty(a) >= 0.8 for a in all_logits(plain, image)] for image in x[first : first + 5].split(1)
        ]
        together = [all(column) for column in zip(*sure, strict=True)]
        assert report.exit == next((at for at, s in enumerate(together) if s), len(together) - 1)
        assert report.exit >= max(alone[first : first + 5])


def test_any_exit_is_certain_enough_of_nothing_asked(case: tuple[Any, engine.Engine]) -> None:
    _, frozen = case
    logits, report = frozen(torch.randn(2, 3, SIZE, SIZE), confidence=0, report=True)
    assert report.exit == 0 and logits.isfinite().all()
    # The same work as with a budget that ends there, so nothing is paid twice.
    assert max(report.macs) <= frozen.exit_worst_macs[0]


def test_nan_is_never_certain(plain: engine.Engine) -> None:
    x = torch.randn(2, 3, SIZE, SIZE)
    x[1, 0, 0, 0] = float("nan")
    _, report = plain(x, confidence=0.0, report=True)
    assert report.exit == len(plain.exits) - 1


@torch.no_grad()
def test_budgets_hold_whatever_is_asked(case: tuple[Any, engine.Engine]) -> None:
    model, frozen = case
    energy = (1e-12, 2e-11, 3e-12)
    worst = [sum(e * w for e, w in zip(energy, work, strict=True)) for work in frozen.exit_worst_work]
    halted = set()
    for i in range(60):
        x = random_images(2, SIZE)
        share = i % 20 / 19
        limits: dict[str, Any] = {}
        if i % 3 != 1:
            macs = frozen.exit_worst_macs
            limits["max_macs"] = int(macs[0] + share * (macs[-1] - macs[0]))
        if i % 3 != 0:
            limits |= {"max_joules": worst[0] * (1 + 1e-9) + share * (worst[-1] - worst[0]), "energy": energy}
        threshold = (0.6, 0.9, 1.0)[i // 20]
        logits, report = frozen(x, confidence=threshold, report=True, **limits)
        assert max(report.macs) <= limits.get("max_macs", 2**63)
        assert report.joules is None or max(report.joules) <= limits["max_joules"]
        assert report.exit <= frozen(x, report=True, **limits)[1].exit
        halted.add(report.exit)
        if i % 20 == 7 and frozen.decision_bytes > 0:
            with forced(model, report.decisions):
                expected = model.forward_exits(x)[report.exit]
            torch.testing.assert_close(logits, expected, atol=2e-4, rtol=2e-4)
    assert len(halted) > 2


def test_a_deadline_that_has_passed_leaves_the_first_exit(case: tuple[Any, engine.Engine]) -> None:
    _, frozen = case
    x = random_images(2, SIZE)
    logits, report = frozen(x, deadline_ms=0.0, confidence=1.0, report=True)
    expected, first = frozen(x, deadline_ms=0.0, report=True)
    assert report.exit == first.exit == 0
    assert torch.equal(logits, expected) and report.macs == first.macs


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan"), float("inf"), "0.9", [0.9]])
def test_bad_confidence(value: Any, plain: engine.Engine) -> None:
    with pytest.raises(ValueError, match="argument 'confidence': expected a probability from 0 to 1"):
        plain(torch.randn(1, 3, SIZE, SIZE), confidence=value)


def test_numbers_of_numpy_and_no_images(plain: engine.Engine) -> None:
    x = np.zeros((0, 3, SIZE, SIZE), np.float32)
    logits, report = plain(x, confidence=np.float32(0.5), report=True)
    assert logits.shape == (0, 7) and report.macs == []
