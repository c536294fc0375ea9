"""Convolution that computes only the open input and output channels of each sample.

y = act(scale * mask * (conv(x * in_mask) + bias) + residual), with x [N, Ci, H, W] of any strides
(channels_last is fastest) and bool masks over channel groups of each sample. A channel that is
closed is neither read nor multiplied by the native kernel, so time falls with the product of the
open input and open output fractions; bias, scale, residual and ReLU ride along in the epilogue.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ddi_kernels.backends import after_check, choose, no_native_dtype, no_native_kernel
from ddi_kernels.checks import (
    Geometry,
    argument_error,
    check_at_least,
    check_like,
    check_tensor,
    conv_output_shape,
    describe,
    empty_output,
    geometry_list,
    memory_format_of,
)
from ddi_kernels.ops.active_channels import expand_groups, group_count
from ddi_kernels.ops.dense_conv2d import dense_conv2d, prefers_dense
from ddi_kernels.ops.prepack_conv2d import DTYPES, GROUPED_DTYPES, check_packed
from ddi_kernels.registry import Op, autocast_enabled, call_kernel, register, register_triton
from ddi_kernels.tiles.tiles import gated_conv2d_unsupported, gpu_conv2d_unsupported

_NAME = "gated_conv2d"
_SCHEMA = (
    "(Tensor x, Tensor weight, Tensor? bias, Tensor? packed, Tensor? in_mask, Tensor? out_mask, "
    "Tensor? scale, Tensor? residual, int[] geometry) -> Tensor"
)
_DIFFERENTIABLE = (0, 1, 2, 6, 7)  # x, weight, bias, scale, residual


def gated_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    packed: Tensor | None = None,
    in_mask: Tensor | None = None,
    out_mask: Tensor | None = None,
    scale: Tensor | None = None,
    residual: Tensor | None = None,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
    in_group_size: int = 1,
    out_group_size: int = 1,
    activation: Literal["relu"] | None = None,
) -> Tensor:
    """Convolution over the open channels of each sample.

    Computes act(scale * mask * (conv(x * in_mask) + bias) + residual), the gated layer of Bejnordi
    et al., "Batch-Shaping for Learning Conditional Channel Gated Networks", ICLR 2020. Closed input
    channels are never read (they may hold NaN). A closed output channel is 0 without a residual
    and act(residual) with one, whatever its weight, bias or scale.

    Where a gradient is needed the dense masked reference runs. The masks are constants of it: for
    straight-through training pass the hard 0/1 gate as a differentiable `scale`, and no `out_mask`.

    Args:
        x: Tensor[N, Ci, H, W] of a floating dtype and any strides. float16 and bfloat16 are summed
            up in float32.
        weight: Tensor[Co, Ci / groups, kh, kw] of x's dtype.
        bias: Tensor[Co] of x's dtype.
        packed: prepack_conv2d(weight, groups), saves reordering the weights on every native call, and lets
            narrow 3x3 convolutions take Winograd's algorithm.
        in_mask: bool[N, ceil(Ci / in_group_size)], the open groups of input channels.
        out_mask: bool[N, ceil(Co / out_group_size)], the open groups of output channels.
        scale: Tensor[N, ceil(Co / out_group_size)] of x's dtype.
        residual: Tensor[N, Co, Ho, Wo] of x's dtype and any strides, added before the activation.
        stride, padding, dilation: as in torch.nn.functional.conv2d, ints or pairs of ints.
        groups: convolution groups; depthwise (groups = Ci = Co) has a kernel of its own. float16 and bfloat16
            have none for groups > 1: the reference runs.
        in_group_size: input channels per entry of in_mask; the last group may be short.
        out_group_size: output channels per entry of out_mask and scale.
        activation: None or "relu".

    Returns:
        Tensor[N, Co, Ho, Wo], channels_last if x is (and not also contiguous), else contiguous.

    Raises:
        ValueError: an argument has the wrong type, shape, dtype or range.
        RuntimeError: the backend chosen by name cannot run this call.

    Example:
        >>> import torch
        >>> from ddi_kernels import gated_conv2d
        >>> x, weight = torch.ones(1, 2, 3, 3), torch.ones(2, 2, 3, 3)
        >>> gate = torch.tensor([[True, False]])
        >>> gated_conv2d(x, weight, in_mask=gate, out_mask=gate).flatten().tolist()
        [9.0, 0.0]
    """
    geometry = geometry_list(
        _NAME, stride, padding, dilation, groups, in_group_size, out_group_size, activation
    )
    args = (x, weight, bias, packed, in_mask, out_mask, scale, residual, geometry)
    check_tensor(_NAME, "x", x)
    if autocast_enabled(x):
        return _OP(*args)
    return _run(*args)


def _run(*args: Any) -> Any:
    if torch.is_grad_enabled() and any(
        isinstance(args[i], Tensor) and args[i].requires_grad for i in _DIFFERENTIABLE
    ):
        return reference(*args)
    x = args[0]
    choice = choose(_NAME, _unsupported(*args), _NO_TRITON, args, x.is_cuda)
    masked = prefers_dense(*args) if choice == "native" and x.is_cpu else None
    if masked is not None:
        check_args(*args)
        return dense_conv2d(masked, *args)
    if choice == "reference":
        return reference(*args)
    return call_kernel(_OP if choice == "native" else _OP_TRITON, check_args, args)


def _unsupported(*args: Any) -> str | None:
    x, geometry = args[0], args[8]
    if not x.is_cpu:
        reason = no_native_kernel(_NAME, x)
        return after_check(check_args, gpu_conv2d_unsupported, *args) if reason is None else reason
    dtype, groups = x.dtype, geometry[6]
    if dtype not in DTYPES:
        return no_native_dtype(x, DTYPES)
    if groups != 1 and dtype not in GROUPED_DTYPES:
        return f"it has no grouped convolution in {dtype} (groups={groups})"
    return None


def check_args(
    x: Any, weight: Any, bias: Any, packed: Any, in_mask: Any, out_mask: Any, scale: Any,
    residual: Any, geometry: Any,
) -> tuple[int, int, int, int]:  # fmt: skip
    """Raises ValueError for the first argument that is wrong; the output's shape otherwise."""
    g = Geometry(*geometry)
    shape = conv_output_shape(_NAME, x, weight, g.stride, g.padding, g.dilation, g.groups)
    gates_in, gates_out = gate_shapes(_NAME, x, shape, g)
    co = shape[1]
    for name, value, form, dtype in (
        ("weight", weight, tuple(weight.shape), x.dtype),
        ("bias", bias, (co,), x.dtype),
        ("in_mask", in_mask, gates_in, torch.bool),
        ("out_mask", out_mask, gates_out, torch.bool),
        ("scale", scale, gates_out, x.dtype),
        ("residual", residual, shape, x.dtype),
    ):
        if value is not None:
            check_like(_NAME, name, value, form, dtype, like=x)
    if packed is not None:
        if g.groups != 1 and x.dtype not in GROUPED_DTYPES:
            expected = f"None for groups > 1 in {x.dtype}"
            remedy = "Only float32 and float64 have a packed form then: pass packed=None."
            raise argument_error(_NAME, "packed", describe(packed), expected, remedy)
        check_packed(_NAME, "packed", packed, weight, g.groups, x)
    return shape


_NO_TRITON = partial(after_check, check_args, gated_conv2d_unsupported)


def gate_shapes(
    op: str, x: Tensor, shape: tuple[int, int, int, int], g: Geometry
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Shapes of the masks of inputs and of outputs, for an output of this shape."""
    check_at_least(op, "in_group_size", g.in_group_size, 1)
    check_at_least(op, "out_group_size", g.out_group_size, 1)
    n, co = shape[:2]
    return (n, group_count(x.shape[1], g.in_group_size)), (n, group_count(co, g.out_group_size))


def reference(
    x: Tensor, weight: Tensor, bias: Tensor | None, packed: Tensor | None, in_mask: Tensor | None,
    out_mask: Tensor | None, scale: Tensor | None, residual: Tensor | None, geometry: Any,
) -> Tensor:  # fmt: skip
    """Plain torch `gated_conv2d`, the specification of all other implementations.

    Dense, differentiable, and masked by selection: a product would let a NaN through a closed gate.
    """
    shape = check_args(x, weight, bias, packed, in_mask, out_mask, scale, residual, geometry)
    g = Geometry(*geometry)
    memory_format = memory_format_of(x)
    if in_mask is not None:
        x = torch.where(per_channel(in_mask, x.shape[1], g.in_group_size), x, 0)
    y = F.conv2d(x, weight, bias, g.stride, g.padding, g.dilation, g.groups)
    if scale is not None:
        y = y * per_channel(scale, shape[1], g.out_group_size)
    if out_mask is not None:
        y = torch.where(per_channel(out_mask, shape[1], g.out_group_size), y, 0)
    if residual is not None:
        y = y + residual
    if g.relu:
        y = y.relu()
    return y.contiguous(memory_format=memory_format)


def per_channel(values: Tensor, channels: int, group_size: int) -> Tensor:
    """A mask or a scale over channel groups, as it multiplies an image."""
    return expand_groups(values, channels, group_size)[:, :, None, None]


def _fake(*args: Any) -> Tensor:
    return empty_output(args[0], check_args(*args))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:8])
    ctx.geometry = inputs[8]


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    # Recomputes the forward: the native kernel keeps nothing, and training runs the reference.
    args = [*ctx.saved_tensors, ctx.geometry]
    wanted = [i for i in _DIFFERENTIABLE if ctx.needs_input_grad[i]]

    def forward(*tensors: Tensor) -> Tensor:
        for i, tensor in zip(wanted, tensors, strict=True):
            args[i] = tensor
        return reference(*args)

    vjp = torch.func.vjp(forward, *[args[i] for i in wanted])[1]
    grads = dict(zip(wanted, vjp(grad), strict=True))
    return tuple(grads.get(i) for i in range(len(args)))


def _flops(*args: Any, out_val: Tensor) -> int:
    """Two FLOPs for each multiply-add of a pair of an open input and an open output channel.

    Positions in the padding count, as they do in torch's own formula of convolutions. The reference
    is counted as the dense convolution that it runs.
    """
    return count_flops(out_val, *(args[i] for i in (0, 1, 4, 5, 8)))


def count_flops(
    y: Tensor, x: Tensor, weight: Tensor, in_mask: Tensor | None, out_mask: Tensor | None, geometry: Any
) -> int:
    """The FLOPs of a gated convolution from the arguments that they depend on."""
    (n, co, ho, wo), g = y.shape, Geometry(*geometry)
    open_in = _open_per_conv_group(in_mask, n, x.shape[1], g.in_group_size, g.groups)
    open_out = _open_per_conv_group(out_mask, n, co, g.out_group_size, g.groups)
    macs = int((open_in * open_out).sum()) * weight.shape[2] * weight.shape[3] * ho * wo
    return 2 * macs


def _open_per_conv_group(mask: Tensor | None, n: int, channels: int, group_size: int, groups: int) -> Tensor:
    if mask is None:
        return torch.full((n, groups), channels // groups)
    return expand_groups(mask, channels, group_size).reshape(n, groups, -1).sum(2).cpu()


_SPEC = Op(
    name=_NAME,
    schema=_SCHEMA,
    reference=reference,
    fake=_fake,
    backward=_backward,
    setup_context=_setup_context,
    autocast=_run,
    flops=_flops,
)
_OP = register(_SPEC)
_OP_TRITON = register_triton(_SPEC)
