"""The one formula of a convolution's or a pooling's output size."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["output_size"]


def output_size(
    size: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
) -> tuple[int, int]:
    """(height, width) that a kernel gives on an image of (height, width); less than 1 where it does not fit.

    Example:
        >>> output_size((32, 32), (3, 3), stride=(2, 2), padding=(1, 1))
        (16, 16)
    """
    return (
        (size[0] + 2 * padding[0] - dilation[0] * (kernel[0] - 1) - 1) // stride[0] + 1,
        (size[1] + 2 * padding[1] - dilation[1] * (kernel[1] - 1) - 1) // stride[1] + 1,
    )
