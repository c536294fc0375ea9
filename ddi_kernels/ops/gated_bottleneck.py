"""The gated bottleneck residual block, convolutions 1x1, 3x3, 1x1, as one operator.

y = keep ? relu(keep_scale * (conv3(h2) + bias3) + shortcut(x)) : x, with the interiors
h1 = relu(mask1 * mask1_scale * (conv1(x) + bias1)) and h2 = relu(mask2 * mask2_scale * (conv2(h1) + bias2)),
for x [N, Ci, H, W] of any strides (channels_last is fastest). Each mask saves in the convolution before it
and in the one after it, and the 3x3 convolution costs the product of both open fractions. Both interiors
stay compact; skipped samples are taken as they are, and y is pooled for the next gate while it is at hand.
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
from ddi_kernels.tiles.tiles import gated_bottleneck_unsupported

_NAME = "gated_bottleneck"
_SCHEMA = (
    "(Tensor x, Tensor weight1, Tensor? bias1, Tensor? packed1, Tensor weight2, Tensor? bias2, "
    "Tensor? packed2, Tensor weight3, Tensor? bias3, Tensor? packed3, Tensor? shortcut_weight, "
    "Tensor? shortcut_bias, Tensor? shortcut_packed, Tensor? keep, Tensor? keep_scale, Tensor? mask1, "
    "Tensor? mask1_scale, int group_size1, Tensor? mask2, Tensor? mask2_scale, int group_size2, int stride, "
    "bool pool, Tensor? x_pooled) -> (Tensor y, Tensor pooled)"
)


def gated_bottleneck(
    x: Tensor,
    weight1: Tensor,
    bias1: Tensor | None,
    weight2: Tensor,
    bias2: Tensor | None,
    weight3: Tensor,
    bias3: Tensor | None,
    *,
    packed1: Tensor | None = None,
    packed2: Tensor | None = None,
    packed3: Tensor | None = None,
    shortcut_weight: Tensor | None = None,
    shortcut_bias: Tensor | None = None,
    shortcut_packed: Tensor | None = None,
    keep: Tensor | None = None,
    keep_scale: Tensor | None = None,
    mask1: Tensor | None = None,
    mask1_scale: Tensor | None = None,
    group_size1: int = 1,
    mask2: Tensor | None = None,
    mask2_scale: Tensor | None = None,
    group_size2: int = 1,
    stride: int = 1,
    pool: bool = False,
    x_pooled: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The bottleneck block of He et al., arXiv 1512.03385, gated by sample and by interior channel.

    Computes keep ? relu(keep_scale * (conv3(h2) + bias3) + shortcut(x)) : x with
    h1 = relu(mask1 * mask1_scale * (conv1(x) + bias1)), h2 = relu(mask2 * mask2_scale * (conv2(h1) + bias2)).
    BatchNorm is already folded into weights and biases. All scales are applied before the ReLU that
    follows. A skipped sample is x exactly; none of its masks, scales or weights is read, and no closed
    channel of the others.

    Where a gradient is needed the dense reference runs; masks and keep are constants of it.

    Args:
        x: Tensor[N, Ci, H, W] of a floating dtype and any strides.
        weight1: Tensor[C1, Ci, 1, 1] of x's dtype.
        weight2: Tensor[C2, C1, 3, 3] of x's dtype; padding 1.
        weight3: Tensor[Co, C2, 1, 1] of x's dtype.
        bias1, bias2, bias3: Tensor[C1], [C2] and [Co] of x's dtype, or None.
        packed1, packed2, packed3, shortcut_packed: prepack_conv2d of each weight, saves reordering it
            every call.
        shortcut_weight: Tensor[Co, Ci, 1, 1] of the convolution that x passes through beside the block;
            None: x itself, where stride is 1 and Ci = Co.
        shortcut_bias: Tensor[Co].
        keep: bool[N], False where the block is skipped; only without a shortcut convolution.
        keep_scale: Tensor[N] of x's dtype, a factor on the residual branch.
        mask1, mask2: bool[N, ceil(C1 / group_size1)] and bool[N, ceil(C2 / group_size2)], the open groups
            of the channels that conv1 and conv2 write.
        mask1_scale, mask2_scale: the same shapes, of x's dtype.
        group_size1, group_size2: channels per entry of a mask and its scale; the last may be short.
        stride: of conv2 and the shortcut convolution.
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
        >>> from ddi_kernels import gated_bottleneck
        >>> x, one, three = torch.ones(1, 2, 1, 1), torch.ones(3, 2, 1, 1), torch.ones(3, 3, 3, 3)
        >>> mask = torch.tensor([[True, False, False]])
        >>> y, _ = gated_bottleneck(x, one, None, three, None, torch.ones(2, 3, 1, 1), None, mask1=mask)
        >>> y.flatten().tolist()
        [7.0, 7.0]
    """
    check_tensor(_NAME, "x", x)
    args = (
        x, weight1, bias1, packed1, weight2, bias2, packed2, weight3, bias3, packed3,
        shortcut_weight, shortcut_bias, shortcut_packed, keep, keep_scale, mask1, mask1_scale,
        group_size1, mask2, mask2_scale, group_size2, stride, pool, x_pooled,
    )  # fmt: skip
    if autocast_enabled(x):
        return _OP(*args)
    return _run(*args)


def gated_bottleneck_(
    x: Tensor,
    weight1: Tensor,
    bias1: Tensor | None,
    weight2: Tensor,
    bias2: Tensor | None,
    weight3: Tensor,
    bias3: Tensor | None,
    *,
    keep: Tensor | None = None,
    keep_scale: Tensor | None = None,
    mask1: Tensor | None = None,
    mask1_scale: Tensor | None = None,
    group_size1: int = 1,
    mask2: Tensor | None = None,
    mask2_scale: Tensor | None = None,
    group_size2: int = 1,
    pool: bool = False,
    x_pooled: Tensor | None = None,
) -> Tensor:
    """`gated_bottleneck` with y in the place of x, for blocks that keep its shape. Not differentiable.

    A skipped sample is not touched; without `x_pooled` its x is read if `pool` asks for its means. Computed
    in x's dtype, also under autocast.

    Args:
        x: Tensor[N, C, H, W] of a floating dtype and any strides; written. channels_last is fast.
        weight1, bias1, weight2, bias2, weight3, bias3, keep, keep_scale, mask1, mask1_scale, group_size1,
            mask2, mask2_scale, group_size2, pool, x_pooled: as for `gated_bottleneck`. None may overlap x.

    Returns:
        pooled: means of x over the pixels as it is then, as `gated_bottleneck` returns them.

    Raises:
        ValueError: an argument has the wrong type, shape, dtype or range.
        RuntimeError: a gradient is needed, or the backend chosen by name cannot run this call.

    Example:
        >>> import torch
        >>> from ddi_kernels import gated_bottleneck_
        >>> x, one, three = torch.ones(2, 1, 1, 1), torch.ones(1, 1, 1, 1), torch.ones(1, 1, 3, 3)
        >>> keep = torch.tensor([True, False])
        >>> _ = gated_bottleneck_(x, one, None, three, None, one, None, keep=keep)
        >>> x.flatten().tolist()
        [2.0, 1.0]
    """
    return _run_in_place(
        x, weight1, bias1, None, weight2, bias2, None, weight3, bias3, None, None, None, None, keep,
        keep_scale, mask1, mask1_scale, group_size1, mask2, mask2_scale, group_size2, 1, pool, x_pooled,
    )  # fmt: skip


def _run(*args: Any) -> tuple[Tensor, Tensor]:
    no_native = unsupported_image(args[0], DTYPES)
    return dispatch(
        _NAME, _OP, reference, check_args, args, no_native, _OP_TRITON, gated_bottleneck_unsupported
    )


def _run_autocast(*args: Any) -> tuple[Tensor, Tensor]:
    """Means stay as they were: only what the convolutions multiply is computed in half precision."""
    *others, x_pooled = args
    return _run(*others, None if x_pooled is None else x_pooled.to(pooled_dtype(args[0])))


def residual_of(*args: Any) -> Residual:
    """The parts of a call around its residual branch."""
    return Residual(args[0], *args[10:15], *args[21:24])


def check_args(*args: Any) -> tuple[int, int, int, int]:
    """Raises ValueError for the first argument that is wrong; the output's shape otherwise."""
    x = args[0]
    check_image(_NAME, "x", x)
    c1 = check_conv(_NAME, "{}1", x, x.shape[1], 1, *args[1:4])
    c2 = check_conv(_NAME, "{}2", x, c1, 3, *args[4:7])
    co = check_conv(_NAME, "{}3", x, c2, 1, *args[7:10])
    for name, channels, (mask, scale, group_size) in (("1", c1, args[15:18]), ("2", c2, args[18:21])):
        check_at_least(_NAME, f"group_size{name}", group_size, 1)
        check_gate(_NAME, x, f"mask{name}", mask, scale, channels, group_size)
    return check_residual(_NAME, residual_of(*args), co)


def reference(*args: Any) -> tuple[Tensor, Tensor]:
    """Plain torch `gated_bottleneck`, the specification of all other implementations.

    Takes the schema's arguments, in its order.
    """
    check_args(*args)
    x, weight1, bias1, _, weight2, bias2, _, weight3, bias3, _ = args[:10]
    h = interior(F.conv2d(x, weight1, bias1), *args[15:18])
    h = interior(F.conv2d(h, weight2, bias2, args[21], padding=1), *args[18:21])
    return join(residual_of(*args), F.conv2d(h, weight3, bias3))


def _fake(*args: Any) -> tuple[Tensor, Tensor]:
    return empty_block(args[0], check_args(*args), args[22])


def _flops(*args: Any, out_val: tuple[Tensor, Tensor]) -> int:
    """Pairs of open channels times taps and pixels, in kept samples; padding counts as pixels do."""
    (x, weight1), weight2, y = args[:2], args[4], out_val[0]
    n, co, h, w = y.shape
    open1 = open_counts(args[15], n, weight1.shape[0], args[17])
    open2 = open_counts(args[18], n, weight2.shape[0], args[20])
    macs = open1 * x.shape[1:].numel() + open2 * (open1 * 9 + co) * h * w
    return residual_flops(residual_of(*args), macs, y)


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
_run_in_place = register_in_place(_SPEC, residual_of, check_args, gated_bottleneck_unsupported)
