"""What a resource is: prices of layers, blocks and gates, from which all costs of networks are made."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn as nn
from torch import Tensor

from ..gating.decision import Decision, Mask
from ..gating.geometry import conv_output_size
from ..gating.site import Gate, GatedBlock, GateSite
from .shapes import ungated

__all__ = ["Cost", "Resource", "open_pairs", "open_share"]


@dataclass(frozen=True)
class Cost:
    """What samples cost in a resource.

    Args:
        per_sample: float[N], differentiable in training.
        dense: of a sample in the same network without its gates.
    """

    per_sample: Tensor
    dense: float

    @property
    def share(self) -> Tensor:
        """Scalar: mean cost over the dense cost, differentiable in training."""
        return self.per_sample.mean() / self.dense


class Resource(ABC):
    """Prices of one sample, whose number of samples in a call is shape[0] where that matters.

    Subclasses price layers and gates; blocks and networks follow. Ungated layers (stem, classifier, ...) are
    a fixed part: what is dense less what is dense in the gated blocks.

    Attributes:
        name: "macs", "ms" or "joules".
    """

    name: ClassVar[str]

    @abstractmethod
    def layer(self, layer: Any, shape: Sequence[int]) -> float:
        """Of an ungated Conv2d or Linear on an input of `shape`."""

    @abstractmethod
    def conv(
        self, conv: nn.Conv2d, shape: Sequence[int], before: Mask | None, after: Mask | None
    ) -> Tensor | float:
        """float[N]: of a convolution in a gated block, under the masks on its inputs and outputs."""

    @abstractmethod
    def gate(self, gates: Gate, site: GateSite, shape: torch.Size) -> float:
        """Of the gate that decides for a block whose input is of `shape`, (N, C, H, W)."""

    def dense(self, model: nn.Module, shape: Sequence[int]) -> float:
        """Of a model without its gates, on inputs of shape (N, C, H, W)."""
        total = 0.0
        for path, size in ungated(model, shape).layers:
            # A layer that sees more rows than there are samples runs so often for each.
            rows = shape[0] * size[0], *size[1:]
            total += size[0] * self.layer(model.get_submodule(path), rows)
        return total

    def dense_block(self, block: GatedBlock, shape: Sequence[int]) -> float:
        """Of a gated block's layers as `dense` counts them, on an input of `shape`."""
        total = sum(self.layer(conv, size) for conv, size, _, _ in _chain(block, shape, Decision()))
        return total + sum(self.layer(conv, shape) for conv in block.shortcut_convs())

    def block(self, block: GatedBlock, shape: Sequence[int], decision: Decision) -> Tensor:
        """float64[N]: of a gated block under a decision, its gate left out, differentiable in training."""
        chain = list(_chain(block, shape, decision))
        # In double precision: multiply-adds of large layers are no float32 numbers.
        total: Any = torch.zeros(shape[0], dtype=torch.float64, device=chain[0][0].weight.device)
        for conv, size, before, after in chain:
            total = total + self.conv(conv, size, before, after)
        keep = block.kept(decision)
        total = total if keep is None else total * keep
        return total + sum(self.conv(conv, shape, None, None) for conv in block.shortcut_convs())


def _chain(
    block: GatedBlock, shape: Sequence[int], decision: Decision
) -> Iterator[tuple[nn.Conv2d, tuple[int, ...], Mask | None, Mask | None]]:
    """A block's gated convolutions with their input shapes and masks."""
    size = tuple(shape)
    for conv, before, after in block.chain(decision):
        yield conv, size, before, after
        size = (shape[0], conv.out_channels, *conv_output_size(conv, size[2:]))


def open_share(mask: Mask | None, channels: int) -> Any:
    """float[N]: share of `channels` that a mask opens, differentiable in training; 1.0 without a mask."""
    return 1.0 if mask is None else mask.open_channels(channels).double() / channels


def open_pairs(conv: nn.Conv2d, before: Mask | None, after: Mask | None) -> Any:
    """float[N]: share of a convolution's pairs of input and output channels that are open on both sides."""
    ci, co, groups = conv.in_channels, conv.out_channels, conv.groups
    if groups == 1 or before is None or after is None:
        return open_share(before, ci) * open_share(after, co)
    # A convolution group joins its own channels only, so that the product holds group by group.
    inputs = before.per_channel(ci).weights(ci).unflatten(1, (groups, -1)).mean(2)
    outputs = after.per_channel(co).weights(co).unflatten(1, (groups, -1)).mean(2)
    return (inputs * outputs).mean(1)
