"""Collects the samples that a layer is going to process: rows = x[index] along the batch.

The layer then runs on a smaller batch, so that a skipped sample costs nothing in it. One contiguous
copy per sample, in the layout of x (channels_last stays so), of any dtype.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ddi_kernels.backends import no_native_kernel, use_native
from ddi_kernels.checks import argument_error, check_tensor, describe, empty_output, memory_format_of
from ddi_kernels.registry import Op, register

_NAME = "gather_samples"


def gather_samples(x: Tensor, index: Tensor) -> Tensor:
    """The samples of a batch that `index` names.

    Args:
        x: Tensor[N, ...] of any dtype and strides.
        index: int64[K], each in [0, N); a sample may be named more than once.

    Returns:
        Tensor[K, ...], channels_last if x is (and not also contiguous), else contiguous.

    Raises:
        ValueError: an argument has the wrong type, shape or range.

    Example:
        >>> import torch
        >>> from ddi_kernels import gather_samples
        >>> gather_samples(torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([2, 0])).tolist()
        [[3.0], [1.0]]
    """
    check_tensor(_NAME, "x", x)
    if use_native(_NAME, no_native_kernel(_NAME, x)):
        try:
            return _OP(x, index)
        except RuntimeError:
            check_rows(_NAME, x, index)
            raise
    return reference(x, index)


def check_rows(op: str, x: Any, index: Any) -> None:
    """Raises unless `index` is a list of rows of x; also of their range, where it can be read."""
    check_index(op, x, index)
    # Reading a device's values would wait for it, and a traced graph has none.
    if index.is_cpu and index.numel() and not torch.compiler.is_compiling():
        low, high = (int(v) for v in index.aminmax())
        if low < 0 or high >= x.shape[0]:
            expected = f"values in [0, {x.shape[0]})"
            raise argument_error(op, "index", f"values in [{low}, {high}]", expected)


def check_index(op: str, x: Any, index: Any) -> None:
    """Raises unless x has a batch and `index` is int64[K] on its device."""
    check_tensor(op, "x", x)
    if x.dim() < 1:
        raise argument_error(op, "x", describe(x), "at least one dimension, the batch")
    check_tensor(op, "index", index, dims=1)
    if index.dtype != torch.int64 or index.device != x.device:
        raise argument_error(op, "index", describe(index), f"torch.int64 on {x.device}")


def reference(x: Tensor, index: Tensor) -> Tensor:
    """Plain torch `gather_samples`, the specification of all other implementations."""
    check_rows(_NAME, x, index)
    return x.index_select(0, index).contiguous(memory_format=memory_format_of(x))


def _fake(x: Tensor, index: Tensor) -> Tensor:
    check_index(_NAME, x, index)
    return empty_output(x, (index.shape[0], *x.shape[1:]))


def _setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    x, index = inputs
    ctx.save_for_backward(index)
    ctx.shape = x.shape


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
    (index,) = ctx.saved_tensors
    return grad.new_zeros(ctx.shape).index_add(0, index, grad), None


_OP = register(
    Op(
        name=_NAME,
        schema="(Tensor x, Tensor index) -> Tensor",
        reference=reference,
        fake=_fake,
        backward=_backward,
        setup_context=_setup_context,
    )
)
