"""Convolution of the kept samples of a batch, written in place: skipped samples cost nothing.

For every sample n with keep[n]: out[n] = act(scale[n] * (conv(x[n]) + bias) + out[n]), the last term
only if asked. What out holds for the other samples is neither read nor written. A residual block
that some samples skip is such calls: interior convolutions into scratch memory, the last one into
the block's own input, which then is its output; no sample is gathered, scattered or copied.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ddi_kernels.backends import after_check, choose
from ddi_kernels.checks import (
    argument_error,
    as_pair,
    check_like,
    check_own_memory,
    check_tensor,
    conv_output_shape,
    describe,
)
from ddi_kernels.registry import Op, register, register_triton
from ddi_kernels.tiles.tiles import skip_conv2d_unsupported

_NAME = "skip_conv2d_"
_SCHEMA = (
    "(Tensor(a!) out, Tensor x, Tensor weight, Tensor? bias, Tensor keep, Tensor? scale, "
    "int[2] stride, int[2] padding, int[2] dilation, bool accumulate, bool relu) -> ()"
)


def skip_conv2d_(
    out: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    keep: Tensor,
    scale: Tensor | None = None,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    accumulate: bool = False,
    activation: Literal["relu"] | None = None,
) -> Tensor:
    """Convolution of the kept samples, into the rows of `out` that are theirs. Not differentiable.

    Computes out[n] = act(scale[n] * (conv(x[n]) + bias) + out[n]) where keep[n], with the last term
    only if `accumulate`; other samples of x and out are not touched, and may hold NaN. On a GPU the
    Triton kernel's time falls with the share of kept samples, of which the host need not know. The
    plain torch reference, which runs everywhere else, computes all samples and drops the skipped.

    Args:
        out: Tensor[N, Co, Ho, Wo]; written. Triton wants channels_last.
        x: Tensor[N, Ci, H, W] of a floating dtype and any strides, sharing no memory with out.
        weight: Tensor[Co, Ci, kh, kw] of x's dtype.
        bias: Tensor[Co] of x's dtype.
        keep: bool[N], the samples to compute.
        scale: Tensor[N] of x's dtype, a factor for each sample.
        stride, padding, dilation: as in torch.nn.functional.conv2d, ints or pairs of ints.
        accumulate: add to what out holds, as a residual block does, instead of replacing it.
        activation: None or "relu".

    Returns:
        out.

    Raises:
        ValueError: an argument has the wrong type, shape, dtype or range.
        RuntimeError: a gradient is needed, or the backend chosen by name cannot run this call.

    Example:
        >>> import torch
        >>> from ddi_kernels import skip_conv2d_
        >>> x, weight, out = torch.ones(2, 1, 1, 1), torch.full((1, 1, 1, 1), 3.0), torch.ones(2, 1, 1, 1)
        >>> skip_conv2d_(out, x, weight, keep=torch.tensor([True, False]), accumulate=True).flatten().tolist()
        [4.0, 1.0]
    """
    if activation is not None and activation != "relu":
        raise argument_error(_NAME, "activation", describe(activation), "None or 'relu'")
    check_tensor(_NAME, "x", x)
    tensors = (out, x, weight, bias, scale)
    if torch.is_grad_enabled() and any(isinstance(t, Tensor) and t.requires_grad for t in tensors):
        raise RuntimeError(
            f"{_NAME}: an argument requires a gradient, which the in-place form does not have. "
            "Use gated_conv2d, or call under torch.no_grad()"
        )
    args = (
        out, x, weight, bias, keep, scale, as_pair(stride), as_pair(padding), as_pair(dilation),
        accumulate, activation == "relu",
    )  # fmt: skip
    no_native = "it has no compiled kernel"
    if choose(_NAME, no_native, _NO_TRITON, args, x.is_cuda) == "triton":
        _OP_TRITON(*args)
    else:
        reference(*args)
    return out


def check_args(
    out: Any, x: Any, weight: Any, bias: Any, keep: Any, scale: Any,
    stride: Any, padding: Any, dilation: Any, accumulate: bool, relu: bool,
) -> tuple[int, int, int, int]:  # fmt: skip
    """Raises ValueError for the first argument that is wrong; the output's shape otherwise."""
    shape = conv_output_shape(_NAME, x, weight, stride, padding, dilation, groups=1)
    for name, value, form, dtype in (
        ("weight", weight, tuple(weight.shape), x.dtype),
        ("out", out, shape, x.dtype),
        ("bias", bias, shape[1:2], x.dtype),
        ("keep", keep, shape[:1], torch.bool),
        ("scale", scale, shape[:1], x.dtype),
    ):
        if value is not None or name in ("out", "keep"):
            check_like(_NAME, name, value, form, dtype, like=x)
    _check_memory(out, x)
    return shape


_NO_TRITON = partial(after_check, check_args, skip_conv2d_unsupported)


def _check_memory(out: Tensor, x: Tensor) -> None:
    if torch.compiler.is_compiling():  # a traced graph has no memory yet
        return
    if torch._C._is_alias_of(out, x):  # type: ignore[attr-defined]
        remedy = "A pixel is still read after its neighbours are written: convolve into another tensor."
        raise argument_error(_NAME, "out", "a view of x's memory", "memory of its own", remedy)
    check_own_memory(_NAME, "out", out)


def reference(
    out: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, keep: Tensor, scale: Tensor | None,
    stride: Any, padding: Any, dilation: Any, accumulate: bool, relu: bool,
) -> None:  # fmt: skip
    """Plain torch `skip_conv2d_`, the specification of all other implementations.

    Dense, without reading `keep` on the host, and masked by selection: a product would let NaN through.
    """
    check_args(out, x, weight, bias, keep, scale, stride, padding, dilation, accumulate, relu)
    y = F.conv2d(x, weight, bias, stride, padding, dilation)
    if scale is not None:
        y = y * scale[:, None, None, None]
    if accumulate:
        y = y + out
    if relu:
        y = y.relu()
    out.copy_(torch.where(keep[:, None, None, None], y, out))


def _fake(*args: Any) -> None:
    check_args(*args)


def _flops(*args: Any, out_val: None) -> int:
    """Two FLOPs for each multiply-add of a kept sample; positions in the padding count."""
    out, weight, keep = args[0], args[2], args[4]
    return 2 * int(keep.sum()) * out.shape[2] * out.shape[3] * weight.numel()


_SPEC = Op(name=_NAME, schema=_SCHEMA, reference=reference, fake=_fake, flops=_flops)
_OP = register(_SPEC)
_OP_TRITON = register_triton(_SPEC)
