"""The gates that the authors of Dual Dynamic Inference put on DenseNets: small convolutional networks.

Concatenation -> 1x1 convolution with stride 2 -> BatchNorm -> ReLU -> 3x3 convolution to the layer's new
channels -> mean over the pixels -> Linear to one bit per group, hard at the threshold, straight-through. It
costs a large part of what it decides over, where `DenseDDIConfig` reads means that come for nothing: here for
fidelity to the paper, and to compare with.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from ..gating.concatenation import channel_means
from ..gating.geometry import conv_output_size
from ..gating.site import GateLayer, GateSite
from .dense_ddi import DenseGates
from .threshold import check_sizes, open_linear, require_kind, threshold_logit

__all__ = ["DenseConvConfig", "DenseConvGates"]


@dataclass(frozen=True)
class DenseConvConfig:
    """Gating of a DenseNet by the authors' own gate network, which the engine does not run.

    Args:
        group_size: channels per gate bit; 1 is the paper's.
        hidden: channels between a gate's two convolutions; 64 is the authors'.
        threshold: a gate opens where its probability exceeds this.
        open_bias: initial logit of every gate; positive, so that a converted model starts fully open.

    Example:
        >>> model = ddi.create_model("densenet_bc100", gates=ddi.DenseConvConfig())
    """

    group_size: int = 1
    hidden: int = 64
    threshold: float = 0.5
    open_bias: float = 2.0

    def __post_init__(self) -> None:
        check_sizes(self, ("group_size", "hidden"))
        threshold_logit("DenseConvConfig", self.threshold)

    def build(self, sites: list[GateSite]) -> DenseConvGates:
        """The gate networks for the given layers of dense blocks."""
        require_kind(self, sites, "dense_layer", "DDIConfig")
        return DenseConvGates(self, sites)


class ConvGate(nn.Module):
    """float[N, in_channels, H, W] -> logits float[N, groups] of a layer with `growth` new channels."""

    def __init__(self, in_channels: int, hidden: int, growth: int, groups: int, open_bias: float) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(in_channels, hidden, 1, stride=2, bias=False)
        self.norm = nn.BatchNorm2d(hidden)
        self.conv = nn.Conv2d(hidden, growth, 3, padding=1, bias=False)
        self.expand = open_linear(growth, groups, open_bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.expand(channel_means(self.conv(F.relu(self.norm(self.reduce(x))))))

    def layers(self, size: tuple[int, ...]) -> list[GateLayer]:
        """What it runs on a map of (height, width)."""
        reduced = conv_output_size(self.reduce, size)
        convs = [GateLayer.of_conv(self.reduce, size), GateLayer.of_conv(self.conv, reduced)]
        return [*convs, GateLayer.of_matrix(self.expand.weight)]


class DenseConvGates(DenseGates):
    """The gates of :class:`DenseConvConfig`. Their batch norms learn statistics in train mode, as any do."""

    reads: ClassVar = "features"

    def _gate(self, site: GateSite) -> ConvGate:
        config = self.config
        return ConvGate(
            site.in_channels, config.hidden, site.interior[0], self._groups(site), config.open_bias
        )

    def _logits(self, gate: Any, x: Tensor) -> Tensor:
        return gate(x.to(gate.reduce.weight.dtype))

    def _layers(self, gate: Any, shape: torch.Size) -> list[GateLayer]:
        return gate.layers(tuple(shape[2:]))
