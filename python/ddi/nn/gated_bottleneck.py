"""The bottleneck residual block (convolutions 1x1, 3x3, 1x1), gated by layer and by interior channel.

y = keep ? relu(keep_scale * F(x; masks) + shortcut(x)) : x, with F = bn3(conv3(mask2 * relu(bn2(conv2(h)))))
and h = mask1 * relu(bn1(conv1(x))). For inference it is one operator, :func:`ddi_kernels.gated_bottleneck`.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ddi_kernels import gated_bottleneck, gated_bottleneck_

from ..decision import Decision, Mask
from .gated_residual_block import GatedResidualBlock, PreparedResidual

__all__ = ["GatedBottleneck"]


class GatedBottleneck(GatedResidualBlock):
    """Drop-in for a ResNet bottleneck block; shares its layers, so state_dict keys do not change.

    Its two interior tensors, the outputs of conv1 and of conv2, have a mask each.

    Args:
        block: a module with conv1, bn1, conv2, bn2, conv3, bn3, downsample (None or a module), ReLU in
            between (torchvision's Bottleneck, or this package's).
        name: module path of the block, for records.

    Inside a converted model the gates decide. Elsewhere pass the decision:
        >>> block = GatedBottleneck(Bottleneck(64, 16)).eval()
        >>> masks = tuple(ddi.Mask(torch.rand(2, 16) > 0.5) for _ in range(2))
        >>> y = block(torch.randn(2, 64, 8, 8), ddi.Decision(masks=masks))
    """

    layers = ("conv1", "bn1", "conv2", "bn2", "conv3", "bn3", "downsample")
    kernels = (1, 3, 1)
    strided = 1

    def _run_fused(
        self, x: Tensor, decision: Decision, prepared: PreparedResidual, pool: bool = False,
        x_pooled: Tensor | None = None, over_x: bool = False,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        (conv1, conv2, conv3), shortcut = prepared.convs, prepared.shortcut
        masks: tuple[Mask | None, ...] = decision.masks or (None, None)
        mask1, mask2 = masks
        weights = conv1.weight, conv1.bias, conv2.weight, conv2.bias, conv3.weight, conv3.bias
        gating: dict[str, Any] = dict(
            keep=decision.keep,
            keep_scale=decision.keep_scale,
            mask1=None if mask1 is None else mask1.open,
            mask1_scale=None if mask1 is None else mask1.scale,
            group_size1=1 if mask1 is None else mask1.group_size,
            mask2=None if mask2 is None else mask2.open,
            mask2_scale=None if mask2 is None else mask2.scale,
            group_size2=1 if mask2 is None else mask2.group_size,
            pool=pool,
            x_pooled=x_pooled,
        )
        if over_x:
            return x, gated_bottleneck_(x, *weights, **gating)
        return gated_bottleneck(
            x,
            *weights,
            packed1=conv1.packed,
            packed2=conv2.packed,
            packed3=conv3.packed,
            shortcut_weight=None if shortcut is None else shortcut.weight,
            shortcut_bias=None if shortcut is None else shortcut.bias,
            shortcut_packed=None if shortcut is None else shortcut.packed,
            stride=prepared.stride,
            **gating,
        )
