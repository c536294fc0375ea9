"""Plans of a few kilobytes that together have every kind of step: what the fuzzer starts from.

`python tests/engine/tiny_plans.py` writes them to tests/engine/corpus, next to the inputs that once broke
something, crash_*.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from frozen_models import seeded
from torch import Tensor

import ddi
from ddi.backbones.densenet import DenseNet
from ddi.backbones.resnet import BasicBlock, Bottleneck, ResNet

__all__ = ["CORPUS", "PLANS", "SIZE", "tiny_model", "tiny_plan"]

CORPUS = Path(__file__).parent / "corpus"
SIZE = 8  # of the images
CLASSES = 3


class Mixed(nn.Module):
    """What stands between convolutions: pools, activations, a squeeze-and-excitation, a concatenation."""

    def __init__(self, kinds: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.grouped = nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2, bias=False)
        self.depthwise = nn.Conv2d(6, 6, 3, padding=kinds, dilation=kinds, groups=6 if kinds == 1 else 2)
        self.squeeze, self.excite = nn.Conv2d(6, 2, 1), nn.Conv2d(2, 6, 1)
        self.fc = nn.Linear(18, CLASSES)
        self.kinds = kinds

    def forward(self, x: Tensor) -> Tensor:
        smooth = F.hardswish if self.kinds == 1 else F.silu
        x = smooth(self.first(x))
        x = self.depthwise(F.relu6(self.grouped(x)))
        scale = torch.sigmoid(self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(x, 1)))))
        x = x * scale
        pooled = F.avg_pool2d(x, 3, 1, 1, count_include_pad=self.kinds == 1)
        x = torch.cat((pooled, F.max_pool2d(x, 3, 1, 1), pooled), 1)
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


class Exits(nn.Module):
    """Two classifiers on the way; the first after one convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(c, 4, 3, 2, 1) for c in (3, 4, 4))
        self.exits = nn.ModuleList(nn.Linear(4, CLASSES) for _ in range(2))
        self.fc = nn.Linear(4, CLASSES)

    def forward_exits(self, x: Tensor) -> tuple[Tensor, ...]:
        logits = []
        for conv, head in zip(self.convs, [*self.exits, self.fc], strict=True):
            x = F.relu(conv(x))
            logits.append(head(x.mean((2, 3))))
        return tuple(logits)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_exits(x)[-1]


def _stem() -> nn.Module:
    """The first layers of networks for large images; wide padding, for as many tiles as Winograd asks."""
    pools = nn.MaxPool2d(3, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    return nn.Sequential(nn.Conv2d(3, 4, 7, 2, 6), nn.ReLU(), *pools, nn.Linear(4, CLASSES))


def _resnet(block: type[BasicBlock] | type[Bottleneck], width: int, **gates: bool) -> nn.Module:
    model = ResNet(block, (2, 1), width, "cifar", CLASSES)
    config = ddi.DDIConfig(group_size=2, hidden=2, channel_hidden=2, **gates)
    return ddi.convert_(model, config) if gates else model


def _densenet(gated: bool) -> nn.Module:
    model = DenseNet(2, (2, 2), 4, "cifar", CLASSES)
    return ddi.convert_(model, ddi.DenseDDIConfig(group_size=1, hidden=2)) if gated else model


PLANS: dict[str, tuple[Callable[[], nn.Module], torch.dtype]] = {
    "mixed": (lambda: Mixed(1), torch.float32),
    "mixed_dilated": (lambda: Mixed(2), torch.float32),
    "stem": (_stem, torch.float32),
    "exits": (Exits, torch.float32),
    "exits_bf16": (Exits, torch.bfloat16),
    "resnet": (lambda: _resnet(BasicBlock, 4), torch.float32),
    "resnet_gated": (lambda: _resnet(BasicBlock, 4, layers=True), torch.float32),
    "resnet_gated_bf16": (lambda: _resnet(BasicBlock, 4, layers=True), torch.bfloat16),
    "bottleneck_channels": (lambda: _resnet(Bottleneck, 2, layers=False), torch.float32),
    "densenet": (lambda: _densenet(gated=False), torch.float32),
    "densenet_gated": (lambda: _densenet(gated=True), torch.float32),
}


def tiny_model(name: str) -> Any:
    """What one of PLANS is made of."""
    torch.manual_seed(0)
    return seeded(PLANS[name][0]())


def tiny_plan(name: str) -> bytes:
    """The bytes of one of PLANS."""
    model, dtype = tiny_model(name), PLANS[name][1]
    with tempfile.TemporaryDirectory() as folder:
        ddi.freeze(model, torch.zeros(1, 3, SIZE, SIZE), Path(folder) / "net.ddi", dtype=dtype)
        return (Path(folder) / "net.ddi").read_bytes()


def main() -> None:
    CORPUS.mkdir(exist_ok=True)
    for name in PLANS:
        (CORPUS / f"{name}.ddi").write_bytes(tiny_plan(name))


if __name__ == "__main__":
    main()
