"""What all gated blocks share: the layers of the block they stand for, and the cost of a decision.

A gated block is a chain of convolutions with a mask before or behind some of them. What it costs follows from
the chain, in whatever resource (../cost).
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn as nn
from torch import Tensor

from ..cost import Macs
from ..gating.decision import Decision, Mask
from ..gating.site import GateSite
from ..gating.stand_in import stand_in
from ..nn.prepared import PreparedModule

__all__ = ["GatedBlock", "GatedConv"]

GatedConv = tuple[nn.Conv2d, Mask | None, Mask | None]
"""A convolution, the mask on its inputs and the mask on its outputs."""


class GatedBlock(PreparedModule):
    """Base of the gated forms of a backbone's blocks.

    Args:
        block: the module to stand for; its layers named in `layers` are shared, so that state_dict keys do
            not change. It is kept for revert_.
        site: what the gates know of the block.
    """

    layers: ClassVar[tuple[str, ...]]

    def __init__(self, block: Any, site: GateSite) -> None:
        super().__init__()
        for name in self.layers:
            setattr(self, name, getattr(block, name))
        self.site = site
        stand_in(self, block)
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
        return int(Macs().dense_block(self, shape))

    def macs(self, shape: torch.Size, decision: Decision) -> Tensor:
        """float32[N]: multiply-adds per sample under a decision, differentiable in training."""
        return Macs().block(self, shape, decision)
