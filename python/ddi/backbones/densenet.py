"""DenseNet-BC (Huang et al., arXiv 1608.06993): for 32x32 images of depth 40 and 100, and the ImageNet ones.

A dense layer adds a few new channels to the concatenation of all before it; a transition halves channels and
map. Modules are named as in torchvision, whose state_dict loads into the ImageNet ones as it is:
`features.conv0, norm0, denseblock1.denselayer1, transition1, ..., norm5` and `classifier`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from ..blocks.dense_block import DenseBlock, DenseLayer, Transition
from ..gating.site import Visit
from .base import Backbone, Exits
from .registry import register_model

__all__ = ["DenseBlock", "DenseLayer", "DenseNet", "Features", "Transition"]


class Features(nn.Sequential):
    """Everything but the classifier; `visit` sees the concatenation behind every dense layer."""

    def forward(self, x: Tensor, visit: Visit | None = None) -> Tensor:
        for module in self:
            x = module(x, visit) if isinstance(module, DenseBlock) else module(x)
        return x


class DenseNet(Backbone):
    """float[N, 3, H, W] -> logits float[N, num_classes].

    Args:
        growth: new channels of a layer.
        depths: layers of each dense block.
        width: channels of the stem.
        stem: "cifar", one 3x3 convolution, or "imagenet", which goes to a quarter of the size first.
        num_classes: width of the classifiers.
        exits: see `ddi.create_model`.
    """

    def __init__(
        self,
        growth: int,
        depths: Sequence[int],
        width: int,
        stem: Literal["cifar", "imagenet"],
        num_classes: int,
        exits: Exits = None,
    ) -> None:
        super().__init__()
        if not isinstance(num_classes, int) or num_classes < 1:
            raise ValueError(f"DenseNet: num_classes must be a positive int, got {num_classes!r}")
        large, channels = stem == "imagenet", width
        self.depths, self.features = tuple(depths), Features()
        self.features.add_module(
            "conv0", nn.Conv2d(3, width, *((7, 2, 3) if large else (3, 1, 1)), bias=False)
        )
        if large:
            self.features.add_module("norm0", nn.BatchNorm2d(width))
            self.features.add_module("relu0", nn.ReLU(inplace=True))
            self.features.add_module("pool0", nn.MaxPool2d(3, 2, 1))
        for i, depth in enumerate(depths, 1):
            self.features.add_module(f"denseblock{i}", DenseBlock(channels, growth, depth))
            channels += depth * growth
            if i < len(depths):
                self.features.add_module(f"transition{i}", Transition(channels))
                channels //= 2
        self.features.add_module("norm5", nn.BatchNorm2d(channels))
        self.classifier = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
        nn.init.zeros_(self.classifier.bias)
        self._add_exits(exits, num_classes, 224 if large else 32, width)

    def _run(self, x: Tensor, visit: Visit | None) -> Tensor:
        return self.classifier(F.relu(self.features(x, visit)).mean((2, 3)))

    def _default_positions(self, macs: Sequence[int]) -> list[int]:
        """In the middle of the first dense block, and at 1/4 and 3/4 of each other one."""
        positions, before = [], 0
        for i, depth in enumerate(self.depths):
            for share in (0.25, 0.75) if i else (0.5,):
                positions.append(before + int(depth * share + 0.5))
            before += depth
        return positions


def _register_cifar(depth: int) -> None:
    @register_model(f"densenet_bc{depth}")
    def build(num_classes: int = 10, exits: Exits = None) -> nn.Module:
        return DenseNet(12, ((depth - 4) // 6,) * 3, 24, "cifar", num_classes, exits)


def _register(depth: int, depths: Sequence[int], growth: int = 32) -> None:
    @register_model(f"densenet{depth}")
    def build(num_classes: int = 1000, exits: Exits = None) -> nn.Module:
        return DenseNet(growth, depths, 2 * growth, "imagenet", num_classes, exits)


for _depth in (40, 100):
    _register_cifar(_depth)

_register(121, (6, 12, 24, 16))
_register(161, (6, 12, 36, 24), growth=48)
_register(169, (6, 12, 32, 32))
_register(201, (6, 12, 48, 32))
