"""Reorders convolution weights into the panels that the native gated_conv2d reads.

A panel holds 16 output channels side by side, [ceil(Co/16)][kh][kw][ceil(Ci/p)][16][p], zeros where
there are no channels: a row of a panel is one vector load on any instruction set, and the input
channels walk in steps of one row, so that closed ones are skipped without touching memory. p input
channels lie together because instructions multiply them together: 2 of bfloat16, 4 of int8, else 1.
Each convolution group has panels of its own; of a depthwise convolution a row holds 16 channels of
one tap. Done once per model, not per call.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ddi_kernels.backends import use_native
from ddi_kernels.checks import argument_error, check_at_least, check_tensor, describe
from ddi_kernels.registry import Op, register

_NAME = "prepack_conv2d"
PANEL = 16
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
GROUPED_DTYPES = (torch.float32, torch.float64)  # with kernels for more than one convolution group
_TOGETHER = {torch.bfloat16: 2, torch.int8: 4}


def packed_dtype(dtype: torch.dtype) -> torch.dtype:
    """Dtype of the packed form of weights: fp16 is computed in float32, and packed as such."""
    return torch.float32 if dtype == torch.float16 else dtype


def packed_numel(weight: Tensor, groups: int = 1) -> int:
    """Length of the packed form of weight [Co, Ci / groups, kh, kw]."""
    co, ci, kh, kw = weight.shape
    if _is_depthwise(weight, groups):
        return kh * kw * -(-co // PANEL) * PANEL
    together = _TOGETHER.get(weight.dtype, 1)
    return groups * -(-(co // groups) // PANEL) * kh * kw * (-(-ci // together) * together) * PANEL


def _is_depthwise(weight: Tensor, groups: int) -> bool:
    """Whether every channel is a convolution group of its own."""
    return groups > 1 and groups == weight.shape[0] and weight.shape[1] == 1


def prepack_conv2d(weight: Tensor, groups: int = 1) -> Tensor:
    """Reorders weights for repeated calls of `gated_conv2d(..., packed=...)`.

    The result belongs to the values at the time of the call; pack again after changing them. No
    gradient flows through it.

    Args:
        weight: Tensor[Co, Ci / groups, kh, kw], float32, float64, float16, bfloat16 or int8.
        groups: convolution groups, a divisor of Co; must be 1 unless weight is float32 or float64.

    Returns:
        1-dimensional tensor, [groups][ceil(Co/groups/16)][kh][kw][ceil(Ci/groups/p)][16][p] flattened, with
        p = 2 for bfloat16, 4 for int8, else 1; of a depthwise weight (Co = Ci = groups > 1)
        [kh][kw][ceil(Co/16) * 16]. Of the same dtype, except that float16 becomes float32.

    Raises:
        ValueError: an argument has the wrong type, shape or range.

    Example:
        >>> import torch
        >>> from ddi_kernels import gated_conv2d, prepack_conv2d
        >>> weight = torch.ones(8, 4, 3, 3)
        >>> packed = prepack_conv2d(weight)
        >>> y = gated_conv2d(torch.ones(1, 4, 8, 8), weight, packed=packed)
    """
    check_tensor(_NAME, "weight", weight)
    weight = weight.detach()
    if use_native(_NAME, _unsupported(weight)):
        try:
            return _OP(weight, groups)
        except RuntimeError:
            _check(weight, groups)
            raise
    return reference(weight, groups)


def _unsupported(weight: Tensor) -> str | None:
    if not weight.is_cpu:
        return f"it has no kernel for {weight.device.type} tensors"
    return None


def _check(weight: Any, groups: int) -> None:
    check_tensor(_NAME, "weight", weight, dims=4)
    if weight.dtype not in (*DTYPES, torch.int8) or min(weight.shape) < 1:
        expected = "float32, float64, float16, bfloat16 or int8 of a shape without zeros"
        remedy = "Other dtypes need no packing: pass packed=None."
        raise argument_error(_NAME, "weight", describe(weight), expected, remedy)
    check_at_least(_NAME, "groups", groups, 1)
    if groups != 1 and weight.dtype not in GROUPED_DTYPES:
        remedy = "Leave the weight unpacked: pass packed=None."
        raise argument_error(_NAME, "groups", groups, f"1 for {weight.dtype}", remedy)
    if weight.shape[0] % groups:
        raise argument_error(_NAME, "groups", groups, f"a divisor of weight's {weight.shape[0]} channels")


def reference(weight: Tensor, groups: int) -> Tensor:
    """Plain torch `prepack_conv2d`, the specification of all other implementations."""
    _check(weight, groups)
    co, ci, kh, kw = weight.shape
    if _is_depthwise(weight, groups):
        return F.pad(weight[:, 0].permute(1, 2, 0), (0, -co % PANEL)).flatten().clone()
    together = _TOGETHER.get(weight.dtype, 1)
    panels = weight.reshape(groups, co // groups, ci, kh, kw)
    padded = F.pad(panels, (0, 0, 0, 0, 0, -ci % together, 0, -(co // groups) % PANEL))
    cells = padded.reshape(-1, PANEL, -(-ci // together), together, kh, kw)
    return cells.permute(0, 4, 5, 2, 1, 3).flatten().to(packed_dtype(weight.dtype), copy=True)


def _fake(weight: Tensor, groups: int) -> Tensor:
    _check(weight, groups)
    return weight.new_empty((packed_numel(weight, groups),), dtype=packed_dtype(weight.dtype))


_OP = register(
    Op(
        name=_NAME,
        schema="(Tensor weight, int groups) -> Tensor",
        reference=reference,
        fake=_fake,
    )
)
