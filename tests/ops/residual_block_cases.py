"""Calls of gated_basic_block and gated_bottleneck to compare: what varies, and what must come out.

A call holds NaN wherever nothing may be read: scales of closed channels and skipped samples, weights of
channels that no kept sample opens, pooled means that are not passed on. The expectation is computed
without them, in float64, from dense convolutions times masks.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from gated_conv2d_cases import lay_out, make_mask, per_channel
from native import ISAS
from tolerances import TOLERANCES, assert_close
from torch import Tensor

from ddi_kernels import prepack_conv2d

NAN = torch.nan


@dataclass(frozen=True)
class Case:
    batch: int = 3
    ci: int = 17
    interior: tuple[int, int] = (19, 13)  # a basic block has the first only
    co: int | None = None  # another number of channels than x, with a shortcut convolution
    size: tuple[int, int] = (6, 7)
    stride: int = 1
    shortcut: bool = False
    group_sizes: tuple[int, int] = (1, 4)
    open: str | None = "random"
    mask_scale: bool = False
    keep: str | None = "random"
    keep_scale: bool = False
    layout: str = "channels_last"
    bias: bool = True
    packed: bool = False
    pool: bool = False
    x_pooled: bool = False
    strided: bool = False  # no operand is contiguous
    dtype: torch.dtype = torch.float32

    @property
    def projects(self) -> bool:
        return self.shortcut or self.stride != 1 or self.co not in (None, self.ci)


FACTORS: dict[str, list[Any]] = {
    "batch": [0, 1, 3],
    "ci": [1, 3, 16, 33],
    "interior": [(1, 1), (5, 16), (33, 3), (64, 17)],
    "co": [None, 1, 8, 33],
    "size": [(1, 1), (4, 4), (7, 9), (3, 19), (16, 15)],
    "stride": [1, 2, 3],
    "shortcut": [True, False],
    "group_sizes": [(1, 1), (4, 8), (16, 5)],
    "open": ["all", "none", "one", "random", None],
    "mask_scale": [True, False],
    "keep": ["all", "none", "random", None],
    "keep_scale": [True, False],
    "layout": ["contiguous", "channels_last", "sliced", "expanded", "transposed"],
    "bias": [True, False],
    "packed": [True, False],
    "pool": [True, False],
    "x_pooled": [True, False],
    "strided": [True, False],
    "dtype": [torch.float32, torch.float64, torch.bfloat16, torch.float16],
}


def single_changes(factors: dict[str, list[Any]], default: Any) -> list[dict[str, Any]]:
    """The default case with every value of every factor in turn."""
    changes = [{k: v} for k, values in factors.items() for v in values]
    return [{}, *(c for c in changes if any(getattr(default, k) != v for k, v in c.items()))]


def random_changes(factors: dict[str, list[Any]], count: int) -> list[dict[str, Any]]:
    """Cases in which every factor varies."""
    rng = random.Random(0)
    return [{k: rng.choice(values) for k, values in factors.items()} for _ in range(count)]


def case_id(changes: dict[str, Any]) -> str:
    def word(value: Any) -> str:
        return "x".join(map(str, value)) if isinstance(value, tuple) else str(value).removeprefix("torch.")

    return "-".join(f"{k}={word(v)}" for k, v in changes.items()) or "default"


def _conv(co: int, ci: int, kernel: int, bias: bool, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    weight = torch.randn(co, ci, kernel, kernel) / (ci * kernel * kernel) ** 0.5
    return weight.to(dtype).double(), torch.randn(co).to(dtype).double() if bias else None


def build(case: Case, kernels: tuple[int, ...]) -> tuple[dict[str, Any], Tensor, Tensor]:
    """Keyword arguments of a call, and y and pooled in float64; `kernels` says which block it is.

    (3, 3) is a basic block and (1, 3, 1) a bottleneck; the stride is that of the first 3x3 convolution.
    """
    n, last = case.batch, len(kernels) - 1
    co = case.ci if case.co is None else case.co
    widths = [case.ci, *case.interior[:last], co]
    keep = None if case.projects or case.keep is None else make_mask(case.keep, n, 1, 1)[:, 0]
    kept = torch.ones(n, dtype=torch.bool) if keep is None else keep
    x = torch.randn(n, case.ci, *case.size).to(case.dtype).double()
    if case.layout == "expanded" and n:
        x = x[:1].expand_as(x)
    arguments: dict[str, Any] = {}
    h = x
    for i, kernel in enumerate(kernels):
        weight, bias = _conv(widths[i + 1], widths[i], kernel, case.bias, case.dtype)
        stride = case.stride if i == kernels.index(3) else 1
        h = F.conv2d(h, weight, bias, stride, kernel // 2)
        if i < last:
            mask = make_mask(case.open, n, widths[i + 1], case.group_sizes[i])
            scale = torch.randn(n, -(-widths[i + 1] // case.group_sizes[i])).to(case.dtype).double()
            scale = scale if case.mask_scale else None
            h = h if scale is None else h * per_channel(scale, widths[i + 1], case.group_sizes[i])
            if mask is not None:
                opened = per_channel(mask, widths[i + 1], case.group_sizes[i])
                h = h * opened
                never = ~(opened.flatten(1) & kept[:, None]).any(0)
                weight[never] = NAN
                if bias is not None:
                    bias[never] = NAN
            if scale is not None:
                unread = ~kept[:, None] | (False if mask is None else ~mask)
                scale = scale.masked_fill(unread, NAN)
            h = h.relu()
            # A basic block's only mask has no number.
            number = "" if last == 1 else str(i + 1)
            arguments |= {f"mask{number}": mask, f"mask{number}_scale": scale}
            arguments[f"group_size{number}"] = case.group_sizes[i]
        arguments |= {f"weight{i + 1}": weight, f"bias{i + 1}": bias}
    return _finish(case, arguments, x, h, keep)


def strided(value: Tensor) -> Tensor:
    """The same values, every second of a larger tensor's last dimension."""
    return value.repeat_interleave(2, dim=-1)[..., ::2]


def _finish(
    case: Case, arguments: dict[str, Any], x: Tensor, y: Tensor, keep: Tensor | None
) -> tuple[dict[str, Any], Tensor, Tensor]:
    shortcut, arguments["shortcut_weight"], arguments["shortcut_bias"] = x, None, None
    if case.projects:
        weight, bias = _conv(y.shape[1], case.ci, 1, case.bias, case.dtype)
        arguments |= {"shortcut_weight": weight, "shortcut_bias": bias}
        shortcut = F.conv2d(x, weight, bias, case.stride)
    keep_scale = torch.randn(case.batch).to(case.dtype).double() if case.keep_scale else None
    y = y if keep_scale is None else y * keep_scale[:, None, None, None]
    y = (y + shortcut).relu()
    x_pooled = torch.randn(case.batch, case.ci) if case.pool and case.x_pooled else None
    if x_pooled is not None and case.dtype == torch.float64:
        x_pooled = x_pooled.double()
    pooled = y.mean((2, 3)) if case.pool else y.new_empty(case.batch, 0)
    if keep is not None:
        y = torch.where(keep[:, None, None, None], y, x)
        if case.pool:
            passed_on = x.mean((2, 3)) if x_pooled is None else x_pooled.double()
            pooled = torch.where(keep[:, None], pooled, passed_on)
            x_pooled = None if x_pooled is None else x_pooled.masked_fill(keep[:, None], NAN)
        keep_scale = None if keep_scale is None else keep_scale.masked_fill(~keep, NAN)
    arguments |= {"x": x, "keep": keep, "keep_scale": keep_scale}
    for name, value in arguments.items():
        if isinstance(value, Tensor) and value.is_floating_point():
            arguments[name] = value.to(case.dtype)
    for name in [name for name in arguments if "weight" in name]:
        weight = arguments[name] if case.packed else None
        arguments[name.replace("weight", "packed")] = None if weight is None else prepack_conv2d(weight)
    arguments["x_pooled"] = x_pooled
    if case.strided:
        arguments = {k: strided(v) if isinstance(v, Tensor) else v for k, v in arguments.items()}
    arguments["x"] = lay_out(arguments["x"], case.layout)
    return arguments | {"stride": case.stride, "pool": case.pool}, y, pooled


def check(case: Case, block: Callable[..., tuple[Tensor, Tensor]], kernels: tuple[int, ...]) -> None:
    """Runs a case: values, the exact rows of skipped samples, dtypes and layout."""
    torch.manual_seed(0)
    arguments, expected, expected_pooled = build(case, kernels)
    y, pooled = block(**arguments)
    x, keep = arguments["x"], arguments["keep"]
    assert y.dtype == case.dtype
    assert_close(y, expected)
    assert pooled.dtype == (torch.float64 if case.dtype == torch.float64 else torch.float32)
    atol, rtol = TOLERANCES[case.dtype]
    torch.testing.assert_close(pooled.double(), expected_pooled, atol=atol, rtol=rtol)
    if keep is not None:
        assert torch.equal(y[~keep], x[~keep])
        if arguments["x_pooled"] is not None:
            assert torch.equal(pooled[~keep], arguments["x_pooled"][~keep])
    last = not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
    wanted = torch.channels_last if last else torch.contiguous_format
    assert y.is_contiguous(memory_format=wanted)


def plain(case: Case, kernels: tuple[int, ...]) -> dict[str, Any]:
    """A call without NaN, for what runs the operator rather than judges its values."""
    torch.manual_seed(0)
    return without_nan(build(case, kernels)[0])


def without_nan(arguments: dict[str, Any]) -> dict[str, Any]:
    """A number for each NaN; tensors without one stay, strides and all."""

    def numbers(value: Any) -> Any:
        return torch.nan_to_num(value, 0.25) if isinstance(value, Tensor) and value.isnan().any() else value

    return {name: numbers(value) for name, value in arguments.items()}


def positional(overload: Any, arguments: dict[str, Any]) -> tuple[Any, ...]:
    """The same call as positional arguments of torch.ops.ddi.<operator>.default."""
    names = [argument.name for argument in overload._schema.arguments]
    assert sorted(names) == sorted(arguments)
    return tuple(arguments[name] for name in names)


KERNELS = pytest.mark.parametrize("kernel", ("reference", *ISAS), indirect=True)
