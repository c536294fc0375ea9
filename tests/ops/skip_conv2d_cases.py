"""Calls of skip_conv2d_ to compare: operands with NaN in all skipped samples, and what must come out."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from gated_conv2d_cases import lay_out
from torch import Tensor

KEEPS = {
    "all": [True] * 4,
    "none": [False] * 4,
    "one": [False, False, True, False],
    "some": [True, False, False, True],
}
CASES: dict[str, dict[str, Any]] = {
    "plain": {"bias": False},
    "accumulate": {"accumulate": True},
    "everything": {"accumulate": True, "relu": True, "scale": True},
    "stride": {"stride": 2, "accumulate": True},
    "geometry": {"kernel": (3, 2), "stride": (1, 2), "padding": (2, 0), "dilation": (1, 3)},
    "1x1": {"kernel": (1, 1), "padding": 0},
    "5x5": {"kernel": (5, 5), "padding": 2},
    "tails": {"ci": 17, "co": 70, "size": (7, 9)},
    "one-channel": {"ci": 1, "co": 1},
    "one-pixel": {"size": (1, 1)},
    "contiguous": {"layout": "contiguous"},
    "sliced": {"layout": "sliced"},
    "empty": {"keep": "empty"},
}


def build(
    ci: int = 24, co: int = 16, size: tuple[int, int] = (5, 6), kernel: tuple[int, int] = (3, 3),
    stride: Any = 1, padding: Any = 1, dilation: Any = 1, keep: str = "some", bias: bool = True,
    scale: bool = False, accumulate: bool = False, relu: bool = False, layout: str = "channels_last",
    dtype: torch.dtype = torch.float32, nan: bool = True,
) -> tuple[dict[str, Any], Tensor]:  # fmt: skip
    """Keyword arguments of a call, and all samples of the convolution in float64."""
    torch.manual_seed(0)
    kept = torch.tensor(KEEPS.get(keep, []), dtype=torch.bool)
    n = len(kept)
    x, weight = torch.randn(n, ci, *size), torch.randn(co, ci, *kernel)
    weight /= weight[0].numel() ** 0.5
    tensors = [x, weight, torch.randn(co) if bias else None, torch.randn(n) if scale else None]
    x, weight, offset, factor = (t if t is None else t.to(dtype) for t in tensors)
    doubles = [t if t is None else t.double() for t in (x, weight, offset, factor)]
    y = F.conv2d(doubles[0], doubles[1], doubles[2], stride, padding, dilation)
    out = torch.randn(y.shape).to(dtype)
    y = y if factor is None else y * doubles[3][:, None, None, None]
    y = y + out.double() if accumulate else y
    if nan:
        x[~kept] = torch.nan
        out[~kept] = torch.nan
    arguments = {
        "out": lay_out(out, "channels_last"),
        "x": lay_out(x, layout),
        "weight": weight,
        "bias": offset,
        "keep": kept,
        "scale": factor,
        "stride": stride,
        "padding": padding,
        "dilation": dilation,
        "accumulate": accumulate,
        "activation": "relu" if relu else None,
    }
    return arguments, y.relu() if relu else y
