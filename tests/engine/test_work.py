"""What a run has done: multiply-adds and bytes, counted anew from shapes and decisions."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.nn as nn
from frozen_models import freeze, make, make_outspoken, random_images, seeded

import ddi
from ddi.backbones.densenet import DenseNet
from ddi.backbones.resnet import BasicBlock, Bottleneck, ResNet
from ddi_kernels import engine

pytest.importorskip("ddi_kernels._engine", reason="ddi_kernels._engine is not built")

GROUP, DENSE_GROUP = 3, 5  # channels of a bit
GATES = {
    "plain": None,
    "both": ddi.DDIConfig(group_size=GROUP),
    "channels": ddi.DDIConfig(group_size=GROUP, layers=False),
    "dense": ddi.DenseDDIConfig(group_size=DENSE_GROUP),
}
RESIDUAL = ("plain", "both", "channels")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.int8}
BYTES = {"fp32": 4, "bf16": 2, "int8": 1}  # of an element of a convolution
ENERGY = (3e-12, 2e-11, 7e-12)


class Call(NamedTuple):
    """A convolution or linear layer of a model and the shapes of what it read and wrote."""

    name: str
    layer: Any
    x: torch.Size
    y: torch.Size

    @property
    def block(self) -> str:
        return self.name.rpartition(".")[0]


@torch.no_grad()
def calls_of(model: nn.Module, size: int) -> list[Call]:
    """In order, those of all exits too."""
    calls: list[Call] = []
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.register_forward_hook(
                lambda layer, x, y, name=name: calls.append(Call(name, layer, x[0].shape, y.shape))
            )
    model.forward_exits(torch.zeros(1, 3, size, size))  # type: ignore[operator]
    return calls


def linear(weight: Any) -> np.ndarray:
    out, inputs = weight.shape
    return np.array([out * inputs, 4 * out * inputs, 4 * (out + inputs)])


def convolution(call: Call, open_in: int, open_out: int, size: int) -> np.ndarray:
    kh, kw = call.layer.kernel_size
    weights = open_in * open_out * kh * kw // call.layer.groups
    activations = open_in * call.x[2:].numel() + open_out * call.y[2:].numel()
    return np.array([weights * call.y[2:].numel(), size * weights, size * activations])


def opened(frozen: engine.Engine, bits: Any) -> dict[str, tuple[bool, list[list[bool]]]]:
    """Of each gated block its layer bit and, of each of its masks, the bits of the groups."""
    found, at = {}, 0
    for gate in frozen.gates:
        keep = bool(bits[at]) if gate["keep"] else True
        at += gate["keep"]
        groups = []
        for count in gate["groups"]:
            groups.append([bool(bit) for bit in bits[at : at + count]])
            at += count
        found[gate["name"]] = keep, groups
    return found


def channels(groups: list[bool], size: int, most: int) -> int:
    return sum(len(range(g * size, min((g + 1) * size, most))) for g, bit in enumerate(groups) if bit)


def gate_work(model: Any, block: str) -> np.ndarray:
    gates, site = model.ddi_gates, model.get_submodule(block).site
    name = site.name
    weights = [
        p for key, p in gates.named_parameters() if key.startswith(f"channel.{name}.") and p.dim() == 2
    ]
    if hasattr(gates, "lstm"):
        weights += [gates.project[str(site.in_channels)].weight, gates.lstm.weight_ih, gates.lstm.weight_hh]
        weights += [gates.layer[name].weight] if site.skippable and hasattr(gates, "layer") else []
    return sum(map(linear, weights), np.zeros(3, int))


def resnet_work(model: Any, calls: Iterable[Call], frozen: engine.Engine, bits: Any) -> np.ndarray:
    """Of calls of a ResNet without gates, at the bits of a sample for `model`, which may have some."""
    gates, total = opened(frozen, bits), np.zeros(3, int)
    for index, call in enumerate(calls):
        if isinstance(call.layer, nn.Linear):
            total += linear(call.layer.weight)
            continue
        size = BYTES[frozen.dtype]
        if index == 0 and frozen.dtype == "int8":
            size = 4  # the first convolution stays as it is
        open_in, open_out = call.layer.in_channels, call.layer.out_channels
        if call.block in gates:
            keep, masks = gates[call.block]
            at = int(call.name[-1]) - 1
            total += gate_work(model, call.block) if at == 0 else 0
            if not keep:
                continue
            open_in = channels(masks[at - 1], GROUP, open_in) if at > 0 else open_in
            open_out = channels(masks[at], GROUP, open_out) if at < len(masks) else open_out
        total += convolution(call, open_in, open_out, size)
    return total


def densenet_work(model: Any, calls: list[Call], frozen: engine.Engine, bits: Any) -> np.ndarray:
    """The same of a DenseNet: what is open of the concatenation grows layer by layer."""
    gates, total, open_now = opened(frozen, bits), np.zeros(3, int), 0
    for before, call in pairwise([calls[0], *calls]):
        conv, size = call.layer, BYTES[frozen.dtype]
        if isinstance(conv, nn.Linear):
            total += linear(conv.weight)
        elif call.name.endswith("conv2"):
            _, (groups,) = gates.get(call.block, (True, [[True] * conv.out_channels]))
            width = DENSE_GROUP if call.block in gates else 1
            new = channels(groups, width, conv.out_channels)
            if new > 0:
                total += convolution(before, open_now, before.layer.out_channels, size)
                total += convolution(call, conv.in_channels, new, size)
            total += gate_work(model, call.block) if call.block in gates else 0
            open_now += new
        elif not call.name.endswith("conv1"):  # of a layer, whose conv2 decides whether both are run
            total += convolution(call, open_now or conv.in_channels, conv.out_channels, size)
            open_now = conv.out_channels
    return total


def counts(report: engine.Report) -> list[tuple[int, int, int]]:
    return list(zip(report.macs, report.weight_bytes, report.activation_bytes, strict=True))


def build(name: str, gates: str = "plain") -> Any:
    torch.manual_seed(0)
    if name == "densenet":
        model: nn.Module = DenseNet(7, (3, 2), 8, "cifar", 5)
    else:
        model = ResNet(Bottleneck if name == "bottleneck" else BasicBlock, (2, 2), 8, "cifar", 5)
    return seeded(model if GATES[gates] is None else ddi.convert_(model, GATES[gates]))


CASES = [
    (name, dtype, gates)
    for name, all_gates in {"basic": RESIDUAL, "bottleneck": RESIDUAL, "densenet": ("plain", "dense")}.items()
    for dtype in BYTES
    for gates in all_gates
    if name != "densenet" or dtype != "int8"  # of whose layers none is of int8
]


@pytest.mark.parametrize(("name", "dtype", "gates"), CASES)
def test_counts_are_those_of_shapes_and_decisions(name: str, dtype: str, gates: str, tmp_path: Path) -> None:
    model = build(name, gates)
    calls = calls_of(build(name), 10)
    calibration = {"calibration": torch.randn(4, 3, 10, 10)} if dtype == "int8" else {}
    frozen = freeze(model, 10, tmp_path, dtype=DTYPES[dtype], **calibration)
    assert frozen.dtype == dtype
    work = densenet_work if name == "densenet" else resnet_work
    for share in (0.0, 0.5, 0.9, 1.0):
        bits = (torch.rand(3, frozen.decision_bytes) < share).byte()
        _, report = frozen(torch.randn(3, 3, 10, 10), decisions=bits, report=True, energy=ENERGY)
        assert counts(report) == [tuple(work(model, calls, frozen, row)) for row in bits]
        expected = [ENERGY[0] * m + ENERGY[1] * w + ENERGY[2] * a for m, w, a in counts(report)]
        assert report.joules == expected
    assert counts(report)[0] == frozen.exit_worst_work[-1]


def until(calls: list[Call], exit: int, heads: Iterable[int]) -> list[Call]:
    """All of the trunk up to a classifier, and those that were asked."""
    own = [call.name for call in calls if call.name.startswith(f"exits.{exit}.")]
    last = [call.name for call in calls].index(own[-1]) if own else len(calls) - 1
    asked = tuple(f"exits.{head}." for head in heads)
    return [c for c in calls[: last + 1] if not c.name.startswith("exits.") or c.name.startswith(asked)]


def test_work_of_exits(tmp_path: Path) -> None:
    calls = calls_of(make("cifar_resnet14", None, "default"), 20)
    model = make("cifar_resnet14", GATES["both"], "default")
    frozen = freeze(model, 20, tmp_path)
    bits = torch.ones(frozen.decision_bytes)
    for exit, worst in enumerate(frozen.exit_worst_work):
        assert worst == tuple(resnet_work(model, until(calls, exit, [exit]), frozen, bits))
        assert worst[0] == frozen.exit_worst_macs[exit]


def test_exits_that_were_asked_are_paid_for(tmp_path: Path) -> None:
    calls = calls_of(make("cifar_resnet14", None, "default"), 20)
    model = make_outspoken("cifar_resnet14", GATES["both"])
    frozen = freeze(model, 20, tmp_path)
    answered = set()
    for i in range(40):
        x = random_images(1 + i % 2, 20)
        _, report = frozen(x, confidence=0.3 + 0.017 * i, report=True)
        expected = [
            tuple(resnet_work(model, until(calls, exit, range(exit + 1)), frozen, row))
            for exit, row in zip(report.exits, report.decisions, strict=True)
        ]
        assert counts(report) == expected
        answered |= set(report.exits)
    assert len(answered) > 2
