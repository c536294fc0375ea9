"""What the checks of all operators share: the wording of an error, small argument checks, and the
memory format that an output takes from its input. A check costs a comparison; text is only built
once something is wrong, so that checks are cheap and traceable by torch.compile."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ddi_kernels.geometry import output_size


def argument_error(op: str, argument: str, got: Any, expected: str, remedy: str = "") -> ValueError:
    """The one form of an argument error: operator, argument, what is allowed, what came, remedy."""
    text = f"{op}: argument '{argument}': expected {expected}, got {got}"
    return ValueError(f"{text}. {remedy}" if remedy else text)


def describe(value: Any) -> str:
    """Dtype, shape and device of a tensor, or the type of anything else, for an error text."""
    if isinstance(value, Tensor):
        return f"{value.dtype} of shape {tuple(value.shape)} on {value.device}"
    return f"{type(value).__name__} {value!r:.60}"


def check_tensor(op: str, argument: str, value: Any, dims: int | None = None) -> None:
    """Raises unless value is a tensor, with so many dimensions if `dims` is given."""
    if not isinstance(value, Tensor) or (dims is not None and value.dim() != dims):
        form = "a tensor" if dims is None else f"a {dims}-dimensional tensor"
        raise argument_error(op, argument, describe(value), form)


def check_like(
    op: str, argument: str, value: Any, shape: tuple[int, ...], dtype: torch.dtype, like: Tensor
) -> None:
    """Raises unless value is a tensor of this shape and dtype on the device of `like`."""
    if (
        not isinstance(value, Tensor)
        or value.shape != shape
        or value.dtype != dtype
        or value.device != like.device
    ):
        expected = f"{dtype} of shape {tuple(shape)} on {like.device}"
        raise argument_error(op, argument, describe(value), expected)


def check_at_least(op: str, argument: str, value: Any, minimum: int) -> None:
    """Raises unless value is an integer of at least `minimum`."""
    if not isinstance(value, int | torch.SymInt) or value < minimum:
        raise argument_error(op, argument, describe(value), f"an integer of at least {minimum}")


def check_own_memory(op: str, argument: str, x: Tensor) -> None:
    """Raises unless x, which is written, has memory for each of its elements."""
    if any(size > 1 and stride == 0 for size, stride in zip(x.shape, x.stride(), strict=True)):
        remedy = "Elements of an expanded tensor share memory: clone() it before writing to it."
        raise argument_error(op, argument, describe(x), "memory of its own", remedy)


def as_pair(value: Any) -> Any:
    """An int twice, anything else as it is: `check_pair` judges it."""
    return (value, value) if isinstance(value, int) else value


def check_pair(op: str, argument: str, value: Any, minimum: int) -> None:
    """Raises unless value is two integers, each at least `minimum` and below 2**31."""
    if (
        not isinstance(value, tuple | list)
        or len(value) != 2
        or not all(isinstance(v, int | torch.SymInt) and minimum <= v < 2**31 for v in value)
    ):
        expected = f"an integer or two, each at least {minimum} and below 2**31"
        raise argument_error(op, argument, describe(value), expected)


def memory_format_of(x: Tensor) -> torch.memory_format:
    """channels_last for a 4-dimensional tensor that is so and not also contiguous, else contiguous.

    Outputs take this format, so that a chain of operators keeps the layout it was started in.
    """
    if x.dim() == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last):
        return torch.channels_last
    return torch.contiguous_format


def empty_output(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """An output of this shape, not yet written, in the dtype, device and memory format of x."""
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=memory_format_of(x))


class Geometry(NamedTuple):
    """All integers of a gated convolution, in the order in which operators take them as one list.

    Every argument of an operator costs torch a tenth of a microsecond; a list costs two, however long.
    """

    stride_h: int
    stride_w: int
    padding_h: int
    padding_w: int
    dilation_h: int
    dilation_w: int
    groups: int
    in_group_size: int
    out_group_size: int
    relu: int

    @property
    def stride(self) -> tuple[int, int]:
        return self.stride_h, self.stride_w

    @property
    def padding(self) -> tuple[int, int]:
        return self.padding_h, self.padding_w

    @property
    def dilation(self) -> tuple[int, int]:
        return self.dilation_h, self.dilation_w


def geometry_list(
    op: str, stride: Any, padding: Any, dilation: Any, groups: Any, in_group_size: Any,
    out_group_size: Any, activation: Any,
) -> tuple[int, ...]:  # fmt: skip
    """The values of a `Geometry` from a public function's arguments, which operators check; a plain tuple."""
    if activation is not None and activation != "relu":
        raise argument_error(op, "activation", describe(activation), "None or 'relu'")
    sh, sw = (stride, stride) if isinstance(stride, int) else _two(op, "stride", stride, 1)
    ph, pw = (padding, padding) if isinstance(padding, int) else _two(op, "padding", padding, 0)
    dh, dw = (dilation, dilation) if isinstance(dilation, int) else _two(op, "dilation", dilation, 1)
    relu = 0 if activation is None else 1
    return sh, sw, ph, pw, dh, dw, groups, in_group_size, out_group_size, relu


def _two(op: str, argument: str, value: Any, minimum: int) -> Any:
    check_pair(op, argument, value, minimum)
    return value


def conv_output_shape(
    op: str,
    x: Any,
    weight: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: Any,
    dtype: torch.dtype | None = None,
) -> tuple[int, int, int, int]:
    """Checks the geometry of a convolution; x must have this dtype, or any floating one."""
    check_tensor(op, "x", x, dims=4)
    if not (x.dtype.is_floating_point if dtype is None else x.dtype == dtype) or min(x.shape[1:]) < 1:
        expected = f"{'a floating dtype' if dtype is None else dtype}, and no zero but the batch"
        raise argument_error(op, "x", describe(x), expected)
    check_tensor(op, "weight", weight, dims=4)
    check_at_least(op, "groups", groups, 1)
    ci, (co, ci_per_group, kh, kw) = x.shape[1], weight.shape
    if min(weight.shape) < 1 or ci_per_group * groups != ci or co % groups:
        expected = f"shape (Co, {ci} / {groups}, kh, kw) with Co a multiple of {groups}"
        raise argument_error(op, "weight", describe(weight), expected)
    for name, pair, minimum in (
        ("stride", stride, 1),
        ("padding", padding, 0),
        ("dilation", dilation, 1),
    ):
        check_pair(op, name, pair, minimum)
    ho, wo = output_size(x.shape[2:], (kh, kw), stride, padding, dilation)
    if ho < 1 or wo < 1:
        remedy = "The dilated kernel is larger than the padded image."
        raise argument_error(op, "x", describe(x), "an output of at least 1x1", remedy)
    return x.shape[0], co, ho, wo
