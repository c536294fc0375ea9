"""What gates, gated blocks and prices know of each other: protocols, and the places where gates decide."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
import torch.nn as nn
from torch import Tensor

from .decision import Decision, Mask
from .geometry import conv_output_size

__all__ = ["Gate", "GateConfig", "GateLayer", "GateSite", "GatedBlock", "Visit"]

Visit = Callable[[Tensor], None]
"""Called with the output of every block, in order."""


@dataclass(frozen=True)
class GateSite:
    """One place where a gate decides: a block of the backbone.

    Args:
        name: the block's module path with dots replaced by "_".
        in_channels: channels of the block's input, which the gate sees.
        interior: channels of each tensor that can be gated: the interior ones of a residual block, the new
            channels of a dense layer. Empty where channels are not decided on.
        skippable: whether the block keeps its input's shape, so that its shortcut can stand for it.
        kind: "residual_block", or "dense_layer" for all that reads the concatenation of a dense block.
    """

    name: str
    in_channels: int
    interior: tuple[int, ...]
    skippable: bool
    kind: Literal["residual_block", "dense_layer"] = "residual_block"


@dataclass(frozen=True)
class GateLayer:
    """A linear layer or a convolution that a gate runs on one sample.

    Args:
        weight: float[outputs, inputs], or a kernel.
        positions: output pixels at which the kernel is applied; 1 for a linear layer.
        inputs, outputs: elements that it reads and writes.
    """

    weight: Tensor
    positions: int
    inputs: int
    outputs: int

    @classmethod
    def of_matrix(cls, weight: Tensor) -> GateLayer:
        return cls(weight, 1, weight.shape[1], weight.shape[0])

    @classmethod
    def of_conv(cls, conv: nn.Conv2d, size: Sequence[int]) -> GateLayer:
        """On a map of (height, width)."""
        positions = math.prod(conv_output_size(conv, size))
        return cls(conv.weight, positions, conv.in_channels * math.prod(size), conv.out_channels * positions)

    @property
    def macs(self) -> int:
        return self.weight.numel() * self.positions


class Gate(Protocol):
    """The gate networks of one model, one state per forward pass (nothing is kept between passes).

    Attributes:
        reads: what `decide` takes of a block's input, in which closed channels are 0: its "features",
            float[N, in_channels, H, W], the "means" of them over the pixels, float[N, in_channels], or
            "either". The means of a dense layer's input come for nothing, each channel pooled by its
            producer; so do those of a residual block's on a GPU, behind another one.
    """

    reads: Literal["features", "means", "either"]

    def initial_state(self, x: Tensor) -> Any:
        """The state before the first block of a pass whose input is x: float[N, C, H, W]."""

    def decide(self, site: GateSite, x: Tensor, state: Any) -> tuple[Decision, Any]:
        """The decision for one block whose input the gates see as x, and the next state."""

    def layers(self, site: GateSite, shape: torch.Size) -> list[GateLayer]:
        """What `decide` runs on one sample, for a block's input of `shape`, (N, C, H, W)."""

    def macs(self, site: GateSite, shape: torch.Size) -> int:
        """Multiply-adds of all these layers."""


class GateConfig(Protocol):
    """A frozen dataclass that describes gates and builds them."""

    def build(self, sites: list[GateSite]) -> Any:
        """The nn.Module that implements Gate for these sites."""


class GatedBlock(Protocol):
    """What has to be known of a gated block to price it; see :class:`ddi.blocks.gated_block.GatedBlock`."""

    site: GateSite

    def chain(self, decision: Decision) -> list[tuple[nn.Conv2d, Mask | None, Mask | None]]:
        """The gated convolutions in order, each with the masks on its inputs and on its outputs."""

    def kept(self, decision: Decision) -> Tensor | None:
        """float[N]: 1 where the chain runs at all, differentiable in training; None: everywhere."""

    def shortcut_convs(self) -> list[nn.Conv2d]:
        """Convolutions on the block's input beside the chain, which always run."""
