"""A branch classifier: logits from the features between two blocks, at a small part of the network's cost.

On a large map: average pool, conv 5x5, BatchNorm, ReLU, max pool, conv 3x3, BatchNorm, mean over the pixels,
Linear, as in Dual Dynamic Inference (arXiv 1907.04523). On the small maps of late blocks, whose channels are
many and already classify well: mean over the pixels, Linear.
"""

from __future__ import annotations

import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

__all__ = ["ExitHead"]

_LARGE = 16  # pixels on a side from which a map gets convolutions
_POOLED = 8  # about so many are left of them for the first one


class ExitHead(nn.Module):
    """float[N, in_channels, H, W] -> logits float[N, num_classes].

    The first pooling leaves the 5x5 convolution a map of 8x8 or 9x9, whose 25 * in_channels * width * 64 (or
    81) multiply-adds are nearly all that a head costs. As wide as the stem (16 to 96 channels), as
    `create_model` makes it, that is at most 2 % of a network for ImageNet, 1.1 % of a `cifar_resnet38`, 3.4 %
    of a `densenet_bc100` and 7 % of the smallest, `cifar_resnet8`. A head without convolutions costs nothing
    to speak of. `ddi.count_macs` counts `model(x)`, which runs no head.

    Args:
        in_channels: of the features.
        num_classes: width of the classifier.
        side: height and width of the features at the network's usual image size. A head has convolutions
            from 16 on.
        width: channels of these.

    Example:
        >>> ExitHead(32, 10, side=16, width=16)(torch.randn(2, 32, 16, 16)).shape
        torch.Size([2, 10])
    """

    def __init__(self, in_channels: int, num_classes: int, side: int, width: int) -> None:
        super().__init__()
        self.pool = side // _POOLED if side >= _LARGE else None
        if self.pool is not None:
            self.conv1 = nn.Conv2d(in_channels, width, 5, 1, 2, bias=False)
            self.bn1 = nn.BatchNorm2d(width)
            self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
            self.bn2 = nn.BatchNorm2d(width)
            for conv in (self.conv1, self.conv2):
                nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        self.fc = nn.Linear(in_channels if self.pool is None else width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        if self.pool is not None:
            x = F.relu(self.bn1(self.conv1(F.avg_pool2d(x, self.pool))))
            x = self.bn2(self.conv2(F.max_pool2d(x, 3, 2, 1)))
        return self.fc(x.mean((2, 3)))
