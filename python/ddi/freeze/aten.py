"""ATen operators as the engine's operations: one function each, listed at the end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from .ir import Conv, FreezeError, Node

__all__ = ["TRANSLATIONS", "Source"]

aten = torch.ops.aten


@dataclass(frozen=True)
class Source:
    """Where an operator stands in the model, and the shape of its value, without the batch."""

    name: str
    shape: tuple[int, ...]

    def node(self, op: str, *inputs: Node, **attrs: Any) -> Node:
        return Node(op, self.name, list(inputs), self.shape, attrs)


def _pair(value: Any) -> tuple[int, int]:
    values = [value] if isinstance(value, int) else list(value)
    return (values[0], values[0]) if len(values) == 1 else (values[0], values[1])


def _image(x: Any) -> Node:
    if not isinstance(x, Node) or len(x.shape) != 3:
        raise FreezeError("expected an image [N, C, H, W]")
    return x


def _conv2d(
    at: Source,
    x: Node,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Node:
    if padding == "valid":
        padding = 0
    if padding == "same":
        extents = [d * (k - 1) for d, k in zip(_pair(dilation), weight.shape[2:], strict=True)]
        if any(extent % 2 for extent in extents):
            raise FreezeError("padding='same' of an even kernel pads one side more than the other")
        padding = [extent // 2 for extent in extents]
    conv = Conv(weight, bias, _pair(stride), _pair(padding), _pair(dilation), groups, at.name)
    return at.node("conv", _image(x), conv=conv, relu=False)


def _batch_norm(
    at: Source,
    x: Node,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor | None,
    var: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    *_: Any,
) -> Node:
    if mean is None or var is None:
        raise FreezeError("a batch norm without running statistics depends on the whole batch")
    bn = SimpleNamespace(weight=weight, bias=bias, running_mean=mean, running_var=var, eps=eps)
    return at.node("batch_norm", _image(x), bn=bn)


def _activation(kind: str) -> Callable[..., Node]:
    def translate(at: Source, x: Node, *_: Any) -> Node:
        return at.node("activation", x, kind=kind)

    return translate


def _hardtanh(at: Source, x: Node, low: float = -1.0, high: float = 1.0) -> Node:
    if (low, high) != (0.0, 6.0):
        raise FreezeError(f"clamping to [{low}, {high}]; the engine has relu6, to [0, 6]")
    return at.node("activation", x, kind="relu6")


def _add(at: Source, a: Any, b: Any, alpha: float = 1) -> Node:
    if not (isinstance(a, Node) and isinstance(b, Node)) or a.shape != b.shape or alpha != 1:
        raise FreezeError("only values of one shape are added")
    return at.node("add", a, b)


def _multiply(at: Source, a: Any, b: Any) -> Node:
    if not (isinstance(a, Node) and isinstance(b, Node)):
        raise FreezeError("only an image and one factor a channel are multiplied")
    if len(a.shape) == 1 or tuple(a.shape[1:]) == (1, 1):
        a, b = b, a
    if len(a.shape) != 3 or tuple(b.shape) not in ((a.shape[0],), (a.shape[0], 1, 1)):
        raise FreezeError("only an image and one factor a channel are multiplied")
    return at.node("multiply", a, b)


def _pool(
    at: Source, x: Node, kind: str, kernel: Any, stride: Any, padding: Any, count_padding: bool
) -> Node:
    stride = kernel if stride in (None, [], ()) else stride
    size = dict(kernel=_pair(kernel), stride=_pair(stride), padding=_pair(padding))
    return at.node("pool", _image(x), kind=kind, count_padding=count_padding, **size)


def _max_pool(
    at: Source,
    x: Node,
    kernel: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil: bool = False,
) -> Node:
    if _pair(dilation) != (1, 1):
        raise FreezeError("max pooling with dilation")
    return _pool(at, x, "max", kernel, stride, padding, False)


def _avg_pool(
    at: Source,
    x: Node,
    kernel: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil: bool = False,
    count_include_pad: bool = True,
    divisor: int | None = None,
) -> Node:
    if divisor is not None or (ceil and count_include_pad):
        raise FreezeError("average pooling with divisor_override, or with ceil_mode and count_include_pad")
    return _pool(at, x, "average", kernel, stride, padding, count_include_pad)


def _adaptive_avg_pool(at: Source, x: Node, size: Sequence[int]) -> Node:
    _, height, width = _image(x).shape
    if _pair(size) == (1, 1):
        return at.node("mean", x)
    kernel = height // at.shape[1], width // at.shape[2]
    if kernel[0] * at.shape[1] != height or kernel[1] * at.shape[2] != width:
        raise FreezeError(
            f"adaptive pooling from {(height, width)} to {at.shape[1:]}, windows differ in size"
        )
    return _pool(at, x, "average", kernel, kernel, 0, True)


def _mean(at: Source, x: Node, dims: Sequence[int], keepdim: bool = False, **_: Any) -> Node:
    if sorted(d % 4 for d in dims) != [2, 3]:
        raise FreezeError(f"a mean over dimensions {list(dims)}; expected height and width")
    return at.node("mean", _image(x))


def _linear(at: Source, x: Node, weight: Tensor, bias: Tensor | None = None) -> Node:
    return at.node("linear", x, weight=weight, bias=bias, kind="none")


def _reshape(at: Source, x: Node, *_: Any) -> Node:
    """Of a vector, whatever dimensions of one element it has."""
    if len(x.shape) == 3 and tuple(x.shape[1:]) != (1, 1) and at.shape != x.shape:
        return at.node("flatten", x)
    return x


def _cat(at: Source, xs: Sequence[Node], dim: int = 0) -> Node:
    if dim not in (1, -3) or any(len(x.shape) != 3 for x in xs):
        raise FreezeError("only channels of images are concatenated")
    return at.node("cat", *xs)


TRANSLATIONS: dict[Any, Callable[..., Node]] = {
    aten.conv2d.default: _conv2d,
    aten.conv2d.padding: _conv2d,
    aten.batch_norm.default: _batch_norm,
    aten.hardtanh.default: _hardtanh,
    aten.hardtanh_.default: _hardtanh,
    aten.relu6.default: _activation("relu6"),
    aten.add.Tensor: _add,
    aten.add_.Tensor: _add,
    aten.mul.Tensor: _multiply,
    aten.max_pool2d.default: _max_pool,
    aten.avg_pool2d.default: _avg_pool,
    aten.adaptive_avg_pool2d.default: _adaptive_avg_pool,
    aten.mean.dim: _mean,
    aten.linear.default: _linear,
    aten.flatten.using_ints: _reshape,
    aten.view.default: _reshape,
    aten.reshape.default: _reshape,
    aten.dropout.default: lambda at, x, *_: x,
    aten.contiguous.default: lambda at, x, *_: x,
    aten.cat.default: _cat,
}
for _kind in ("relu", "hardswish", "silu", "sigmoid"):
    for _name in (_kind, f"{_kind}_"):
        TRANSLATIONS[getattr(aten, _name).default] = _activation(_kind)
