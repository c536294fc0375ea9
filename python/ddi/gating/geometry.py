"""Sizes of what layers give."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn as nn

from ddi_kernels.geometry import output_size

__all__ = ["conv_output_size"]


def conv_output_size(conv: nn.Conv2d, size: Sequence[int]) -> tuple[int, int]:
    """(height, width) of a convolution's output for an input of (height, width)."""
    pads: Any = conv.padding if isinstance(conv.padding, tuple) else (0, 0)
    return output_size(size, conv.kernel_size, conv.stride, pads, conv.dilation)
