"""The gated layer of DenseNet-BC: BN-ReLU-conv 1x1-ReLU-conv 3x3 on the open channels of a concatenation.

y = out_mask * (conv2(relu(conv1(h) + bias1)) + bias2) with h = in_mask * relu(scale1 * x + shift1), for x
[N, Ci, H, W] of any strides (channels_last is fastest). The layer's first BatchNorm cannot be folded into
conv1, with the ReLU in between, so it is a prologue on the open channels as they are loaded; closed ones are
never read, and a sample that opens no output is skipped. The in-place form writes the new channels where the
next layer reads them, so that a block copies nothing to concatenate.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ddi_kernels.checks import (
    argument_error,
    check_at_least,
    check_like,
    check_own_memory,
    check_tensor,
    describe,
    memory_format_of,
)
from ddi_kernels.ops.active_channels import expand_groups
from ddi_kernels.ops.block_parts import (
    check_conv,
    check_gate,
    check_image,
    dispatch,
    empty_block,
    needs_gradient,
    open_counts,
    pooled_dtype,
    pooled_means,
    select_open,
    unsupported_image,
)
from ddi_kernels.registry import Op, autocast_enabled, register, register_triton
from ddi_kernels.tiles.tiles import gated_dense_layer_inplace_unsupported, gated_dense_layer_unsupported

_NAME = "gated_dense_layer"
_NAME_INPLACE = "gated_dense_layer_"
_ARGUMENTS = (
    "Tensor scale1, Tensor shift1, Tensor weight1, Tensor? bias1, Tensor? packed1, Tensor weight2, "
    "Tensor? bias2, Tensor? packed2, Tensor? in_mask, Tensor? out_mask, int group_size, bool pool"
)


def gated_dense_layer(
    x: Tensor,
    scale1: Tensor,
    shift1: Tensor,
    weight1: Tensor,
    bias1: Tensor | None,
    weight2: Tensor,
    bias2: Tensor | None,
    *,
    packed1: Tensor | None = None,
    packed2: Tensor | None = None,
    in_mask: Tensor | None = None,
    out_mask: Tensor | None = None,
    group_size: int = 1,
    pool: bool = False,
) -> tuple[Tensor, Tensor]:
    """The new channels of a DenseNet-BC layer (Huang et al., arXiv 1608.06993), gated at both ends.

    Computes out_mask * (conv2(relu(conv1(h) + bias1)) + bias2) with h = in_mask * relu(scale1 * x + shift1).
    in_mask acts after the BN-ReLU: a zero channel before it would become relu(shift1). The second BatchNorm
    is folded into weight1 and bias1. Closed channels of x are never read (they may hold NaN), and of a
    sample whose out_mask is all False nothing is.

    Where a gradient is needed the dense reference runs; the masks are constants of it.

    Args:
        x: Tensor[N, Ci, H, W] of a floating dtype and any strides.
        scale1, shift1: Tensor[Ci] of x's dtype, the first BatchNorm as a factor and an addend.
        weight1: Tensor[C, Ci, 1, 1] of x's dtype.
        bias1: Tensor[C] of x's dtype, or None.
        weight2: Tensor[K, C, 3, 3] of x's dtype, K the growth; padding 1.
        bias2: Tensor[K] of x's dtype, or None.
        packed1, packed2: prepack_conv2d of each weight, saves reordering it every call.
        in_mask: bool[N, Ci], the open channels of x: one bit each, because a concatenation of layers has
            no common group size.
        out_mask: bool[N, ceil(K / group_size)], the open groups of new channels.
        group_size: channels per entry of out_mask; the last group may be short.
        pool: also return the means of y, which the gates of the following layers read.

    Returns:
        y: Tensor[N, K, H, W], channels_last if x is (and not also contiguous), else contiguous.
        pooled: means of y over the pixels, float64[N, K] for float64, else float32; [N, 0] without `pool`.

    Raises:
        ValueError: an argument has the wrong type, shape, dtype or range.
        RuntimeError: the backend chosen by name cannot run this call.

    Example:
        >>> import torch
        >>> from ddi_kernels import gated_dense_layer
        >>> x, one, zero = torch.ones(1, 2, 1, 1), torch.ones(2), torch.zeros(2)
        >>> weights = torch.ones(4, 2, 1, 1), None, torch.ones(1, 4, 3, 3), None
        >>> y, _ = gated_dense_layer(x, one, zero, *weights, in_mask=torch.tensor([[True, False]]))
        >>> y.item()
        4.0
    """
    check_tensor(_NAME, "x", x)
    args = (
        x, scale1, shift1, weight1, bias1, packed1, weight2, bias2, packed2, in_mask, out_mask,
        group_size, pool,
    )  # fmt: skip
    if autocast_enabled(x):
        return _OP(*args)
    return _run(*args)


def gated_dense_layer_(
    buffer: Tensor,
    scale1: Tensor,
    shift1: Tensor,
    weight1: Tensor,
    bias1: Tensor | None,
    weight2: Tensor,
    bias2: Tensor | None,
    *,
    packed1: Tensor | None = None,
    packed2: Tensor | None = None,
    in_mask: Tensor | None = None,
    out_mask: Tensor | None = None,
    group_size: int = 1,
    pool: bool = False,
) -> Tensor:
    """`gated_dense_layer` of the first channels of a buffer, written behind them. Not differentiable.

    x is buffer[:, :Ci], with Ci from weight1, and y goes to buffer[:, Ci:Ci + K]. Closed new channels are
    left as they are, whatever they hold: their readers have the mask, and so skipping touches no memory.
    The buffer's dtype is computed in, also under autocast.

    The call mirrors the copying form, with one tensor for x and y. The place of y follows from the weights
    and the masks stay the caller's, who keeps one bool[N, C_total] beside the buffer, passes its first Ci
    columns and appends the new bits: no offset, and no second mask to be kept in step, is passed.

    Args:
        buffer: Tensor[N, at least Ci + K, H, W] of a floating dtype and any strides; written.
        scale1, shift1, weight1, bias1, weight2, bias2, packed1, packed2, in_mask, out_mask, group_size,
            pool: as for `gated_dense_layer`. None may overlap the buffer.

    Returns:
        pooled: means of the new channels, 0 for closed ones, as `gated_dense_layer` returns them.

    Raises:
        ValueError: an argument has the wrong type, shape, dtype or range.
        RuntimeError: a gradient is needed, or the backend chosen by name cannot run this call.

    Example:
        >>> import torch
        >>> from ddi_kernels import gated_dense_layer_
        >>> buffer, one, zero = torch.ones(1, 5, 1, 1), torch.ones(2), torch.zeros(2)
        >>> weights = torch.ones(4, 2, 1, 1), None, torch.ones(2, 4, 3, 3), None
        >>> _ = gated_dense_layer_(buffer, one, zero, *weights, out_mask=torch.tensor([[True, False]]))
        >>> buffer.flatten().tolist()
        [1.0, 1.0, 8.0, 1.0, 1.0]
    """
    check_tensor(_NAME_INPLACE, "buffer", buffer)
    args = (
        buffer, scale1, shift1, weight1, bias1, packed1, weight2, bias2, packed2, in_mask, out_mask,
        group_size, pool,
    )  # fmt: skip
    if needs_gradient(args):
        raise RuntimeError(
            f"{_NAME_INPLACE}: an argument requires a gradient, which the in-place form does not have. "
            f"Use {_NAME}, or call under torch.no_grad()"
        )
    pooled: Tensor = dispatch(
        _NAME_INPLACE, _OP_INPLACE, reference_, check_args_inplace, args, unsupported_image(buffer),
        _OP_INPLACE_TRITON, gated_dense_layer_inplace_unsupported,
    )  # fmt: skip
    return pooled


def _run(*args: Any) -> tuple[Tensor, Tensor]:
    no_native = unsupported_image(args[0])
    return dispatch(
        _NAME, _OP, reference, check_args, args, no_native, _OP_TRITON, gated_dense_layer_unsupported
    )


def check_args(*args: Any) -> tuple[int, int, int, int]:
    """Raises ValueError for the first wrong argument of `gated_dense_layer`; y's shape otherwise."""
    x = args[0]
    check_image(_NAME, "x", x)
    n, ci, h, w = x.shape
    return n, _check_layer(_NAME, x, ci, *args[1:12]), h, w


def check_args_inplace(*args: Any) -> tuple[int, int]:
    """Raises ValueError for the first wrong argument of `gated_dense_layer_`; (Ci, K) otherwise."""
    buffer, weight1 = args[0], args[3]
    check_image(_NAME_INPLACE, "buffer", buffer)
    check_tensor(_NAME_INPLACE, "weight1", weight1, dims=4)
    ci = weight1.shape[1]
    if ci < 1:
        raise argument_error(_NAME_INPLACE, "weight1", describe(weight1), "shape (C, Ci, 1, 1), Ci > 0")
    growth = _check_layer(_NAME_INPLACE, buffer, ci, *args[1:12])
    if buffer.shape[1] < ci + growth:
        expected = f"at least {ci} + {growth} channels, those read and those written"
        raise argument_error(_NAME_INPLACE, "buffer", describe(buffer), expected)
    check_own_memory(_NAME_INPLACE, "buffer", buffer)
    return ci, growth


def _check_layer(op: str, x: Tensor, ci: int, *args: Any) -> int:
    scale1, shift1, *_, in_mask, out_mask, group_size = args
    check_like(op, "scale1", scale1, (ci,), x.dtype, like=x)
    check_like(op, "shift1", shift1, (ci,), x.dtype, like=x)
    channels = check_conv(op, "{}1", x, ci, 1, *args[2:5])
    growth = check_conv(op, "{}2", x, channels, 3, *args[5:8])
    check_at_least(op, "group_size", group_size, 1)
    check_gate(op, x, "in_mask", in_mask, None, ci, 1)
    check_gate(op, x, "out_mask", out_mask, None, growth, group_size)
    return growth


def reference(*args: Any) -> tuple[Tensor, Tensor]:
    """Plain torch `gated_dense_layer`, the specification of all other implementations.

    Takes the schema's arguments, in its order.
    """
    check_args(*args)
    x, scale1, shift1, weight1, bias1, _, weight2, bias2, _, in_mask, out_mask, group_size, pool = args
    h = (x * scale1[:, None, None] + shift1[:, None, None]).relu()
    h = F.conv2d(select_open(h, in_mask, 1), weight1, bias1).relu()
    y = select_open(F.conv2d(h, weight2, bias2, padding=1), out_mask, group_size)
    return y.contiguous(memory_format=memory_format_of(x)), pooled_means(y, pool)


def reference_(*args: Any) -> Tensor:
    """Plain torch `gated_dense_layer_`, the specification of all other implementations.

    Takes the schema's arguments, in its order.
    """
    ci, growth = check_args_inplace(*args)
    buffer, out_mask, group_size = args[0], args[10], args[11]
    with nullcontext() if buffer.is_meta else torch.autocast(buffer.device.type, enabled=False):
        y, pooled = reference(buffer[:, :ci], *args[1:])
    new = buffer[:, ci : ci + growth]
    if out_mask is not None:
        y = torch.where(expand_groups(out_mask, growth, group_size)[:, :, None, None], y, new)
    new.copy_(y)
    return pooled


def _fake(*args: Any) -> tuple[Tensor, Tensor]:
    return empty_block(args[0], check_args(*args), args[12])


def _fake_inplace(*args: Any) -> Tensor:
    growth = check_args_inplace(*args)[1]
    buffer, pool = args[0], args[12]
    return buffer.new_empty((buffer.shape[0], growth if pool else 0), dtype=pooled_dtype(buffer))


def _flops(*args: Any, out_val: Any) -> int:
    """Pairs of open channels times taps and pixels, in samples with an open output; all of the middle."""
    (n, _, h, w), weight1, weight2 = args[0].shape, args[3], args[6]
    middle, ci = weight1.shape[:2]
    open_in = open_counts(args[9], n, ci)
    open_out = open_counts(args[10], n, weight2.shape[0], args[11])
    macs = (open_out > 0) * (open_in + open_out * 9) * middle * h * w
    return 2 * int(macs.sum())


_SPEC = Op(
    name=_NAME,
    schema=f"(Tensor x, {_ARGUMENTS}) -> (Tensor y, Tensor pooled)",
    reference=reference,
    fake=_fake,
    autocast=_run,
    flops=_flops,
)
_SPEC_INPLACE = Op(
    name=_NAME_INPLACE,
    schema=f"(Tensor(a!) buffer, {_ARGUMENTS}) -> Tensor",
    reference=reference_,
    fake=_fake_inplace,
    flops=_flops,
)
_OP, _OP_INPLACE = register(_SPEC), register(_SPEC_INPLACE)
_OP_TRITON, _OP_INPLACE_TRITON = register_triton(_SPEC), register_triton(_SPEC_INPLACE)
