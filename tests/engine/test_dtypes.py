"""Plans of bfloat16 and int8: near the float32 model at any decisions, int8 exactly as its operators say."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from frozen_models import freeze, make, seeded
from tolerances import assert_close
from torch import Tensor

import ddi
from bench.decisions import forced
from ddi.backbones.resnet import BasicBlock, Bottleneck
from ddi.freeze import weights
from ddi.freeze.ranges import input_ranges
from ddi_kernels import backend, engine, fold_bn, gated_conv2d_int8, quantize, quantize_weight

pytest.importorskip("ddi_kernels._engine", reason="ddi_kernels._engine is not built")

# Of the logits of a batch, by their norms, in untrained networks, whose errors no training has made harmless.
ERRORS = {torch.bfloat16: 0.02, torch.int8: 0.08}
MODELS = {"cifar_resnet20": 32, "resnet18": 64, "resnet50": 64, "densenet_bc40": 32}
BOTH = ddi.DDIConfig(group_size=4)
# The layers of DenseNets: any channels open, so that pairs of bfloat16 are half open, too.
GATED = {name: (size, BOTH) for name, size in MODELS.items() if "densenet" not in name} | {
    "densenet_bc40": (32, ddi.DenseDDIConfig()),
    "densenet121": (64, ddi.DenseDDIConfig(group_size=5)),
}
# Slow ones beside another of their kind: basic blocks, and the layers of a DenseNet.
SLOW = {"resnet18", "densenet121"}


def cases(names: Iterable[str]) -> list[Any]:
    return [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in names]


def options(dtype: torch.dtype, size: int, channels: int = 3) -> dict[str, Any]:
    images = torch.randn(16, channels, size, size, generator=torch.Generator().manual_seed(1))
    return {"dtype": dtype} | ({"calibration": images} if dtype == torch.int8 else {})


def error(got: Tensor, expected: Tensor) -> float:
    return ((got - expected).norm() / expected.norm()).item()


@torch.no_grad()
@pytest.mark.parametrize("dtype", ERRORS, ids=str)
@pytest.mark.parametrize("name", cases(MODELS))
def test_is_near_the_model(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    size, model = MODELS[name], make(name)
    frozen = freeze(model, size, tmp_path, **options(dtype, size))
    for batch in (1, 5):
        x = torch.randn(batch, 3, size, size)
        logits, report = frozen(x, report=True)
        assert 0 < error(logits, model(x)) < ERRORS[dtype]
        assert report.macs == ddi.count_macs(model, x).per_sample.tolist()


@torch.no_grad()
@pytest.mark.parametrize("dtype", ERRORS, ids=str)
@pytest.mark.parametrize("name", cases(GATED))
def test_is_near_the_gated_model(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    size, gates = GATED[name]
    model = make(name, gates)
    count = freeze(model, size, tmp_path).decision_bytes
    # Scales hold for decisions that calibration has seen.
    with forced(model, torch.rand(16, count) < torch.linspace(0, 1, 16)[:, None]):
        frozen = freeze(model, size, tmp_path, **options(dtype, size))
    for batch in (1, 5):
        x = torch.randn(batch, 3, size, size)
        for share in (None, 0.0, 0.5, 1.0):
            bits = None if share is None else (torch.rand(batch, count) < share).byte()
            logits, report = frozen(x, decisions=bits, report=True)
            assert bits is None or torch.equal(report.decisions, bits)
            with forced(model, report.decisions):
                assert error(logits, model(x)) < ERRORS[dtype]
                expected = ddi.count_macs(model, x).per_sample.tolist()
            assert report.macs == pytest.approx(expected, rel=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("dtype", ERRORS, ids=str)
def test_gates_decide_as_in_float32(dtype: torch.dtype, tmp_path: Path) -> None:
    model = make("cifar_resnet20", BOTH)
    x = torch.randn(200, 3, 32, 32)
    bits = []
    for kwargs in ({}, options(dtype, 32)):
        frozen = freeze(model, 32, tmp_path, **kwargs)
        reports = [frozen(part, report=True)[1] for part in x.split(5)]
        bits.append(torch.cat([report.decisions for report in reports]))
    assert 0.2 < bits[0].float().mean() < 0.8
    assert (bits[0] == bits[1]).float().mean() >= 0.995


@torch.no_grad()
def test_threads_change_nothing_in_int8(tmp_path: Path) -> None:
    model = make("resnet18", BOTH)
    one, three = (freeze(model, 64, tmp_path, threads=n, **options(torch.int8, 64)) for n in (1, 3))
    for batch in (1, 5):
        x = torch.randn(batch, 3, 64, 64)
        assert torch.equal(one(x), three(x))


@torch.no_grad()
@pytest.mark.parametrize("dtype", ERRORS, ids=str)
def test_exits_answer_as_the_models(dtype: torch.dtype, tmp_path: Path) -> None:
    model = make("cifar_resnet38", exits="default")
    frozen = freeze(model, 32, tmp_path, **options(dtype, 32))
    x = torch.randn(2, 3, 32, 32)
    expected = model.forward_exits(x)
    for macs in frozen.exit_worst_macs:
        logits, report = frozen(x, max_macs=macs, report=True)
        assert error(logits, expected[report.exit]) < ERRORS[dtype]


class Exposed(nn.Module):
    """A part of a network behind an exact copy of its image, its output, exactly, as logits."""

    def __init__(self, body: nn.Module, channels: int, size: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, channels, 1, bias=False)
        self.stem.weight.data = torch.eye(channels)[:, :, None, None]
        self.body = body
        numel = body(torch.zeros(1, channels, size, size)).numel()
        self.fc = nn.Linear(numel, numel, bias=False)
        self.fc.weight.data = torch.eye(numel)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.body(self.stem(x)).flatten(1))


def run_conv(layers: tuple[Any, Any], x: Tensor, x_scale: float, **kwargs: Any) -> Tensor:
    """A convolution and its BatchNorm, or None, by the operator's reference."""
    conv, bn = layers
    weight, bias = (conv.weight, conv.bias) if bn is None else fold_bn(conv.weight, conv.bias, bn)
    kwargs |= {"stride": conv.stride, "padding": conv.padding, "x_scale": x_scale}
    with backend("reference"):
        return gated_conv2d_int8(x, *quantize_weight(weight), bias, **kwargs)


def run_block(block: Any, x: Tensor, scales: dict[str, float], masks: list[Tensor | None]) -> Tensor:
    """A residual block as its operators, one after the other."""
    names = [name for name in ("conv1", "conv2", "conv3") if hasattr(block, name)]
    layers = [(getattr(block, name), getattr(block, name.replace("conv", "bn"))) for name in names]
    steps = [scales[f"body.{name}"] for name in names]
    first = h = quantize(x, steps[0])
    residual = x if block.downsample is None else run_conv(tuple(block.downsample), first, steps[0])
    gating: dict[str, Any] = {}
    for i, mask in enumerate(masks):
        out = gating | {"out_mask": mask, "out_group_size": 4}
        h = run_conv(layers[i], h, steps[i], out_scale=steps[i + 1], activation="relu", **out)
        gating = {"in_mask": mask, "in_group_size": 4}
    return run_conv(layers[-1], h, steps[-1], residual=residual, activation="relu", **gating)


BLOCKS = {
    "basic": lambda: BasicBlock(20, 20),
    "basic, projected": lambda: BasicBlock(20, 24, 2),
    "bottleneck": lambda: Bottleneck(20, 5),
    "bottleneck, projected": lambda: Bottleneck(20, 8, 2),
}


@torch.no_grad()
@pytest.mark.parametrize("gates", [None, BOTH], ids=["plain", "gated"])
@pytest.mark.parametrize("kind", BLOCKS)
def test_blocks_are_their_operators(kind: str, gates: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model: Any = Exposed(seeded(BLOCKS[kind]()), 20, 6).eval()
    if gates is not None:
        ddi.convert_(model, gates)
    calibration = torch.randn(8, 20, 6, 6)
    ranges = input_ranges(model, calibration, calibration)
    ddi.freeze(model, calibration, tmp_path / "net.ddi", torch.int8, calibration)
    scales = {path: largest / 127 for path, largest in ranges.items()}
    count = sum(hasattr(model.body, name) for name in ("conv2", "conv3"))
    frozen = engine.load(tmp_path / "net.ddi", max_batch=5)
    for _ in range(3):
        for batch in (1, 5):
            x = 1.5 * torch.randn(batch, 20, 6, 6)  # some of it out of range
            bits, keep, masks = None, torch.ones(batch, dtype=torch.bool), [None] * count
            if gates is not None:
                bits = torch.rand(batch, frozen.decision_bytes) < 0.5
                groups = frozen.gates[0]["groups"]
                keep = bits[:, 0] if frozen.gates[0]["keep"] else keep
                masks = list(bits[:, bits.shape[1] - sum(groups) :].split(groups, 1))
            expected = run_block(model.body, x, scales, masks)
            expected = torch.where(keep[:, None, None, None], expected, x) if not keep.all() else expected
            assert torch.equal(frozen(x, decisions=bits), expected.flatten(1))


class Branches(nn.Module):
    """Convolutions that read and write parts of pixels, one with a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Conv2d(6, 18, 3, 1, 1)
        self.narrow = nn.Conv2d(6, 5, 1)
        self.inner = nn.Conv2d(5, 7, 3, 1, 1, bias=False)
        self.last = nn.Conv2d(30, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        narrow = F.relu(self.narrow(x))
        return self.last(torch.cat([F.relu(self.wide(x)), narrow, self.inner(narrow)], 1)) + x


@torch.no_grad()
def test_convolutions_are_their_operator(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model: Any = Exposed(Branches(), 6, 5).eval()
    calibration = torch.randn(8, 6, 5, 5)
    ranges = input_ranges(model, calibration, calibration)
    ddi.freeze(model, calibration, tmp_path / "net.ddi", torch.int8, calibration)
    frozen = engine.load(tmp_path / "net.ddi", max_batch=5)

    def run(name: str, x: Tensor, **kwargs: Any) -> Tensor:
        scale = ranges[f"body.{name}"] / 127
        return run_conv((getattr(model.body, name), None), quantize(x, scale), scale, **kwargs)

    for batch in (1, 5):
        x = torch.randn(batch, 6, 5, 5)
        narrow = run("narrow", x, activation="relu")
        parts = [run("wide", x, activation="relu"), narrow, run("inner", narrow)]
        assert torch.equal(frozen(x), run("last", torch.cat(parts, 1), residual=x).flatten(1))


@torch.no_grad()
@pytest.mark.parametrize("gates", [None, ddi.DenseDDIConfig(group_size=4)], ids=["plain", "gated"])
def test_densenets_of_int8_stay_float32(gates: Any, tmp_path: Path) -> None:
    model, x = make("densenet_bc40", gates), torch.randn(2, 3, 32, 32)
    expected = freeze(model, 32, tmp_path)(x)
    assert torch.equal(freeze(model, 32, tmp_path, **options(torch.int8, 32))(x), expected)


@torch.no_grad()
def test_densenets_of_bfloat16_share_out_their_work(tmp_path: Path) -> None:
    model = make("densenet_bc40", ddi.DenseDDIConfig())
    one, three = (freeze(model, 32, tmp_path, threads=n, dtype=torch.bfloat16) for n in (1, 3))
    for batch in (1, 5):
        x = torch.randn(batch, 3, 32, 32)
        assert torch.equal(one(x), three(x))


@torch.no_grad()
def test_what_int8_does_not_have_stays_float32(tmp_path: Path) -> None:
    torch.manual_seed(0)
    most = 2**17  # of products
    model = nn.Sequential(
        nn.Conv2d(4, 8, 1), nn.ReLU(), nn.Conv2d(8, 16, 3, padding=1, groups=8), nn.Flatten()
    )
    wide = nn.Sequential(nn.Conv2d(4, most // 4, 1), nn.ReLU(), nn.Conv2d(most // 4, 1, 2), nn.Flatten())
    for net in (model, wide):
        x = torch.randn(2, 4, 2, 2)
        ddi.freeze(net.append(nn.Linear(net(x).shape[1], 3)), x, tmp_path / "net.ddi", torch.int8, x)
        assert_close(engine.load(tmp_path / "net.ddi", max_batch=2)(x), net(x))
    with pytest.raises(ddi.FreezeError, match="2 has groups, which the engine does not run in bfloat16"):
        ddi.freeze(model, x, tmp_path / "net.ddi", torch.bfloat16)


@pytest.mark.parametrize("scale", [0.0, -1.0, 1e-40, float("inf"), float("nan")])
def test_scales_are_checked(scale: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights.ConvWords, "scale", lambda *_: scale)
    with pytest.raises(ValueError, match="is not positive and finite"):
        freeze(make("cifar_resnet8"), 32, tmp_path, **options(torch.int8, 32))


def test_sums_that_could_overflow_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Conv2d(4, 2**15, 1), nn.ReLU(), nn.Conv2d(2**15, 1, 2), nn.Flatten())
    model.append(nn.Linear(1, 3))
    monkeypatch.setattr(weights, "_MOST_PRODUCTS", 2**18)
    x = torch.randn(2, 4, 2, 2)
    ddi.freeze(model, x, tmp_path / "net.ddi", torch.int8, x)
    with pytest.raises(ValueError, match="sums of int8 products could overflow"):
        engine.load(tmp_path / "net.ddi")


@torch.no_grad()
def test_calibration_takes_what_a_loader_yields(tmp_path: Path) -> None:
    model, images = make("cifar_resnet8", BOTH).train(), torch.randn(40, 3, 32, 32)
    expected = input_ranges(model, images, images)
    assert model.training and all(value > 0 for value in expected.values())
    pairs = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(images, torch.zeros(40)), 7)
    for form in (pairs, list(images.split(9)), (batch for batch in images.split(40))):
        assert input_ranges(model, form, images) == pytest.approx(expected, rel=1e-5)
    assert not any(module._forward_pre_hooks for module in model.modules() if isinstance(module, nn.Conv2d))


NAN = torch.full((1, 3, 32, 32), float("nan"))
BAD = [
    (torch.int8, None, "got no calibration with dtype torch.int8"),
    (torch.float32, torch.zeros(1, 3, 32, 32), "got calibration with dtype torch.float32"),
    (torch.int8, torch.zeros(0, 3, 32, 32), "calibration has no images"),
    (torch.int8, [], "calibration has no images"),
    (
        torch.int8,
        torch.zeros(3, 32, 32),
        r"yields float32\[3, 32, 32\], expected images float\[N, 3, 32, 32\]",
    ),
    (torch.int8, [torch.zeros(1, 3, 32, 30)], r"yields float32\[1, 3, 32, 30\], expected"),
    (torch.int8, torch.zeros(1, 3, 32, 32, dtype=torch.uint8), r"yields uint8\[1, 3, 32, 32\], expected"),
    (torch.int8, ["images"], "yields str, expected"),
    (torch.int8, 3, "calibration is int, expected"),
    (torch.int8, NAN, "images with NaN or infinity"),
    (torch.float16, None, "dtype must be one of"),
]


@pytest.mark.parametrize(("dtype", "calibration", "message"), BAD)
def test_bad_calibration(dtype: torch.dtype, calibration: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        freeze(make("cifar_resnet8"), 32, tmp_path, dtype=dtype, calibration=calibration)
    assert not list(tmp_path.iterdir())
