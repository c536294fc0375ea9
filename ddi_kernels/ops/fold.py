"""The one folding of batch norm into a convolution.

In evaluation a batch norm is a fixed scale and shift per output channel, so it can be multiplied
into the weights before it: bn(conv(x)) = conv'(x), with one pass over the data less.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from ddi_kernels.checks import argument_error


class BatchNormLike(Protocol):
    """What `fold_bn` reads of a batch norm module, as nn.BatchNorm2d has it."""

    @property
    def running_mean(self) -> Tensor | None: ...
    @property
    def running_var(self) -> Tensor | None: ...
    @property
    def weight(self) -> Tensor | None: ...
    @property
    def bias(self) -> Tensor | None: ...
    @property
    def eps(self) -> float: ...


def fold_bn(weight: Tensor, bias: Tensor | None, bn: BatchNormLike) -> tuple[Tensor, Tensor]:
    """Weight and bias of the convolution that equals a convolution followed by `bn` in eval mode.

    Computed in float64 and rounded once, as Jacob et al. describe for inference (section 3.2 of
    "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
    Inference", CVPR 2018).

    Args:
        weight: Tensor[Co, ...] of a convolution or linear layer, float32 or float64.
        bias: Tensor[Co], or None.
        bn: module with running statistics; weight and bias may be None (affine=False).

    Returns:
        New weight, of the shape and dtype of `weight`, and new bias Tensor[Co].

    Raises:
        ValueError: `bn` keeps no running statistics, or an argument has another number of
            channels than `weight`.

    Example:
        >>> import torch
        >>> from ddi_kernels import fold_bn
        >>> bn = torch.nn.BatchNorm2d(4).eval()
        >>> weight, bias = fold_bn(torch.ones(4, 2, 3, 3), None, bn)
    """
    mean, var = bn.running_mean, bn.running_var
    if mean is None or var is None:
        remedy = "Without them (track_running_stats=False) it depends on its batch."
        raise argument_error("fold_bn", "bn", "none", "running statistics", remedy)
    channels = weight.shape[0]
    for name, vector in (("bn", mean), ("bias", bias)):
        if vector is not None and vector.shape != (channels,):
            expected = f"{channels} channels, as in weight"
            raise argument_error("fold_bn", name, vector.numel(), expected)
    factor = torch.rsqrt(var.double() + bn.eps)
    if bn.weight is not None:
        factor = factor * bn.weight.double()
    shift = -mean.double() if bias is None else bias.double() - mean.double()
    shift = shift * factor
    if bn.bias is not None:
        shift = shift + bn.bias.double()
    folded = weight.double() * factor.reshape(-1, *[1] * (weight.dim() - 1))
    return folded.to(weight.dtype), shift.to(weight.dtype)
