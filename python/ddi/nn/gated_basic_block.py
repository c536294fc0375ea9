"""The basic residual block (two 3x3 convolutions), gated by layer and by interior channel.

y = keep ? relu(keep_scale * F(x; mask) + shortcut(x)) : x, with F = bn2(conv2(mask * relu(bn1(conv1(x))))).
For inference it is one operator, :func:`ddi_kernels.gated_basic_block`.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ddi_kernels import gated_basic_block, gated_basic_block_

from ..decision import Decision
from .gated_residual_block import GatedResidualBlock, PreparedResidual

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

    def _run_fused(
        self, x: Tensor, decision: Decision, prepared: PreparedResidual, pool: bool = False,
        x_pooled: Tensor | None = None, over_x: bool = False,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        (conv1, conv2), shortcut = prepared.convs, prepared.shortcut
        mask = decision.masks[0] if decision.masks else None
        weights = conv1.weight, conv1.bias, conv2.weight, conv2.bias
        gating: dict[str, Any] = dict(
            keep=decision.keep,
            keep_scale=decision.keep_scale,
            mask=None if mask is None else mask.open,
            mask_scale=None if mask is None else mask.scale,
            group_size=1 if mask is None else mask.group_size,
            pool=pool,
            x_pooled=x_pooled,
        )
        if over_x:
            return x, gated_basic_block_(x, *weights, **gating)
        return gated_basic_block(
            x,
            *weights,
            packed1=conv1.packed,
            packed2=conv2.packed,
            shortcut_weight=None if shortcut is None else shortcut.weight,
            shortcut_bias=None if shortcut is None else shortcut.bias,
            shortcut_packed=None if shortcut is None else shortcut.packed,
            stride=prepared.stride,
            **gating,
        )
