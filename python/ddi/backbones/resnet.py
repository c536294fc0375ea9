"""ResNets (He et al., arXiv 1512.03385): for 32x32 images of depth 6n+2, and the ImageNet ones.

Modules are named as in torchvision, whose weights load into the ImageNet ones as they are: stem `conv1, bn1`,
stages `layer1, layer2, ...`, classifier `fc`; a bottleneck has its stride on the 3x3 convolution, and
shape-changing shortcuts are 1x1 convolution and BatchNorm.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from ..blocks.gated_residual_block import GatedResidualBlock
from ..blocks.resident_stage import ResidentStage
from ..gating.gate_pass import spare
from ..gating.site import Visit
from .base import Backbone, Exits
from .registry import register_model

__all__ = ["BasicBlock", "Bottleneck", "ResNet", "Stage"]


def _projection(in_channels: int, channels: int, stride: int) -> nn.Module | None:
    """The shortcut of a block that changes its input's shape, None where x itself can be added."""
    if stride == 1 and in_channels == channels:
        return None
    conv = nn.Conv2d(in_channels, channels, 1, stride, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(channels))


class BasicBlock(nn.Module):
    """relu(bn2(conv2(relu(bn1(conv1(x))))) + shortcut(x)), all convolutions 3x3."""

    expansion = 1

    def __init__(self, in_channels: int, channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample = _projection(in_channels, channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class Bottleneck(nn.Module):
    """relu(bn3(conv3(relu(bn2(conv2(relu(bn1(conv1(x)))))))) + shortcut(x)), convolutions 1x1, 3x3, 1x1.

    The output has four times `channels`, the width of the two interior tensors.
    """

    expansion = 4

    def __init__(self, in_channels: int, channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, 4 * channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * channels)
        self.downsample = _projection(in_channels, 4 * channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))
        y = self.bn3(self.conv3(y))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class Stage(ResidentStage):
    """Residual blocks on maps of one size."""

    def forward(self, x: Tensor, visit: Visit | None = None) -> Tensor:
        # A plain network's forward asks for nothing that torch.compile could not trace.
        gated = visit is None and isinstance(self[-1], GatedResidualBlock)
        before = None
        for i, block in enumerate(self):
            if gated and i < 2:
                y = self.run_resident(x, i)
                if y is not None:
                    return y
            if gated and before is not None:
                spare(x, before, block)
            x, before = block(x), block
            if visit is not None:
                visit(x)
        return x


class ResNet(Backbone):
    """float[N, 3, H, W] -> logits float[N, num_classes].

    Args:
        block: BasicBlock or Bottleneck.
        depths: blocks of each stage; every stage but the first halves the map and doubles the width.
        width: channels of the stem and of the first stage's interiors.
        stem: "cifar", one 3x3 convolution, or "imagenet", which goes to a quarter of the size first.
        num_classes: width of the classifiers.
        exits: see `ddi.create_model`.
        zero_init_residual: whether every block begins as the identity, the last scale of its branch at 0, as
            Goyal et al. (arXiv 1706.02677) have it.
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        depths: Sequence[int],
        width: int,
        stem: Literal["cifar", "imagenet"],
        num_classes: int,
        exits: Exits = None,
        zero_init_residual: bool = False,
    ) -> None:
        super().__init__()
        if not isinstance(num_classes, int) or num_classes < 1:
            raise ValueError(f"ResNet: num_classes must be a positive int, got {num_classes!r}")
        if any(not isinstance(size, int) or size < 1 for size in (width, *depths)) or not depths:
            raise ValueError(f"ResNet: width and depths must be positive ints, got {width!r} and {depths!r}")
        large = stem == "imagenet"
        self.conv1 = nn.Conv2d(3, width, *((7, 2, 3) if large else (3, 1, 1)), bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.maxpool = nn.MaxPool2d(3, 2, 1) if large else nn.Identity()
        channels, self.num_stages = width, len(depths)
        for i, depth in enumerate(depths):
            blocks: list[nn.Module] = []
            for j in range(depth):
                blocks.append(block(channels, width << i, 2 if i > 0 and j == 0 else 1))
                channels = (width << i) * block.expansion
            self.add_module(f"layer{i + 1}", Stage(*blocks))
        self.fc = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if zero_init_residual and isinstance(module, (BasicBlock, Bottleneck)):
                nn.init.zeros_((module.bn3 if isinstance(module, Bottleneck) else module.bn2).weight)
        self._add_exits(exits, num_classes, 224 if large else 32, width)

    def _run(self, x: Tensor, visit: Visit | None) -> Tensor:
        x = self.maxpool(F.relu(self.bn1(self.conv1(x))))
        for i in range(self.num_stages):
            x = self.get_submodule(f"layer{i + 1}")(x, visit)
        return self.fc(x.mean((2, 3)))


def _register_cifar(depth: int) -> None:
    @register_model(f"cifar_resnet{depth}")
    def build(
        num_classes: int = 10,
        exits: Exits = None,
        width: int = 16,
        depths: Sequence[int] | None = None,
        zero_init_residual: bool = False,
    ) -> nn.Module:
        depths = ((depth - 2) // 6,) * 3 if depths is None else depths
        return ResNet(BasicBlock, depths, width, "cifar", num_classes, exits, zero_init_residual)


def _register(depth: int, block: type[BasicBlock] | type[Bottleneck], depths: Sequence[int]) -> None:
    @register_model(f"resnet{depth}")
    def build(num_classes: int = 1000, exits: Exits = None, zero_init_residual: bool = False) -> nn.Module:
        return ResNet(block, depths, 64, "imagenet", num_classes, exits, zero_init_residual)


for _depth in (8, 14, 20, 32, 38, 56, 74, 110):
    _register_cifar(_depth)

_register(18, BasicBlock, (2, 2, 2, 2))
_register(34, BasicBlock, (3, 4, 6, 3))
_register(50, Bottleneck, (3, 4, 6, 3))
_register(101, Bottleneck, (3, 4, 23, 3))
