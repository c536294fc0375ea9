"""Calls of gated_dense_layer to compare: what varies, how operands are made, what must come out.

A call holds NaN wherever nothing may be read: closed channels of x, all of a skipped sample, the weights
of channels that are never open. The expectation is computed without them, in float64.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from gated_conv2d_cases import lay_out, make_mask, per_channel
from residual_block_cases import strided
from torch import Tensor

from ddi_kernels import prepack_conv2d

NAN = torch.nan


@dataclass(frozen=True)
class Case:
    batch: int = 3
    ci: int = 27
    middle: int = 20
    growth: int = 12
    size: tuple[int, int] = (6, 7)
    group_size: int = 1
    in_open: str | None = "random"
    out_open: str | None = "random"
    layout: str = "channels_last"
    bias: tuple[bool, bool] = (True, False)
    packed: bool = False
    pool: bool = False
    strided: bool = False  # no operand is contiguous
    spare: int = 3  # channels of the buffer behind the new ones
    dtype: torch.dtype = torch.float32


FACTORS: dict[str, list[Any]] = {
    "batch": [0, 1, 3],
    "ci": [1, 3, 16, 33, 50],
    "middle": [1, 5, 16, 48],
    "growth": [1, 4, 12, 17, 32],
    "size": [(1, 1), (4, 4), (7, 9), (3, 19)],
    "group_size": [1, 4, 5, 16],
    "in_open": ["all", "none", "one", "random", None],
    "out_open": ["all", "none", "one", "random", None],
    "layout": ["contiguous", "channels_last", "sliced", "transposed"],
    "bias": [(True, False), (True, True), (False, True), (False, False)],
    "packed": [True, False],
    "pool": [True, False],
    "strided": [True, False],
    "spare": [0, 3],
    "dtype": [torch.float32, torch.float64],
}


def build(case: Case) -> tuple[dict[str, Any], Tensor, Tensor]:
    """Keyword arguments of a call of gated_dense_layer, y and pooled in float64."""
    n, ci, middle, growth = case.batch, case.ci, case.middle, case.growth

    def rounded(*shape: int) -> Tensor:
        return torch.randn(shape).to(case.dtype).double()

    x, scale1, shift1 = rounded(n, ci, *case.size), rounded(ci), rounded(ci)
    weight1 = (rounded(middle, ci, 1, 1) / ci**0.5).to(case.dtype).double()
    weight2 = (rounded(growth, middle, 3, 3) / (3 * middle**0.5)).to(case.dtype).double()
    bias1 = rounded(middle) if case.bias[0] else None
    bias2 = rounded(growth) if case.bias[1] else None
    in_mask = make_mask(case.in_open, n, ci, 1)
    out_mask = make_mask(case.out_open, n, growth, case.group_size)
    h = (x * scale1[:, None, None] + shift1[:, None, None]).relu()
    h = h if in_mask is None else h * per_channel(in_mask, ci, 1)
    y = F.conv2d(F.conv2d(h, weight1, bias1).relu(), weight2, bias2, padding=1)
    runs = torch.ones(n, dtype=torch.bool)
    if out_mask is not None:
        opened = per_channel(out_mask, growth, case.group_size)
        y, runs = y * opened, out_mask.any(1)
        weight2[~opened.any(0).flatten()] = NAN
        if bias2 is not None:
            bias2[~opened.any(0).flatten()] = NAN
    read = runs[:, None] if in_mask is None else runs[:, None] & in_mask
    x = torch.where(read[:, :, None, None], x, NAN)
    unread = ~read.expand(n, ci).any(0)
    arguments: dict[str, Any] = {
        "scale1": scale1.masked_fill(unread, NAN), "shift1": shift1.masked_fill(unread, NAN),
        "weight1": weight1, "bias1": bias1, "weight2": weight2, "bias2": bias2,
    }  # fmt: skip
    arguments = {k: v if v is None else v.to(case.dtype) for k, v in arguments.items()}
    for name in ("1", "2"):
        arguments[f"packed{name}"] = prepack_conv2d(arguments[f"weight{name}"]) if case.packed else None
    arguments |= {"in_mask": in_mask, "out_mask": out_mask}
    if case.strided:
        arguments = {k: v if v is None else strided(v) for k, v in arguments.items()}
    arguments |= {"x": lay_out(x.to(case.dtype), case.layout), "group_size": case.group_size}
    return arguments | {"pool": case.pool}, y, y.mean((2, 3)) if case.pool else y.new_empty(n, 0)


def with_buffer(arguments: dict[str, Any], case: Case) -> dict[str, Any]:
    """The same call in place: x at the front of a buffer whose other channels hold junk."""
    x = arguments["x"]
    junk = torch.randn(case.batch, case.growth + case.spare, *case.size).to(case.dtype)
    junk[:, ::2] = NAN
    buffer = lay_out(torch.cat((x, junk), dim=1), case.layout)
    return {k: v for k, v in arguments.items() if k != "x"} | {"buffer": buffer}
