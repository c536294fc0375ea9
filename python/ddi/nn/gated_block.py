"""What all gated blocks share: the layers of the block they stand for, and the cost of a decision.

A gated block is a chain of convolutions with a mask before or behind some of them. A convolution costs the
product of its open input and open output fractions, which is all that MACs and measured tables ask for.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn as nn
from torch import Tensor

from ..cost import conv_macs, conv_output_size, open_share
from ..decision import Decision, Mask
from ..gates import GateSite
from .prepared import PreparedModule

__all__ = ["GatedBlock", "GatedConv"]

GatedConv = tuple[nn.Conv2d, Mask | None, Mask | None]
"""A convolution, the mask on its inputs and the mask on its outputs."""


class GatedBlock(PreparedModule):
    """Base of the gated forms of a backbone's blocks.

    Args:
        block: the module to stand for; its layers named in `layers` are shared, so that state_dict keys do
            not change. Kept as `__dict__["original"]`, outside the module tree, for revert_.
        site: what the gates know of the block.
    """

    layers: ClassVar[tuple[str, ...]]

    def __init__(self, block: Any, site: GateSite) -> None:
        super().__init__()
        for name in self.layers:
            setattr(self, name, getattr(block, name))
        self.site = site
        self.__dict__["original"] = block
        self.train(block.training)

    def chain(self, decision: Decision) -> list[GatedConv]:
        """The gated convolutions in order, each on the output of the one before."""
        raise NotImplementedError

    def kept(self, decision: Decision) -> Tensor | None:
        """float[N]: 1 where the chain runs at all, differentiable in training; None: everywhere."""
        return decision.keep_weights()

    def shortcut_convs(self) -> list[nn.Conv2d]:
        """Convolutions on the block's input beside the chain, which always run."""
        return []

    def dense_macs(self, shape: torch.Size) -> int:
        """Multiply-adds per sample with everything open, for an input of `shape`."""
        size, total = tuple(shape[2:]), sum(conv_macs(conv, shape[2:]) for conv in self.shortcut_convs())
        for conv, _, _ in self.chain(Decision()):
            total += conv_macs(conv, size)
            size = conv_output_size(conv, size)
        return total

    def macs(self, shape: torch.Size, decision: Decision) -> Tensor:
        """float32[N]: multiply-adds per sample under a decision, differentiable in training."""
        chain = self.chain(decision)
        size, total = tuple(shape[2:]), torch.zeros(shape[0], device=chain[0][0].weight.device)
        for conv, before, after in chain:
            total = total + conv_macs(conv, size) * _open_pairs(conv, before, after)
            size = conv_output_size(conv, size)
        keep = self.kept(decision)
        total = total if keep is None else total * keep
        return total + sum(conv_macs(conv, shape[2:]) for conv in self.shortcut_convs())


def _open_pairs(conv: nn.Conv2d, before: Mask | None, after: Mask | None) -> Any:
    """float[N]: share of a convolution's pairs of input and output channels that are open on both sides."""
    ci, co, groups = conv.in_channels, conv.out_channels, conv.groups
    if groups == 1 or before is None or after is None:
        return open_share(before, ci) * open_share(after, co)
    # A convolution group joins its own channels only, so that the product holds group by group.
    inputs = before.per_channel(ci).weights(ci).unflatten(1, (groups, -1)).mean(2)
    outputs = after.per_channel(co).weights(co).unflatten(1, (groups, -1)).mean(2)
    return (inputs * outputs).mean(1)
