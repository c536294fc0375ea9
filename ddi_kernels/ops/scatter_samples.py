"""Puts processed samples back into their batch: y = x with y[index] = rows.

The counterpart of gather_samples around a layer that some samples skip. One contiguous copy per
sample, in the layout of x (channels_last stays so), of any dtype; the in-place form leaves the
skipped samples where they are and moves only the processed ones.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ddi_kernels.backends import no_native_kernel, use_native
from ddi_kernels.checks import check_like, check_own_memory, check_tensor, empty_output, memory_format_of
from ddi_kernels.ops.gather_samples import check_index, check_rows
from ddi_kernels.registry import Op, register

_NAME = "scatter_samples"
_NAME_INPLACE = "scatter_samples_"


def scatter_samples(x: Tensor, rows: Tensor, index: Tensor) -> Tensor:
    """A copy of a batch in which `rows` replace the samples that `index` names.

    Args:
        x: Tensor[N, ...] of any dtype and strides.
        rows: Tensor[K, ...] of x's dtype and sample shape, any strides.
        index: int64[K], each in [0, N) and none twice.

    Returns:
        Tensor[N, ...], channels_last if x is (and not also contiguous), else contiguous.

    Raises:
        ValueError: an argument has the wrong type, shape, dtype or range.

    Example:
        >>> import torch
        >>> from ddi_kernels import scatter_samples
        >>> x, rows = torch.zeros(3, 1), torch.tensor([[5.0]])
        >>> scatter_samples(x, rows, torch.tensor([1])).flatten().tolist()
        [0.0, 5.0, 0.0]
    """
    check_tensor(_NAME, "x", x)
    if use_native(_NAME, no_native_kernel(_NAME, x)):
        try:
            return _OP(x, rows, index)
        except RuntimeError:
            _check(_NAME, x, rows, index)
            raise
    return reference(x, rows, index)


def scatter_samples_(x: Tensor, rows: Tensor, index: Tensor) -> Tensor:
    """In-place `scatter_samples`: x[index] = rows. Not differentiable.

    Args:
        x: Tensor[N, ...] of any dtype and strides; written.
        rows: Tensor[K, ...] of x's dtype and sample shape, any strides, not overlapping x.
        index: int64[K], each in [0, N) and none twice.

    Returns:
        x.

    Raises:
        ValueError: an argument has the wrong type, shape, dtype or range.
        RuntimeError: a gradient is needed; use `scatter_samples`.

    Example:
        >>> import torch
        >>> from ddi_kernels import scatter_samples_
        >>> x = torch.zeros(3, 1)
        >>> scatter_samples_(x, torch.tensor([[5.0]]), torch.tensor([1])).flatten().tolist()
        [0.0, 5.0, 0.0]
    """
    check_tensor(_NAME_INPLACE, "x", x)
    check_tensor(_NAME_INPLACE, "rows", rows)
    if torch.is_grad_enabled() and (x.requires_grad or rows.requires_grad):
        raise RuntimeError(
            f"{_NAME_INPLACE}: x or rows requires a gradient, which the in-place form does not "
            "have. Use scatter_samples, or call under torch.no_grad()"
        )
    if use_native(_NAME_INPLACE, no_native_kernel(_NAME_INPLACE, x)):
        try:
            _OP_INPLACE(x, rows, index)
        except RuntimeError:
            _check(_NAME_INPLACE, x, rows, index)
            raise
    else:
        reference_(x, rows, index)
    return x


def _check(op: str, x: Any, rows: Any, index: Any) -> None:
    check_rows(op, x, index)
    _check_form(op, x, rows, index)


def _check_form(op: str, x: Any, rows: Any, index: Any) -> None:
    check_index(op, x, index)
    check_like(op, "rows", rows, (index.shape[0], *x.shape[1:]), x.dtype, like=x)


def reference(x: Tensor, rows: Tensor, index: Tensor) -> Tensor:
    """Plain torch `scatter_samples`, the specification of all other implementations."""
    _check(_NAME, x, rows, index)
    return x.index_copy(0, index, rows).contiguous(memory_format=memory_format_of(x))


def reference_(x: Tensor, rows: Tensor, index: Tensor) -> None:
    """Plain torch `scatter_samples_`, the specification of all other implementations."""
    _check(_NAME_INPLACE, x, rows, index)
    check_own_memory(_NAME_INPLACE, "x", x)
    x.index_copy_(0, index, rows)


def _fake(x: Tensor, rows: Tensor, index: Tensor) -> Tensor:
    _check_form(_NAME, x, rows, index)
    return empty_output(x, x.shape)


def _fake_inplace(x: Tensor, rows: Tensor, index: Tensor) -> None:
    _check_form(_NAME_INPLACE, x, rows, index)


def _setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(inputs[2])


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
    (index,) = ctx.saved_tensors
    return grad.index_fill(0, index, 0), grad.index_select(0, index), None


_OP = register(
    Op(
        name=_NAME,
        schema="(Tensor x, Tensor rows, Tensor index) -> Tensor",
        reference=reference,
        fake=_fake,
        backward=_backward,
        setup_context=_setup_context,
    )
)
_OP_INPLACE = register(
    Op(
        name=_NAME_INPLACE,
        schema="(Tensor(a!) x, Tensor rows, Tensor index) -> ()",
        reference=reference_,
        fake=_fake_inplace,
    )
)
