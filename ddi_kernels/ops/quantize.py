"""From floating point to int8: symmetric, one scale for a tensor or one for each output channel.

A real number r is represented by the integer q = round(r / scale), to nearest even and clamped, as in
Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
Inference", CVPR 2018, with a zero point of 0.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ddi_kernels.checks import argument_error, check_tensor, describe

_SMALLEST, _LARGEST = 2.0**-126, 2.0**127  # normal numbers of float32


def check_scale(op: str, argument: str, value: Any) -> None:
    """Raises unless value is a positive number in the range of float32."""
    number = isinstance(value, int | float | torch.SymFloat) and not isinstance(value, bool)
    if not number or not _SMALLEST <= value < 2 * _LARGEST:
        raise argument_error(op, argument, describe(value), "a positive number in the range of float32")


def quantize(x: Tensor, scale: float) -> Tensor:
    """The int8 numbers that stand for x with one scale.

    Args:
        x: tensor of any shape and a floating dtype. NaN becomes 0.
        scale: what one step of the integers is worth; max(abs(x)) / 127 uses the whole range.

    Returns:
        int8 tensor of x's shape: x / scale in float32, rounded to nearest even, clamped to [-128, 127].

    Raises:
        ValueError: an argument has the wrong type, dtype or range.

    Example:
        >>> import torch
        >>> from ddi_kernels import quantize
        >>> quantize(torch.tensor([-0.5, 0.25, 0.3, 9.0]), 0.1).tolist()
        [-5, 2, 3, 90]
    """
    check_tensor("quantize", "x", x)
    if not x.dtype.is_floating_point:
        raise argument_error("quantize", "x", describe(x), "a floating dtype")
    check_scale("quantize", "scale", scale)
    # By a tensor, because some devices divide by a number as they multiply by its reciprocal.
    steps = x.float() / torch.full((), scale, dtype=torch.float32, device=x.device)
    return steps.round().clamp(-128, 127).nan_to_num(0).to(torch.int8)


def quantize_weight(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Weights of a convolution as int8 numbers with one scale for each output channel.

    Args:
        weight: Tensor[Co, ...] of a floating dtype.

    Returns:
        int8 tensor of the same shape with values in [-127, 127], and float32 Tensor[Co] of scales: the
        largest absolute value of a channel over 127, and 1 for a channel of zeros.

    Raises:
        ValueError: weight is no tensor with at least one dimension of a floating dtype.

    Example:
        >>> import torch
        >>> from ddi_kernels import quantize_weight
        >>> quantized, scale = quantize_weight(torch.tensor([[1.27, -0.5], [0.0, 0.0]]))
        >>> quantized.tolist(), scale.tolist()[1]
        ([[127, -50], [0, 0]], 1.0)
    """
    check_tensor("quantize_weight", "weight", weight)
    if weight.dim() < 1 or not weight.dtype.is_floating_point:
        raise argument_error("quantize_weight", "weight", describe(weight), "[Co, ...] of a floating dtype")
    flat = weight.detach().float().flatten(1) if weight.dim() > 1 else weight.detach().float()[:, None]
    largest = flat.abs().amax(1) if flat.shape[1] else flat.new_zeros(flat.shape[0])
    # Below this a step would leave the range of normal numbers.
    scale = torch.where(largest <= 127 * _SMALLEST, 1.0, largest / 127)
    steps = (flat / scale[:, None]).round().clamp(-127, 127).nan_to_num(0)
    return steps.to(torch.int8).reshape(weight.shape), scale
