"""Calls of gated_conv2d to compare: what varies, how the operands are made, what must come out.

A call holds NaN and infinities wherever a gate is closed. The expectation is computed from the
operands without them, in float64, as dense convolution times masks.
"""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ddi_kernels import prepack_conv2d
from ddi_kernels.ops.prepack_conv2d import GROUPED_DTYPES


@dataclass(frozen=True)
class Case:
    batch: int = 2
    ci: int = 17
    co: int = 33
    size: tuple[int, int] = (9, 8)
    kernel: tuple[int, int] = (3, 3)
    stride: int | tuple[int, int] = 1
    padding: int | tuple[int, int] = 1
    dilation: int | tuple[int, int] = 1
    groups: str = "one"
    in_group_size: int = 1
    out_group_size: int = 1
    in_open: str | None = "random"
    out_open: str | None = "random"
    layout: str = "channels_last"
    bias: bool = True
    scale: bool = False
    residual: str | None = None
    relu: bool = False
    packed: bool = False
    winograd: bool = False  # the packed weights hold transformed ones
    dtype: torch.dtype = torch.float32


FACTORS: dict[str, list[Any]] = {
    "batch": [0, 1, 3],
    "ci": [1, 3, 5, 17, 33, 64, 150],
    "co": [1, 3, 5, 17, 33, 64, 70, 150],
    "size": [(1, 1), (4, 4), (7, 9), (16, 15), (3, 37)],
    "kernel": [(1, 1), (3, 3), (5, 5), (7, 7), (1, 3), (3, 2)],
    "stride": [1, 2, (2, 1), (1, 3)],
    "padding": [0, 1, (2, 0), (0, 3)],
    "dilation": [1, 2, (1, 3)],
    "in_group_size": [1, 4, 8, 16],
    "out_group_size": [1, 4, 8, 16],
    "in_open": ["all", "none", "one", "random", None],
    "out_open": ["all", "none", "one", "random", None],
    "layout": ["contiguous", "channels_last", "sliced", "expanded", "transposed"],
    "bias": [True, False],
    "scale": [True, False],
    "residual": [None, "contiguous", "channels_last", "sliced"],
    "relu": [True, False],
    "packed": [True, False],
    "dtype": [torch.float32, torch.float64, torch.bfloat16, torch.float16],
    "groups": ["one", "two", "four", "depthwise"],
}


def has_kernel(values: dict[str, Any]) -> bool:
    """Whether kernels other than the reference take a case with these values."""
    return values.get("groups", "one") == "one" or values.get("dtype", torch.float32) in GROUPED_DTYPES


def case_id(changes: dict[str, Any]) -> str:
    """The factors that differ from the default case, as a test id."""

    def word(value: Any) -> str:
        if isinstance(value, tuple):
            return "x".join(map(str, value))
        return str(value).removeprefix("torch.")

    default = Case()
    changed = {k: v for k, v in changes.items() if getattr(default, k) != v}
    return "-".join(f"{k}={word(v)}" for k, v in changed.items()) or "default"


def single_changes() -> list[dict[str, Any]]:
    """The default case with every value of every factor in turn."""
    changes = [{k: v} for k, values in FACTORS.items() for v in values]
    return [{}, *(c for c in changes if Case(**c) != Case())]


def grouped_changes() -> list[dict[str, Any]]:
    """Convolution groups of odd sizes, mask groups that straddle them, strips, and depthwise."""
    straddling = {"in_group_size": 4, "out_group_size": 3, "scale": True}
    sizes = [("two", 6, 10), ("two", 34, 34), ("four", 12, 20), ("four", 68, 12), ("four", 20, 68)]
    grouped = [{"groups": g, "ci": ci, "co": co} | straddling for g, ci, co in sizes]
    whole = {"groups": "two", "ci": 64, "co": 96, "in_group_size": 16, "out_group_size": 16}
    strips = {"groups": "four", "ci": 16, "co": 16, "size": (16, 15), "out_open": "all"}
    narrow = {"groups": "depthwise", "ci": 70, "in_group_size": 5, "out_group_size": 7, "scale": True}
    wide = {"groups": "depthwise", "ci": 96, "in_group_size": 16, "out_group_size": 16}
    depthwise = [
        shape | changes
        for shape in (narrow, wide)
        for changes in (
            {}, {"in_open": None, "out_open": None}, {"size": (16, 31), "stride": 2, "kernel": (5, 5)},
            {"layout": "contiguous", "residual": "contiguous", "relu": True},
            {"layout": "contiguous", "size": (7, 40), "stride": (1, 3), "dilation": 2, "padding": (2, 5)},
            {"layout": "sliced", "residual": "sliced"}, {"size": (2, 2), "kernel": (5, 5), "padding": 4},
            {"dtype": torch.float64, "residual": "channels_last", "relu": True},
        )
    ]  # fmt: skip
    packed = [c | {"packed": True} for c in (grouped[0], grouped[3], narrow)]
    return [*grouped, *packed, whole, strips, strips | {"residual": "channels_last"}, *depthwise]


def winograd_changes() -> list[dict[str, Any]]:
    """Sizes that are and are not whole tiles, and gates that need strips, lists, runs or gathered weights."""
    sizes = [(9, 8), (16, 15), (4, 4), (1, 40), (3, 37), (21, 2), (33, 34)]
    channels = [(64, 64), (40, 70), (33, 17), (150, 30), (256, 18), (128, 129)]
    shapes = [{"size": size, "ci": ci, "co": co} for size, (ci, co) in itertools.product(sizes, channels)]
    wide = {"ci": 64, "co": 64, "size": (16, 15)}
    narrow = {"ci": 18, "co": 16, "size": (30, 31)}
    gates = [
        {"in_group_size": a, "out_group_size": b, "in_open": c, "out_open": d}
        for a, b, c, d in [
            (16, 16, "random", "random"), (16, 16, None, None), (4, 8, "random", "random"),
            (1, 16, "random", "random"), (1, 64, "random", "all"), (8, 1, "all", "random"),
            (1, 1, "none", "all"), (1, 1, "all", "none"), (1, 1, "one", "all"), (1, 1, "all", "one"),
            (2, 4, "all", "random"),
        ]
    ]  # fmt: skip
    others = [
        {"layout": layout, "residual": residual, "scale": scale, "relu": relu}
        for layout, residual, scale, relu in [
            ("contiguous", None, False, True), ("sliced", "sliced", True, True),
            ("transposed", "contiguous", False, False), ("expanded", None, True, False),
            ("channels_last", "channels_last", True, True),
        ]
    ]  # fmt: skip
    others += [{"padding": p} for p in (0, (2, 0), (0, 3))] + [{"batch": b} for b in (0, 1)]
    # Where there is no transform: as if there were none.
    others += [{"stride": 2}, {"dilation": (1, 2)}, {"kernel": (1, 3)}, {"ci": 257}]
    others += [{"bias": False}, {"dtype": torch.float16}, {"dtype": torch.bfloat16}, {"dtype": torch.float64}]
    masks = [shape | gate for shape in (wide, narrow) for gate in gates]
    # Rows of tiles that are more than a block of an image may usually take.
    long = {"batch": 1, "in_open": None, "out_open": None}
    sizes = [(32, 32, (8, 4000)), (18, 8, (16, 8000)), (18, 36, (32, 3000))]  # of one, two and four strips
    rows = [long | {"ci": ci, "co": co, "size": size} for ci, co, size in sizes]
    cases = [*shapes, *masks, *(wide | o for o in others), *rows, *_strided_winograd_changes()]
    return [c | {"packed": True, "winograd": True} for c in cases]


def _strided_winograd_changes() -> list[dict[str, Any]]:
    """7x7 kernels with stride 2: images of even and odd sides, gates, layouts, and none to transform."""
    stem = {"kernel": (7, 7), "stride": 2, "padding": 3, "ci": 3, "co": 64, "in_open": None, "out_open": None}
    sizes = [(32, 32), (31, 33), (33, 30), (21, 60), (7, 90), (12, 13), (1, 3000)]
    channels = [(1, 64), (2, 17), (4, 33), (16, 16), (32, 128), (33, 16), (3, 129)]
    changes = [{"size": size} for size in sizes]
    changes += [{"ci": ci, "co": co, "size": (31, 33)} for ci, co in channels]
    changes += [{"size": (32, 31), "padding": p} for p in (0, (2, 0), (0, 5), (4, 3))]
    gates = [(1, "random", 16, "random"), (1, "all", 16, "random"), (1, "all", 4, "random"),
             (1, "all", 1, "one"), (1, "none", 16, "all"), (3, "random", 8, "none")]  # fmt: skip
    changes += [
        {"size": (31, 34), "in_group_size": a, "in_open": b, "out_group_size": c, "out_open": d}
        for a, b, c, d in gates
    ]
    layouts = [("contiguous", None, True), ("sliced", "sliced", True), ("transposed", "contiguous", False),
               ("expanded", "channels_last", True)]  # fmt: skip
    changes += [
        {"size": (40, 37), "layout": layout, "residual": residual, "relu": relu, "scale": relu}
        for layout, residual, relu in layouts
    ]
    changes += [{"size": (40, 37), "batch": b} for b in (0, 1, 3)]
    others = [{"stride": 1}, {"stride": (2, 1)}, {"stride": 3}, {"dilation": (1, 2)}, {"bias": False}]
    others += [{"dtype": dtype} for dtype in (torch.float16, torch.bfloat16, torch.float64)]
    changes += [{"size": (40, 37)} | other for other in others]
    return [stem | change for change in changes]


def pairwise(seed: int = 0, without: str | None = None) -> list[dict[str, Any]]:
    """Cases in which any two values of any two factors meet at least once, greedily few.

    But for values that have a kernel only apart. The factor `without` keeps its default.
    """
    rng = random.Random(seed)
    names = [n for n in FACTORS if n != without]

    def pairs(case: dict[str, Any]) -> set[Any]:
        return set(itertools.combinations(case.items(), 2))

    missing = {
        ((a, x), (b, y))
        for a, b in itertools.combinations(names, 2)
        for x in FACTORS[a]
        for y in FACTORS[b]
        if has_kernel({a: x, b: y})
    }
    chosen = []
    while missing:
        # Each candidate starts from a missing pair, so that every round makes progress.
        seeds = rng.sample(sorted(missing, key=repr), min(8, len(missing)))
        candidates = [{n: rng.choice(FACTORS[n]) for n in names} | dict(pair) for pair in seeds]
        best = max(filter(has_kernel, candidates), key=lambda case: len(pairs(case) & missing), default=None)
        if best is None:
            continue
        missing -= pairs(best)
        chosen.append(best)
    return chosen


def make_mask(kind: str | None, batch: int, channels: int, group_size: int) -> Tensor | None:
    """bool[batch, ceil(channels / group_size)], or None."""
    if kind is None:
        return None
    groups = -(-channels // group_size)
    if kind == "one":
        return F.one_hot(torch.randint(groups, (batch,)), groups).bool()
    rate = {"all": 1.0, "none": 0.0, "random": 0.5}[kind]
    return torch.rand(batch, groups) < rate


def per_channel(values: Tensor, channels: int, group_size: int) -> Tensor:
    return values[:, torch.arange(channels) // group_size, None, None]


def lay_out(x: Tensor, layout: str) -> Tensor:
    """The same values in another memory layout."""
    if layout == "channels_last":
        return x.contiguous(memory_format=torch.channels_last)
    if layout == "transposed":
        return x.transpose(2, 3).contiguous().transpose(2, 3)
    if layout == "sliced":  # strides of a larger tensor whose other elements are NaN
        room = x.new_full([2 * s + 1 for s in x.shape], torch.nan)
        view = room[1::2, 1::2, 1::2, 1::2]
        return view.copy_(x)
    if layout == "expanded" and x.shape[0]:
        return x[:1].expand_as(x)
    return x.contiguous()


def _fit_padding(case: Case) -> tuple[int, int]:
    """The padding of the case, or just enough for the kernel to fit once."""
    pads = (case.padding,) * 2 if isinstance(case.padding, int) else case.padding
    steps = (case.dilation,) * 2 if isinstance(case.dilation, int) else case.dilation
    return tuple(
        max(pad, -(-(step * (k - 1) + 1 - s) // 2))
        for pad, step, k, s in zip(pads, steps, case.kernel, case.size, strict=True)
    )


def _fit_groups(case: Case) -> tuple[int, int, int]:
    """Input channels, output channels and convolution groups, channels rounded up to whole groups."""
    if case.groups == "depthwise":
        return case.ci, case.ci, case.ci
    groups = {"one": 1, "two": 2, "four": 4}[case.groups]
    return *(-(-c // groups) * groups for c in (case.ci, case.co)), groups


def build(case: Case) -> tuple[dict[str, Any], Tensor]:
    """Keyword arguments of a call of gated_conv2d, and what it must return, in float64."""
    n, (ci, co, groups) = case.batch, _fit_groups(case)
    pads = _fit_padding(case)
    geometry = {"stride": case.stride, "padding": pads, "dilation": case.dilation, "groups": groups}
    x = torch.randn(n, ci, *case.size)
    weight = torch.randn(co, ci // groups, *case.kernel)
    weight /= weight[0].numel() ** 0.5
    bias = torch.randn(co) if case.bias else None
    in_mask = make_mask(case.in_open, n, ci, case.in_group_size)
    out_mask = make_mask(case.out_open, n, co, case.out_group_size)
    scale = torch.randn(n, -(-co // case.out_group_size)) if case.scale else None
    if case.layout == "expanded" and n:  # one image, and so one gate, for all samples
        x, in_mask = x[:1].expand_as(x), in_mask if in_mask is None else in_mask[:1].expand(n, -1)
    operands = [t if t is None else t.to(case.dtype).double() for t in (x, weight, bias, scale)]
    x, weight, bias, scale = operands

    open_in = None if in_mask is None else per_channel(in_mask, ci, case.in_group_size)
    open_out = None if out_mask is None else per_channel(out_mask, co, case.out_group_size)
    y = F.conv2d(x if open_in is None else x * open_in, weight, bias, **geometry)
    residual = torch.randn(y.shape).to(case.dtype).double() if case.residual else None
    y = y if scale is None else y * per_channel(scale, co, case.out_group_size)
    y = y if open_out is None else y * open_out
    y = y if residual is None else y + residual
    expected = y.relu() if case.relu else y

    if open_in is not None:
        junk = torch.tensor([torch.nan, torch.inf, -torch.inf])
        x = torch.where(open_in, x, junk[torch.randint(3, x.shape)])
    if open_out is not None:
        never = ~open_out.any(0).flatten()
        weight[never] = torch.nan
        if bias is not None:
            bias[never] = torch.nan
        if scale is not None:
            scale = scale.masked_fill(~out_mask, torch.nan)
    weight = weight.to(case.dtype)
    arguments = {
        "x": lay_out(x.to(case.dtype), case.layout),
        "weight": weight,
        "bias": None if bias is None else bias.to(case.dtype),
        "packed": prepack_conv2d(weight, groups, case.winograd)
        if case.packed and has_kernel(vars(case))
        else None,
        "in_mask": in_mask,
        "out_mask": out_mask,
        "scale": None if scale is None else scale.to(case.dtype),
        "residual": None if residual is None else lay_out(residual.to(case.dtype), case.residual),
        "in_group_size": case.in_group_size,
        "out_group_size": case.out_group_size,
        "activation": "relu" if case.relu else None,
    }
    return arguments | geometry, expected


def direct_arguments(arguments: dict[str, Any]) -> list[Any]:
    """The same call as positional arguments of torch.ops.ddi.gated_conv2d."""
    names = "x weight bias packed in_mask out_mask scale residual".split()
    return [*(arguments[n] for n in names), geometry(arguments)]


def geometry(arguments: dict[str, Any]) -> list[int]:
    """The integers of a call as operators take them."""
    a = arguments
    pairs = [[a[n]] * 2 if isinstance(a[n], int) else a[n] for n in ("stride", "padding", "dilation")]
    sizes = [a["groups"], a["in_group_size"], a["out_group_size"]]
    return [*sum(map(list, pairs), []), *sizes, int(a["activation"] == "relu")]
