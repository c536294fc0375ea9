"""Sizes of what layers give."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn as nn

__all__ = ["conv_output_size"]


def conv_output_size(conv: nn.Conv2d, size: Sequence[int]) -> tuple[int, int]:
    """(height, width) of a convolution's output for an input of (height, width)."""
    pads = conv.padding if isinstance(conv.padding, tuple) else (0, 0)
    out = [
        (n + 2 * int(p) - d * (k - 1) - 1) // s + 1
        for n, p, d, k, s in zip(size, pads, conv.dilation, conv.kernel_size, conv.stride, strict=True)
    ]
    return out[0], out[1]
