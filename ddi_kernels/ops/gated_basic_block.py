"""The gated basic residual block, two 3x3 convolutions, as one operator.

y = keep ? relu(keep_scale * (conv2(h) + bias2) + shortcut(x)) : x, with the interior
h = relu(mask * mask_scale * (conv1(x) + bias1)), for x [N, Ci, H, W] of any strides (channels_last is
fastest). One mask saves on both sides: closed channels are outputs of conv1 that are never computed and
inputs of conv2 that are never read. As one operator it keeps the interior compact and in cache, takes
skipped samples as they are instead of gathering the others, and pools y for the next gate on the way out.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from ddi_kernels.checks import check_at_least, check_tensor
from ddi_kernels.ops.block_in_place import register_in_place
from ddi_kernels.ops.block_parts import (
    Residual,
    check_conv,
    check_gate,
    check_image,
    check_residual,
    dispatch,
    empty_block,
    interior,
    join,
    open_counts,
    pooled_dtype,
    residual_flops,
    unsupported_image,
)
from ddi_kernels.ops.prepack_conv2d import DTYPES
from ddi_kernels.registry import Op, autocast_enabled, register, register_triton
from ddi_kernels.tiles.tiles import gated_basic_block_unsupported

_NAME = "gated_basic_block"
_SCHEMA = (
    "(Tensor x, Tensor weight1, Tensor? bias1, Tensor? packed1, Tensor weight2, Tensor? bias2, "
    "Tensor? packed2, Tensor? shortcut_weight, Tensor? shortcut_bias, Tensor? shortcut_packed, "
    "Tensor? keep, Tensor? keep_scale, Tensor? mask, Tensor? mask_scale, int group_size, int stride, "
    "bool pool, Tensor? x_pooled) -> (Tensor y, Tensor pooled)"
)


def gated_basic_block(
    x: Tensor,
    weight1: Tensor,
    bias1: Tensor | None,
    weight2: Tensor,
    bias2: Tensor | None,
    *,
    packed1: Tensor | None = None,
    packed2: Tensor | None = None,
    shortcut_weight: Tensor | None = None,
    shortcut_bias: Tensor | None = None,
    shortcut_packed: Tensor | None = None,
    keep: Tensor | None = None,
    keep_scale: Tensor | None = None,
    mask: Tensor | None = None,
    mask_scale: Tensor | None = None,
    group_size: int = 1,
    stride: int = 1,
    pool: bool = False,
    x_pooled: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The basic block of He et al., arXiv 1512.03385, gated by sample and by interior channel.

    Computes keep ? relu(keep_scale * (conv2(h) + bias2) + shortcut(x)) : x with
    h = relu(mask * mask_scale * (conv1(x) + bias1)). BatchNorm is already folded into weights and biases.
    Both scales are applied before the ReLU that follows, so that a negative one is not lost. A skipped
    sample is x exactly; none of its masks, scales or weights is read, and no closed channel of the others.

    Where a gradient is needed the dense reference runs; masks and keep are constants of it.

    Args:
        x: Tensor[N, Ci, H, W] of a floating dtype and any strides.
        weight1: Tensor[C, Ci, 3, 3] of x's dtype; padding 1.
        bias1: Tensor[C] of x's dtype, or None.
        weight2: Tensor[Co, C, 3, 3] of x's dtype; stride 1, padding 1.
        bias2: Tensor[Co] of x's dtype, or None.
        packed1, packed2, shortcut_packed: prepack_conv2d of each weight, saves reordering it every call.
        shortcut_weight: Tensor[Co, Ci, 1, 1] of the convolution that x passes through beside the block;
            None: x itself, where stride is 1 and Ci = Co.
        shortcut_bias: Tensor[Co].
        keep: bool[N], False where the block is skipped; only without a shortcut convolution.
        keep_scale: Tensor[N] of x's dtype, a factor on the residual branch.
        mask: bool[N, ceil(C / group_size)], the open groups of interior channels.
        mask_scale: Tensor[N, ceil(C / group_size)] of x's dtype.
        group_size: interior channels per entry of mask and mask_scale; the last group may be short.
        stride: of conv1 and the shortcut convolution.
        pool: also return the means of y, which `gate_plan` takes for the next block.
        x_pooled: the same of x, Tensor[N, Ci]; a skipped sample's row is passed on and its x not read.

    Returns:
        y: Tensor[N, Co, H', W'], channels_last if x is (and not also contiguous), else contiguous.
        pooled: means of y over the pixels, float64[N, Co] for float64, else float32; [N, 0] without `pool`.

    Raises:
        ValueError: an argument has the wrong type, shape, dtype or range.
        RuntimeError: the backend chosen by name cannot run this call.

    Example:
        >>> import torch
        >>> from ddi_kernels import gated_basic_block
        >>> x, weight = torch.ones(2, 1, 1, 1), torch.ones(1, 1, 3, 3)
        >>> keep = torch.tensor([True, False])
        >>> y, pooled = gated_basic_block(x, weight, None, weight, None, keep=keep, pool=True)
        >>> y.flatten().tolist(), pooled.tolist()
        ([2.0, 1.0], [[2.0], [1.0]])
    """
    check_tensor(_NAME, "x", x)
    args = (
        x, weight1, bias1, packed1, weight2, bias2, packed2, shortcut_weight, shortcut_bias,
        shortcut_packed, keep, keep_scale, mask, mask_scale, group_size, stride, pool, x_pooled,
    )  # fmt: skip
    if autocast_enabled(x):
        return _OP(*args)
    return _run(*args)


def gated_basic_block_(
    x: Tensor,
    weight1: Tensor,
    bias1: Tensor | None,
    weight2: Tensor,
    bias2: Tensor | None,
    *,
    keep: Tensor | None = None,
    keep_scale: Tensor | None = None,
    mask: Tensor | None = None,
    mask_scale: Tensor | None = None,
    group_size: int = 1,
    pool: bool = False,
    x_pooled: Tensor | None = None,
) -> Tensor:
    """`gated_basic_block` with y in the place of x, for blocks that keep its shape. Not differentiable.

    A skipped sample is not touched; without `x_pooled` its x is read if `pool` asks for its means. Computed
    in x's dtype, also under autocast.

    Args:
        x: Tensor[N, C, H, W] of a floating dtype and any strides; written. channels_last is fast.
        weight1, bias1, weight2, bias2, keep, keep_scale, mask, mask_scale, group_size, pool,
            x_pooled: as for `gated_basic_block`. None may overlap x.

    Returns:
        pooled: means of x over the pixels as it is then, as `gated_basic_block` returns them.

    Raises:
        ValueError: an argument has the wrong type, shape, dtype or range.
        RuntimeError: a gradient is needed, or the backend chosen by name cannot run this call.

    Example:
        >>> import torch
        >>> from ddi_kernels import gated_basic_block_
        >>> x, weight = torch.ones(2, 1, 1, 1), torch.ones(1, 1, 3, 3)
        >>> _ = gated_basic_block_(x, weight, None, weight, None, keep=torch.tensor([True, False]))
        >>> x.flatten().tolist()
        [2.0, 1.0]
    """
    return _run_in_place(
        x, weight1, bias1, None, weight2, bias2, None, None, None, None, keep, keep_scale, mask, mask_scale,
        group_size, 1, pool, x_pooled,
    )  # fmt: skip


def _run(*args: Any) -> tuple[Tensor, Tensor]:
    no_native = unsupported_image(args[0], DTYPES)
    return dispatch(
        _NAME, _OP, reference, check_args, args, no_native, _OP_TRITON, gated_basic_block_unsupported
    )


def _run_autocast(*args: Any) -> tuple[Tensor, Tensor]:
    """Means stay as they were: only what the convolutions multiply is computed in half precision."""
    *others, x_pooled = args
    return _run(*others, None if x_pooled is None else x_pooled.to(pooled_dtype(args[0])))


def residual_of(*args: Any) -> Residual:
    """The parts of a call around its residual branch."""
    return Residual(args[0], *args[7:12], *args[15:18])


def check_args(*args: Any) -> tuple[int, int, int, int]:
    """Raises ValueError for the first argument that is wrong; the output's shape otherwise."""
    x, (mask, mask_scale, group_size) = args[0], args[12:15]
    check_image(_NAME, "x", x)
    channels = check_conv(_NAME, "{}1", x, x.shape[1], 3, *args[1:4])
    co = check_conv(_NAME, "{}2", x, channels, 3, *args[4:7])
    check_at_least(_NAME, "group_size", group_size, 1)
    check_gate(_NAME, x, "mask", mask, mask_scale, channels, group_size)
    return check_residual(_NAME, residual_of(*args), co)


def reference(*args: Any) -> tuple[Tensor, Tensor]:
    """Plain torch `gated_basic_block`, the specification of all other implementations.

    Takes the schema's arguments, in its order.
    """
    check_args(*args)
    x, weight1, bias1, _, weight2, bias2, _ = args[:7]
    h = interior(F.conv2d(x, weight1, bias1, args[15], padding=1), *args[12:15])
    return join(residual_of(*args), F.conv2d(h, weight2, bias2, padding=1))


def _fake(*args: Any) -> tuple[Tensor, Tensor]:
    return empty_block(args[0], check_args(*args), args[16])


def _flops(*args: Any, out_val: tuple[Tensor, Tensor]) -> int:
    """Pairs of open channels times taps and pixels, in kept samples; padding counts as pixels do."""
    (x, weight1), mask, group_size, y = args[:2], args[12], args[14], out_val[0]
    n, co, h, w = y.shape
    opened = open_counts(mask, n, weight1.shape[0], group_size)
    return residual_flops(residual_of(*args), opened * (x.shape[1] + co) * 9 * h * w, y)


_SPEC = Op(
    name=_NAME,
    schema=_SCHEMA,
    reference=reference,
    fake=_fake,
    autocast=_run_autocast,
    flops=_flops,
)
_OP = register(_SPEC)
_OP_TRITON = register_triton(_SPEC)
_run_in_place = register_in_place(_SPEC, residual_of, check_args, gated_basic_block_unsupported)
