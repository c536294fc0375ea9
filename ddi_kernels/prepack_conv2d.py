"""Reorders convolution weights into the panels that the native gated_conv2d reads.

A panel holds 16 output channels side by side, [ceil(Co/16)][kh][kw][ceil(Ci/p)][16][p], zeros where
there are no channels: a row of a panel is one vector load on any instruction set, and the input
channels walk in steps of one row, so that closed ones are skipped without touching memory. p input
channels lie together because instructions multiply them together: 2 of bfloat16, 4 of int8, else 1.
Done once per model, not per call.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ddi_kernels.backends import use_native
from ddi_kernels.checks import argument_error, check_tensor, describe
from ddi_kernels.registry import Op, register

_NAME = "prepack_conv2d"
PANEL = 16
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
_TOGETHER = {torch.bfloat16: 2, torch.int8: 4}


def packed_dtype(dtype: torch.dtype) -> torch.dtype:
    """Dtype of the packed form of weights: fp16 is computed in float32, and packed as such."""
    return torch.float32 if dtype == torch.float16 else dtype


def packed_numel(weight: Tensor) -> int:
    """Length of the packed form of weight [Co, Ci, kh, kw]."""
    co, ci, kh, kw = weight.shape
    together = _TOGETHER.get(weight.dtype, 1)
    return -(-co // PANEL) * kh * kw * (-(-ci // together) * together) * PANEL


def prepack_conv2d(weight: Tensor, groups: int = 1) -> Tensor:
    """Reorders weights for repeated calls of `gated_conv2d(..., packed=...)`.

    The result belongs to the values at the time of the call; pack again after changing them. No
    gradient flows through it.

    Args:
        weight: Tensor[Co, Ci, kh, kw], float32, float64, float16, bfloat16 or int8.
        groups: must be 1; grouped convolutions have no packed form.

    Returns:
        1-dimensional tensor, [ceil(Co/16)][kh][kw][ceil(Ci/p)][16][p] flattened, with p = 2 for
        bfloat16, 4 for int8, else 1; of the same dtype, except that float16 becomes float32.

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
    if groups != 1:
        remedy = "Grouped convolutions have no packed form: pass packed=None."
        raise argument_error(_NAME, "groups", groups, "1", remedy)


def reference(weight: Tensor, groups: int) -> Tensor:
    """Plain torch `prepack_conv2d`, the specification of all other implementations."""
    _check(weight, groups)
    co, ci, kh, kw = weight.shape
    together = _TOGETHER.get(weight.dtype, 1)
    padded = F.pad(weight, (0, 0, 0, 0, 0, -ci % together, 0, -co % PANEL))
    cells = padded.reshape(-1, PANEL, -(-ci // together), together, kh, kw)
    return cells.permute(0, 4, 5, 2, 1, 3).flatten().to(packed_dtype(weight.dtype), copy=True)


def _fake(weight: Tensor, groups: int) -> Tensor:
    _check(weight, groups)
    return weight.new_empty((packed_numel(weight),), dtype=packed_dtype(weight.dtype))


_OP = register(
    Op(
        name=_NAME,
        schema="(Tensor weight, int groups) -> Tensor",
        reference=reference,
        fake=_fake,
    )
)
