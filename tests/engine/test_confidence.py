"""Confidence: each sample halts where it is certain and pays for the exits it asked; the others go on."""

from __future__ import annotations

from pathlib import Path
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


def certainty(logits: Tensor) -> Tensor:
    return logits.double().softmax(-1).amax(-1)


def all_logits(plain: engine.Engine, x: Tensor) -> Tensor:
    """[exits, N, classes], from the engine itself: without gates a run halts where its budget says."""
    answers = [plain(x, max_macs=macs, report=True) for macs in plain.exit_worst_macs]
    assert [report.exit for _, report in answers] == list(range(len(plain.exits)))
    return torch.stack([logits for logits, _ in answers])


def first_certain(logits: Tensor, threshold: float) -> list[int]:
    """Of each sample, from the logits of all exits, the last of which always answers."""
    certain = certainty(logits) >= threshold
    certain[-1] = True
    return certain.int().argmax(0).tolist()


def chosen(logits: Tensor, exits: list[int]) -> Tensor:
    return logits[exits, torch.arange(len(exits))]


def test_halts_exactly_where_the_softmax_says(plain: engine.Engine) -> None:
    halted = set()
    for i in range(60):
        x = random_images(1, SIZE)
        logits = all_logits(plain, x)
        sure = certainty(logits)[:, 0].tolist()
        # At what an exit gives itself as well: double precision leaves a few of the last digits open.
        for threshold in (0.4 + 0.01 * i, sure[i % len(sure)] - 1e-12, sure[i % len(sure)] + 1e-12):
            threshold = min(threshold, 1.0)
            got, report = plain(x, confidence=threshold, report=True)
            assert report.exits == [report.exit] == first_certain(logits, threshold)
            assert torch.equal(got, logits[report.exit])
            halted.add(report.exit)
    assert len(halted) > 3


@torch.no_grad()
def test_answers_are_the_models(case: tuple[Any, engine.Engine]) -> None:
    model, frozen = case
    halted = set()
    for i in range(6):
        x = random_images(3 + i % 3, SIZE)
        threshold = 0.3 + 0.12 * i
        logits, report = frozen(x, confidence=threshold, report=True)
        if frozen.decision_bytes == 0:
            expected = torch.stack(model.forward_exits(x))
        else:
            with forced(model, report.decisions):  # of gates that were not reached none matters
                expected = torch.stack(model.forward_exits(x))
        torch.testing.assert_close(logits, chosen(expected, report.exits), atol=2e-4, rtol=2e-4)
        assert report.exits == first_certain(expected, threshold) and report.exit == max(report.exits)
        halted |= set(report.exits)
        if frozen.decision_bytes == 0 or i % 2:
            ours = ddi.budget(model, x, ddi.Budget(confidence=threshold))
            assert ours.exits.tolist() == report.exits
            torch.testing.assert_close(ours.logits, logits, atol=2e-4, rtol=2e-4)
    assert len(halted) > 1


@pytest.mark.parametrize("way", ["own", "forced", "strided", "bf16", "threads"])
def test_a_batch_does_what_its_images_do_alone(
    case: tuple[Any, engine.Engine], way: str, tmp_path: Path
) -> None:
    model, frozen = case
    if way == "bf16":
        frozen = freeze(model, SIZE, tmp_path, dtype=torch.bfloat16)
    many = freeze(model, SIZE, tmp_path, threads=3, max_batch=20) if way == "threads" else frozen
    size, mixed = (20 if way == "threads" else 5), 0
    for i in range(6):
        x = random_images(size, SIZE)
        bits = torch.rand(size, frozen.decision_bytes) < 0.6 if way == "forced" else None
        if way == "strided":
            x = random_images(2 * size, SIZE).to(memory_format=torch.channels_last)[::2]
        options: dict[str, Any] = {"confidence": 0.5 + 0.08 * i, "report": True, "energy": (1.0, 2.0, 3.0)}
        logits, report = many(x, decisions=bits, **options)
        mixed += len(set(report.exits)) > 1
        for n in range(size):
            own = None if bits is None else bits[n : n + 1]
            expected, alone = frozen(x[n : n + 1], decisions=own, **options)
            tolerance = 5e-2 if way == "bf16" else 2e-4
            torch.testing.assert_close(logits[n : n + 1], expected, atol=tolerance, rtol=tolerance)
            assert report.exits[n] == alone.exit
            assert torch.equal(report.decisions[n : n + 1], alone.decisions)
            for name in ("macs", "weight_bytes", "activation_bytes", "joules"):
                assert getattr(report, name)[n] == getattr(alone, name)[0]
    assert mixed > 0


def test_asking_exits_changes_nothing_behind_them(case: tuple[Any, engine.Engine]) -> None:
    _, frozen = case
    x = random_images(3, SIZE)
    x[0] = 0.01 * torch.randn(3, SIZE, SIZE)  # of which no exit is certain
    logits, report = frozen(x, confidence=1.0, report=True)
    expected, unasked = frozen(x, report=True)
    assert report.exits == [len(frozen.exits) - 1] * 3
    assert torch.equal(logits, expected) and torch.equal(report.decisions, unasked.decisions)
    assert all(more > less for more, less in zip(report.macs, unasked.macs, strict=True))


def test_any_exit_is_certain_enough_of_nothing_asked(case: tuple[Any, engine.Engine]) -> None:
    _, frozen = case
    logits, report = frozen(torch.randn(2, 3, SIZE, SIZE), confidence=0, report=True)
    assert report.exit == 0 and report.exits == [0, 0] and logits.isfinite().all()
    # The same work as with a budget that ends there, so nothing is paid twice.
    assert max(report.macs) <= frozen.exit_worst_macs[0]


def test_nan_is_never_certain(plain: engine.Engine) -> None:
    x = torch.randn(2, 3, SIZE, SIZE)
    x[1, 0, 0, 0] = float("nan")
    _, report = plain(x, confidence=0.0, report=True)
    assert report.exits == [0, len(plain.exits) - 1] and report.exit == len(plain.exits) - 1


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
                expected = torch.stack(model.forward_exits(x))
            torch.testing.assert_close(logits, chosen(expected, report.exits), atol=2e-4, rtol=2e-4)
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
