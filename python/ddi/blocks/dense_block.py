"""The blocks of DenseNet-BC (Huang et al., arXiv 1608.06993), named as in torchvision.

A dense layer adds a few new channels to the concatenation of all before it; a transition halves channels and
map.
"""

from __future__ import annotations

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from ..gating.site import Visit

__all__ = ["DenseBlock", "DenseLayer", "Transition"]


class DenseLayer(nn.Module):
    """The new channels conv2(relu(norm2(conv1(relu(norm1(x)))))) of a concatenation x, 1x1 and 3x3."""

    def __init__(self, in_channels: int, growth: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, 4 * growth, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(4 * growth)
        self.conv2 = nn.Conv2d(4 * growth, growth, 3, 1, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(F.relu(self.norm2(self.conv1(F.relu(self.norm1(x))))))


class DenseBlock(nn.Sequential):
    """Layers that each see the block's input and all new channels before them."""

    def __init__(self, in_channels: int, growth: int, depth: int) -> None:
        super().__init__()
        for i in range(depth):
            self.add_module(f"denselayer{i + 1}", DenseLayer(in_channels + i * growth, growth))

    def forward(self, x: Tensor, visit: Visit | None = None) -> Tensor:
        for layer in self:
            x = torch.cat((x, layer(x)), dim=1)
            if visit is not None:
                visit(x)
        return x


class Transition(nn.Module):
    """avg_pool(conv(relu(norm(x)))): half the channels and half the map."""

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(in_channels)
        self.conv = nn.Conv2d(in_channels, in_channels // 2, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(self.conv(F.relu(self.norm(x))), 2)
