"""What the fused block operators share: checks of their parts, shortcut and skip, counts, dispatch.

A fused block is several convolutions whose intermediate tensors nobody outside sees. Weights come with
their BatchNorm folded in, and beside them in the panels of `prepack_conv2d`, so that a driver needs
nothing but pointers.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._ops import OpOverload

from ddi_kernels.backends import after_check, choose, no_native_dtype
from ddi_kernels.checks import (
    argument_error,
    check_at_least,
    check_like,
    check_tensor,
    describe,
    empty_output,
    memory_format_of,
)
from ddi_kernels.ops.active_channels import expand_groups, group_count
from ddi_kernels.ops.prepack_conv2d import check_packed
from ddi_kernels.registry import call_kernel


class Residual(NamedTuple):
    """Everything of a residual block outside its residual branch; see `gated_basic_block`."""

    x: Any
    shortcut_weight: Any
    shortcut_bias: Any
    shortcut_packed: Any
    keep: Any
    keep_scale: Any
    stride: Any
    pool: bool
    x_pooled: Any


def check_image(op: str, argument: str, x: Any) -> None:
    """Raises unless x is [N, C, H, W] of a floating dtype, with nothing empty but the batch."""
    check_tensor(op, argument, x, dims=4)
    if not x.dtype.is_floating_point or min(x.shape[1:]) < 1:
        raise argument_error(op, argument, describe(x), "a floating dtype, and no zero but the batch")


def check_conv(
    op: str, label: str, x: Tensor, ci: int, kernel: int, weight: Any, bias: Any, packed: Any
) -> int:
    """Checks one convolution from ci channels; its arguments are named by `label`. Returns Co."""
    name = label.format("weight")
    check_tensor(op, name, weight, dims=4)
    co = weight.shape[0]
    if co < 1:
        raise argument_error(op, name, describe(weight), f"shape (Co, {ci}, {kernel}, {kernel}), Co > 0")
    check_like(op, name, weight, (co, ci, kernel, kernel), x.dtype, like=x)
    if bias is not None:
        check_like(op, label.format("bias"), bias, (co,), x.dtype, like=x)
    if packed is not None:
        check_packed(op, label.format("packed"), packed, weight, 1, x)
    return int(co)


def check_gate(op: str, x: Tensor, name: str, mask: Any, scale: Any, channels: int, group_size: int) -> None:
    """Checks the mask, and its scale, over the channel groups of one tensor."""
    form = (x.shape[0], group_count(channels, group_size))
    if mask is not None:
        check_like(op, name, mask, form, torch.bool, like=x)
    if scale is not None:
        check_like(op, f"{name}_scale", scale, form, x.dtype, like=x)


def check_residual(op: str, r: Residual, co: int) -> tuple[int, int, int, int]:
    """Checks the parts around a residual branch that ends in co channels; the output's shape."""
    n, ci, h, w = r.x.shape
    check_at_least(op, "stride", r.stride, 1)
    if r.shortcut_weight is not None:
        parts = (r.shortcut_weight, r.shortcut_bias, r.shortcut_packed)
        shortcut_co = check_conv(op, "shortcut_{}", r.x, ci, 1, *parts)
        if shortcut_co != co:
            expected = f"{co} output channels, as the residual branch has"
            raise argument_error(op, "shortcut_weight", describe(r.shortcut_weight), expected)
    elif r.stride != 1 or ci != co:
        expected = f"a 1x1 convolution's weight of shape ({co}, {ci}, 1, 1)"
        remedy = f"A block with stride {r.stride} from {ci} to {co} channels cannot add x itself."
        raise argument_error(op, "shortcut_weight", "None", expected, remedy)
    for name, value in (("shortcut_bias", r.shortcut_bias), ("shortcut_packed", r.shortcut_packed)):
        if r.shortcut_weight is None and value is not None:
            raise argument_error(op, name, describe(value), "None without shortcut_weight")
    _check_skip(op, r, n, ci)
    return n, co, (h - 1) // r.stride + 1, (w - 1) // r.stride + 1


def _check_skip(op: str, r: Residual, n: int, ci: int) -> None:
    if r.keep is not None:
        if r.shortcut_weight is not None:
            remedy = "A skipped sample is x itself: only blocks with stride 1 and no shortcut_weight skip."
            expected = "None with a shortcut convolution"
            raise argument_error(op, "keep", describe(r.keep), expected, remedy)
        check_like(op, "keep", r.keep, (n,), torch.bool, like=r.x)
    if r.keep_scale is not None:
        check_like(op, "keep_scale", r.keep_scale, (n,), r.x.dtype, like=r.x)
    if r.x_pooled is not None:
        if not r.pool:
            raise argument_error(op, "x_pooled", describe(r.x_pooled), "None without pool=True")
        check_like(op, "x_pooled", r.x_pooled, (n, ci), pooled_dtype(r.x), like=r.x)


def pooled_dtype(x: Tensor) -> torch.dtype:
    """Gates compare means with a threshold: never below float32, whatever x is."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def pooled_means(y: Tensor, pool: bool) -> Tensor:
    """[N, C] means over the pixels, [N, 0] without `pool`."""
    if not pool:
        return y.new_empty((y.shape[0], 0), dtype=pooled_dtype(y))
    return y.mean((2, 3), dtype=pooled_dtype(y))


def select_open(y: Tensor, mask: Tensor | None, group_size: int) -> Tensor:
    """y with zeros in the closed channels; by selection, since a product would keep a NaN."""
    if mask is None:
        return y
    return torch.where(expand_groups(mask, y.shape[1], group_size)[:, :, None, None], y, 0)


def interior(y: Tensor, mask: Tensor | None, scale: Tensor | None, group_size: int) -> Tensor:
    """relu(mask * scale * y): what follows an inner convolution of a block."""
    if scale is not None:
        y = y * expand_groups(scale, y.shape[1], group_size)[:, :, None, None]
    return select_open(y, mask, group_size).relu()


def join(r: Residual, y: Tensor) -> tuple[Tensor, Tensor]:
    """Ends a block: scale, shortcut, ReLU, skipped samples, pooled means."""
    shortcut = r.x
    if r.shortcut_weight is not None:
        shortcut = F.conv2d(r.x, r.shortcut_weight, r.shortcut_bias, r.stride)
    if r.keep_scale is not None:
        y = y * r.keep_scale[:, None, None, None]
    y = (y + shortcut).relu()
    if r.keep is not None:
        y = torch.where(r.keep[:, None, None, None], y, r.x)
    pooled = pooled_means(y, r.pool)
    if r.keep is not None and r.x_pooled is not None:
        pooled = torch.where(r.keep[:, None], pooled, r.x_pooled)
    return y.contiguous(memory_format=memory_format_of(r.x)), pooled


def empty_block(x: Tensor, shape: tuple[int, ...], pool: bool) -> tuple[Tensor, Tensor]:
    """Output and pooled means of a block with this output shape, not yet written."""
    pooled = x.new_empty((shape[0], shape[1] if pool else 0), dtype=pooled_dtype(x))
    return empty_output(x, shape), pooled


def open_counts(mask: Tensor | None, n: int, channels: int, group_size: int = 1) -> Tensor:
    """int64[N]: the open channels of each sample."""
    if mask is None:
        return torch.full((n,), channels)
    return expand_groups(mask, channels, group_size).sum(1).cpu()


def residual_flops(r: Residual, branch_macs: Tensor, out: Tensor) -> int:
    """Two FLOPs for each multiply-add: int64[N] of the branch where it is kept, and the shortcut's."""
    if r.keep is not None:
        branch_macs = branch_macs * r.keep.cpu()
    shortcut = 0 if r.shortcut_weight is None else out.numel() * r.x.shape[1]
    return 2 * (int(branch_macs.sum()) + shortcut)


def needs_gradient(args: tuple[Any, ...]) -> bool:
    """Whether any of a call's tensors takes part in a backward pass."""
    return torch.is_grad_enabled() and any(isinstance(a, Tensor) and a.requires_grad for a in args)


def unsupported_image(
    x: Tensor, dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.float64)
) -> str | None:
    """Why the compiled kernels of blocks and gates cannot take an image, None where they can."""
    if not x.is_cpu:
        return f"it has no kernel for {x.device.type} tensors"
    if x.dtype not in dtypes:
        return no_native_dtype(x, dtypes)
    return None


def dispatch(
    op: str,
    overload: OpOverload,
    reference: Callable[..., Any],
    check_args: Callable[..., Any],
    args: tuple[Any, ...],
    no_native: str | None,
    overload_triton: OpOverload | None = None,
    no_triton: Callable[..., str | None] | None = None,
) -> Any:
    """Calls the implementation that the backend in force, and a gradient if one is needed, ask for."""
    if needs_gradient(args):
        return reference(*args)
    checked = None if no_triton is None else partial(after_check, check_args, no_triton)
    choice = choose(op, no_native, checked, args, args[0].is_cuda)
    if choice == "reference":
        return reference(*args)
    chosen = overload if choice == "native" else overload_triton
    return call_kernel(cast(OpOverload, chosen), check_args, args)
