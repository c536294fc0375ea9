"""gated_conv2d on int8: activations with one scale, weights with one for each output channel.

y = act(scale * mask * (x_scale * weight_scale * conv(x * in_mask, weight) + bias) + residual), with the
sums of the convolution exact in int32 and all else in float32, one rounding after the other: every
implementation returns the same bits. Four channels are multiplied by one instruction where the machine
can (VNNI), four times what float32 does. For inference: no gradient flows through it.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ddi_kernels.backends import no_native_kernel, use_native
from ddi_kernels.checks import (
    Geometry,
    argument_error,
    check_like,
    check_tensor,
    conv_output_shape,
    describe,
    geometry_list,
    memory_format_of,
)
from ddi_kernels.ops.gated_conv2d import count_flops, gate_shapes, per_channel
from ddi_kernels.ops.prepack_conv2d import check_packed
from ddi_kernels.ops.quantize import check_scale, quantize
from ddi_kernels.registry import Op, register

_NAME = "gated_conv2d_int8"
_SCHEMA = (
    "(Tensor x, Tensor weight, Tensor weight_scale, Tensor? bias, Tensor? packed, Tensor? in_mask, "
    "Tensor? out_mask, Tensor? scale, Tensor? residual, float x_scale, float? out_scale, "
    "int[] geometry) -> Tensor"
)
_MOST_PRODUCTS = 2**17 - 1  # of two int8 numbers, whose sum surely fits in int32


def gated_conv2d_int8(
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None = None,
    *,
    x_scale: float,
    out_scale: float | None = None,
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
    """Convolution of int8 operands over the open channels of each sample.

    Computes act(scale * mask * (x_scale * weight_scale * conv(x * in_mask, weight) + bias) + residual);
    see `gated_conv2d` for the gates. No gradient flows through it.

    Args:
        x: int8 Tensor[N, Ci, H, W] of any strides, standing for x_scale * x.
        weight: int8 Tensor[Co, Ci / groups, kh, kw], standing for weight_scale * weight; at most 2**17 - 1
            weights for each output channel, so that sums fit in int32. See `quantize_weight`.
        weight_scale: float32 Tensor[Co].
        bias: float32 Tensor[Co].
        x_scale: what one step of x is worth.
        out_scale: None for a float32 result; else the result is quantized with this scale.
        packed: prepack_conv2d(weight), saves reordering the weights on every native call.
        in_mask: bool[N, ceil(Ci / in_group_size)], the open groups of input channels.
        out_mask: bool[N, ceil(Co / out_group_size)], the open groups of output channels.
        scale: float32 Tensor[N, ceil(Co / out_group_size)].
        residual: float32 Tensor[N, Co, Ho, Wo] of any strides, added before the activation.
        stride, padding, dilation: as in torch.nn.functional.conv2d, ints or pairs of ints.
        groups: convolution groups; only 1 is accelerated.
        in_group_size: input channels per entry of in_mask; the last group may be short.
        out_group_size: output channels per entry of out_mask and scale.
        activation: None or "relu".

    Returns:
        Tensor[N, Co, Ho, Wo], float32, or int8 if out_scale is given: quantize(y, out_scale).
        channels_last if x is (and not also contiguous), else contiguous.

    Raises:
        ValueError: an argument has the wrong type, shape, dtype or range.
        RuntimeError: the backend chosen by name cannot run this call.

    Example:
        >>> import torch
        >>> from ddi_kernels import gated_conv2d_int8, quantize, quantize_weight
        >>> x, gate = quantize(torch.ones(1, 2, 3, 3), 0.5), torch.tensor([[True, False]])
        >>> weight, weight_scale = quantize_weight(torch.ones(2, 2, 3, 3))
        >>> y = gated_conv2d_int8(x, weight, weight_scale, x_scale=0.5, in_mask=gate, out_mask=gate)
        >>> [round(v, 4) for v in y.flatten().tolist()]
        [9.0, 0.0]
    """
    geometry = geometry_list(
        _NAME, stride, padding, dilation, groups, in_group_size, out_group_size, activation
    )
    args = (
        x, weight, weight_scale, bias, packed, in_mask, out_mask, scale, residual, x_scale, out_scale,
        geometry,
    )  # fmt: skip
    check_tensor(_NAME, "x", x)
    with torch.no_grad():
        if not use_native(_NAME, _unsupported(x, groups)):
            return reference(*args)
        try:
            return _OP(*args)
        except RuntimeError:
            check_args(*args)  # words the same mistake alike on all backends
            raise


def _unsupported(x: Tensor, groups: int) -> str | None:
    if not x.is_cpu:
        return no_native_kernel(_NAME, x)
    if groups != 1:
        return f"it has no grouped convolution (groups={groups})"
    return None


def check_args(
    x: Any, weight: Any, weight_scale: Any, bias: Any, packed: Any, in_mask: Any, out_mask: Any,
    scale: Any, residual: Any, x_scale: Any, out_scale: Any, geometry: Any,
) -> tuple[int, int, int, int]:  # fmt: skip
    """Raises ValueError for the first argument that is wrong; the output's shape otherwise."""
    g = Geometry(*geometry)
    shape = conv_output_shape(_NAME, x, weight, g.stride, g.padding, g.dilation, g.groups, torch.int8)
    if weight[0].numel() > _MOST_PRODUCTS:
        expected = f"at most {_MOST_PRODUCTS} weights for each output channel"
        raise argument_error(_NAME, "weight", describe(weight), expected)
    gates_in, gates_out = gate_shapes(_NAME, x, shape, g)
    co = shape[1]
    check_scale(_NAME, "x_scale", x_scale)
    if out_scale is not None:
        check_scale(_NAME, "out_scale", out_scale)
    check_like(_NAME, "weight", weight, tuple(weight.shape), torch.int8, like=x)
    check_like(_NAME, "weight_scale", weight_scale, (co,), torch.float32, like=x)
    for name, value, form, dtype in (
        ("bias", bias, (co,), torch.float32),
        ("in_mask", in_mask, gates_in, torch.bool),
        ("out_mask", out_mask, gates_out, torch.bool),
        ("scale", scale, gates_out, torch.float32),
        ("residual", residual, shape, torch.float32),
    ):
        if value is not None:
            check_like(_NAME, name, value, form, dtype, like=x)
    if packed is not None:
        if g.groups != 1:
            remedy = "Grouped convolutions have no packed form: pass packed=None."
            raise argument_error(_NAME, "packed", describe(packed), "None for groups > 1", remedy)
        check_packed(_NAME, "packed", packed, weight, 1, x)
    return shape


def reference(
    x: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None, packed: Tensor | None,
    in_mask: Tensor | None, out_mask: Tensor | None, scale: Tensor | None, residual: Tensor | None,
    x_scale: float, out_scale: float | None, geometry: Any,
) -> Tensor:  # fmt: skip
    """Plain torch `gated_conv2d_int8`, the specification of all other implementations.

    The convolution runs in float64, which holds sums of int32 exactly; masked by selection.
    """
    shape = check_args(
        x, weight, weight_scale, bias, packed, in_mask, out_mask, scale, residual, x_scale, out_scale,
        geometry,
    )  # fmt: skip
    g = Geometry(*geometry)
    memory_format = memory_format_of(x)
    if in_mask is not None:
        x = torch.where(per_channel(in_mask, x.shape[1], g.in_group_size), x, 0)
    sums = F.conv2d(x.double(), weight.double(), None, g.stride, g.padding, g.dilation, g.groups)
    y = sums.float() * (weight_scale * x_scale)[:, None, None]
    if bias is not None:
        y = y + bias[:, None, None]
    if scale is not None:
        y = y * per_channel(scale, shape[1], g.out_group_size)
    if out_mask is not None:
        y = torch.where(per_channel(out_mask, shape[1], g.out_group_size), y, 0)
    if residual is not None:
        y = y + residual
    if g.relu:
        y = y.relu()
    if out_scale is not None:
        y = quantize(y, out_scale)
    return y.contiguous(memory_format=memory_format)


def _fake(*args: Any) -> Tensor:
    x, dtype = args[0], torch.float32 if args[10] is None else torch.int8
    return torch.empty(check_args(*args), dtype=dtype, device=x.device, memory_format=memory_format_of(x))


def _flops(*args: Any, out_val: Tensor) -> int:
    return count_flops(out_val, *(args[i] for i in (0, 1, 5, 6, 11)))


_OP = register(Op(name=_NAME, schema=_SCHEMA, reference=reference, fake=_fake, flops=_flops))
