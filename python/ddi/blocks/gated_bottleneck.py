"""The bottleneck residual block (convolutions 1x1, 3x3, 1x1), gated by layer and by interior channel.

y = keep ? relu(keep_scale * F(x; masks) + shortcut(x)) : x, with F = bn3(conv3(mask2 * relu(bn2(conv2(h)))))
and h = mask1 * relu(bn1(conv1(x))). For inference it is one operator, :func:`ddi_kernels.gated_bottleneck`.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ddi_kernels import gated_bottleneck, gated_bottleneck_

from .gated_residual_block import GatedResidualBlock

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
    mask_names = (
        ("mask1", "mask1_scale", "group_size1"),
        ("mask2", "mask2_scale", "group_size2"),
    )

    def _operators(self) -> tuple[Callable[..., tuple[Tensor, Tensor]], Callable[..., Tensor]]:
        return gated_bottleneck, gated_bottleneck_
