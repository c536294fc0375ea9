"""A frozen network computes what its model computes, at the model's decisions and at any others."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from frozen_models import freeze, make
from tolerances import assert_close
from torch import Tensor

import ddi
from bench.decisions import forced
from ddi_kernels import engine

pytest.importorskip("ddi_kernels._engine", reason="ddi_kernels._engine is not built")

MODELS = {"cifar_resnet8": 32, "cifar_resnet20": 20, "resnet18": 64, "resnet50": 64}
DENSENETS = {"densenet_bc40": 32, "densenet121": 64}
DENSE_GATES = {
    "plain": None,
    "dense 1": ddi.DenseDDIConfig(),
    "dense 5": ddi.DenseDDIConfig(group_size=5),
}
GATES = {
    "plain": None,
    "both": ddi.DDIConfig(group_size=4),
    "layers": ddi.DDIConfig(channels=False),
    "channels": ddi.DDIConfig(layers=False, group_size=3),
}


@torch.no_grad()
def check(model: Any, frozen: engine.Engine, x: Tensor, decisions: Tensor | None = None) -> engine.Report:
    logits, report = frozen(x, decisions=decisions, report=True)
    assert_close(logits, model(x))
    # The model counts in float32, for its gradient.
    assert report.macs == pytest.approx(ddi.count_macs(model, x).per_sample.tolist(), rel=1e-6)
    return report


CASES = [(name, size, gates) for name, size in MODELS.items() for gates in GATES]
CASES += [(name, size, gates) for name, size in DENSENETS.items() for gates in DENSE_GATES]
# Of large networks, at three to seven seconds each; the small ones have all kinds of gates.
QUICK = {("resnet18", "both"), ("resnet50", "plain"), ("resnet50", "both"), ("densenet121", "dense 5")}


def marks(name: str, gates: str) -> Any:
    quick = name.startswith(("cifar", "densenet_bc")) or (name, gates) in QUICK
    return () if quick else pytest.mark.slow


@pytest.mark.parametrize(
    ("name", "size", "gates"), [pytest.param(*case, marks=marks(case[0], case[2])) for case in CASES]
)
def test_equals_the_model(name: str, size: int, gates: str, tmp_path: Path) -> None:
    model = make(name, {**GATES, **DENSE_GATES}[gates])
    frozen = freeze(model, size, tmp_path)
    for batch in (1, 5):
        x = torch.randn(batch, 3, size, size)
        report = check(model, frozen, x)
        if gates == "plain":
            continue
        for share in (0.0, 0.3, 0.7, 1.0):
            bits = (torch.rand(batch, frozen.decision_bytes) < share).to(torch.uint8)
            with forced(model, bits):
                report = check(model, frozen, x, bits)
            assert torch.equal(report.decisions, bits)


@pytest.mark.parametrize("threads", [2, 3])
def test_threads_change_nothing(threads: int, tmp_path: Path) -> None:
    model = make("cifar_resnet20", GATES["both"])
    one, more = (freeze(model, 32, tmp_path, threads=count) for count in (1, threads))
    for batch in (1, 5):
        x = torch.randn(batch, 3, 32, 32)
        assert torch.equal(one(x), more(x))


def test_layouts_and_arrays(tmp_path: Path) -> None:
    frozen = freeze(make("cifar_resnet8", GATES["both"]), 32, tmp_path)
    x = torch.randn(3, 3, 32, 32)
    expected = frozen(x)
    assert torch.equal(frozen(x.contiguous(memory_format=torch.channels_last)), expected)
    assert torch.equal(frozen(torch.cat([x, x], 3)[:, :, :, :32]), expected)
    assert torch.equal(frozen(x.requires_grad_()), expected)
    got = frozen(x.detach().numpy())
    assert isinstance(got, np.ndarray) and np.array_equal(got, expected.numpy())
    assert frozen(x[:0]).shape == (0, 7)


@pytest.mark.parametrize("gates", ["plain", "both"])
@pytest.mark.parametrize("batch", [0, 1, 3])
def test_empty_arrays_of_any_strides(batch: int, gates: str, tmp_path: Path) -> None:
    frozen = freeze(make("cifar_resnet8", GATES[gates]), 32, tmp_path)
    x = torch.randn(batch, 3, 32, 32)
    if batch == 0:
        x = x.as_strided(x.shape, (5, 0, 7, 2))
    logits, expected = frozen(x, report=True)
    assert logits.shape == (batch, 7) and expected.decisions.shape == (batch, frozen.decision_bytes)
    if 0 in expected.decisions.shape:
        for strides in ((frozen.decision_bytes, 1), (1, 1), (0, 0), (3, 2)):
            bits = torch.empty(3, 3, dtype=torch.uint8).as_strided(expected.decisions.shape, strides)
            for decisions in (bits, bits.numpy()):
                again, report = frozen(x, decisions=decisions, report=True)
                assert torch.equal(again, logits) and report.macs == expected.macs


def test_stands_for_its_model(tmp_path: Path) -> None:
    model = make("cifar_resnet8", GATES["both"])
    ddi.freeze(model, torch.zeros(1, 3, 32, 32), tmp_path / "net.ddi")
    frozen = ddi.FrozenModel(tmp_path / "net.ddi", max_batch=2)
    x = torch.randn(5, 3, 32, 32)
    with torch.no_grad():
        assert_close(torch.nn.Sequential(frozen, torch.nn.Softmax(1)).eval()(x), model(x).softmax(1))
    assert not frozen.training and not list(frozen.parameters())
    with pytest.raises(RuntimeError, match="cannot be trained"):
        frozen.train()


class InPlace(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        z = torch.nn.functional.hardswish(y)
        torch.nn.functional.relu(y, inplace=True)
        return (z + y).mean((2, 3))


def test_operations_in_place(tmp_path: Path) -> None:
    model = InPlace().eval()
    frozen = freeze(model, 9, tmp_path)
    x = torch.randn(2, 3, 9, 9)
    with torch.no_grad():
        assert_close(frozen(x), model(x))


class SharedMeans(torch.nn.Module):
    """An exit and the layers behind it take the means of the same image."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = torch.nn.Conv2d(3, 4, 3), torch.nn.Conv2d(4, 4, 3)
        self.excite = torch.nn.Conv2d(4, 4, 1)
        self.exits, self.fc = torch.nn.ModuleList([torch.nn.Linear(4, 3)]), torch.nn.Linear(4, 3)

    def forward_exits(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.first(x)
        early = self.exits[0](x.mean((2, 3)))
        x = x * self.excite(torch.nn.functional.adaptive_avg_pool2d(x, 1)).sigmoid()
        return early, self.fc(self.last(x).mean((2, 3)))

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_exits(x)[-1]


def test_what_an_exit_computes_is_computed_without_it(tmp_path: Path) -> None:
    model = SharedMeans().eval()
    frozen = freeze(model, 8, tmp_path)
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        assert_close(frozen(x), model(x))
        assert_close(frozen(x, confidence=1), model(x))


def test_many_threads_share_one_engine(tmp_path: Path) -> None:
    frozen = freeze(make("cifar_resnet20", GATES["both"]), 32, tmp_path)
    xs = [torch.randn(2, 3, 32, 32) for _ in range(4)]
    expected = [frozen(x) for x in xs]
    wrong: list[int] = []

    def work(i: int) -> None:
        for _ in range(30):
            if not torch.equal(frozen(xs[i]), expected[i]):
                wrong.append(i)

    workers = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


def test_nan_stays_in_its_sample(tmp_path: Path) -> None:
    frozen = freeze(make("cifar_resnet8"), 32, tmp_path)
    x = torch.randn(2, 3, 32, 32)
    expected = frozen(x)
    x[0, 0, 0, 0] = float("nan")
    got = frozen(x)
    assert got[0].isnan().all() and torch.equal(got[1], expected[1])


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.randn(3, 32, 32), "has 3 dimensions; expected 4"),
        (torch.randn(1, 3, 32, 31), "images of (3, 32, 31); the network was frozen for (3, 32, 32)"),
        (torch.randn(1, 3, 32, 32).double(), "is float64; expected float32"),
        (torch.randn(6, 3, 32, 32), "has 6 images; this session takes up to 5"),
        ([[0.0]], "expected a torch.Tensor or numpy.ndarray"),
    ],
)
def test_bad_images(images: Any, message: str, tmp_path: Path) -> None:
    frozen = freeze(make("cifar_resnet8"), 32, tmp_path)
    with pytest.raises(ValueError) as error:
        frozen(images)
    assert message in str(error.value)
    assert frozen(torch.zeros(1, 3, 32, 32)).shape == (1, 7)


def test_bad_decisions(tmp_path: Path) -> None:
    frozen = freeze(make("cifar_resnet8", GATES["both"]), 32, tmp_path)
    x = torch.zeros(1, 3, 32, 32)
    with pytest.raises(ValueError, match="decisions has shape"):
        frozen(x, decisions=torch.ones(1, 3, dtype=torch.uint8))
    with pytest.raises(ValueError, match="must be bool or uint8"):
        frozen(x, decisions=torch.ones(1, frozen.decision_bytes))
    with pytest.raises(ValueError, match="decisions is not contiguous"):
        frozen(x, decisions=torch.ones(1, 2 * frozen.decision_bytes, dtype=torch.uint8)[:, ::2])
