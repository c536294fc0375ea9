"""The basic residual block (two 3x3 convolutions), gated by layer and by interior channel.

y = keep ? relu(keep_scale * F(x; mask) + shortcut(x)) : x, with F = bn2(conv2(mask * relu(bn1(conv1(x))))).
For inference it is one operator, :func:`ddi_kernels.gated_basic_block`.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ddi_kernels import gated_basic_block, gated_basic_block_

from .gated_residual_block import GatedResidualBlock

__all__ = ["GatedBasicBlock"]


class GatedBasicBlock(GatedResidualBlock):
    """Drop-in for a ResNet basic block; shares its layers, so state_dict keys do not change.

    Args:
        block: a module with conv1, bn1, conv2, bn2, downsample (None or a module), ReLU in between
            (torchvision's BasicBlock, or this package's).
        name: module path of the block, for records.

    Inside a converted model the gates decide. Elsewhere pass the decision:
        >>> block = GatedBasicBlock(BasicBlock(16, 16)).eval()
        >>> y = block(torch.randn(2, 16, 8, 8), ddi.Decision(keep=torch.tensor([True, False])))
    """

    layers = ("conv1", "bn1", "conv2", "bn2", "downsample")
    kernels = (3, 3)
    strided = 0
    mask_names = (("mask", "mask_scale", "group_size"),)

    def _operators(self) -> tuple[Callable[..., tuple[Tensor, Tensor]], Callable[..., Tensor]]:
        return gated_basic_block, gated_basic_block_
