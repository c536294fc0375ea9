"""Timing by CUDA graphs, and what calls are made of: images, filters, masks, dense opponents, rows.

A graph holds CALLS calls on inputs of their own; before every replay, outside of the timed span, it gets the
next masks of a pool. A time is the span of a replay over its calls, the median of REPLAYS. Eager calls would
hand out the savings of launches for nothing.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

DEVICE = "cuda"
DTYPE = torch.bfloat16
POOL = 256
CALLS = 8
REPLAYS = 32
WARMUPS = 3

Step = Callable[[int], object]
Filter = tuple[Tensor, Tensor]  # weight and bias


@dataclass(frozen=True)
class Timed:
    """Milliseconds of one call over the replays."""

    median: float
    p20: float
    p80: float


def replayed(run: Step, refresh: Step, calls: int = CALLS) -> Timed:
    """Captures run(0) ... run(calls - 1) in one graph and times its replays.

    Args:
        run: launches call i.
        refresh: prepares replay number r; not timed.
        calls: calls in the graph.
    """
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for i in range(calls):
            run(i)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = [run(i) for i in range(calls)]  # outputs live as long as the graph
    spans = []
    for replay in range(REPLAYS + WARMUPS):
        refresh(replay)
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        if replay >= WARMUPS:
            spans.append(begin.elapsed_time(end) / calls)
    del kept
    spans.sort()
    return Timed(statistics.median(spans), spans[len(spans) // 5], spans[-1 - len(spans) // 5])


def unchanged(replay: int) -> None:
    """Nothing to prepare."""


def images(n: int, channels: int, side: int) -> list[Tensor]:
    """One input a call, channels_last."""
    shape = (n, channels, side, side)
    last = torch.channels_last
    return [
        torch.randn(shape, device=DEVICE, dtype=DTYPE).contiguous(memory_format=last) for _ in range(CALLS)
    ]


def new_filter(co: int, ci: int, kernel: int) -> Filter:
    """Weight and bias of a convolution that keeps the size of what it is given."""
    weight = torch.randn(co, ci, kernel, kernel, device=DEVICE) / (kernel * kernel * ci) ** 0.5
    weight = weight.to(DTYPE).contiguous(memory_format=torch.channels_last)
    return weight, torch.randn(co, device=DEVICE, dtype=DTYPE) * 0.1


def choices(n: int, entries: int, keep: float) -> Tensor:
    """bool[POOL, n, entries] with exactly a share `keep` true in each row, at least one."""
    ranks = torch.rand(POOL, n, entries, device=DEVICE).argsort(-1).argsort(-1)
    return ranks < max(1, round(keep * entries))


class Masks:
    """The masks of a graph's calls, drawn anew from a pool before each replay."""

    def __init__(self, pools: list[Tensor]) -> None:
        self.pools = pools
        self.now = [[pool[i].clone() for pool in pools] for i in range(CALLS)]

    def refresh(self, replay: int) -> None:
        for i, masks in enumerate(self.now):
            for mask, pool in zip(masks, self.pools, strict=True):
                mask.copy_(pool[(replay * CALLS + i) % POOL])

    def share(self, i: int) -> float:
        """Of open entries in mask i of a call, over the pool."""
        return self.pools[i].double().mean().item()


def dense_chain(xs: list[Tensor], filters: list[Filter]) -> dict[str, Step]:
    """A residual block's convolutions, plain and by cuDNN's fused calls; one filter: without the shortcut."""
    one = [1, 1]

    def pad(f: Filter) -> list[int]:
        return [f[0].shape[2] // 2] * 2

    def plain(i: int) -> Tensor:
        h = xs[i]
        for f in filters[:-1]:
            h = F.conv2d(h, *f, padding=pad(f)).relu_()
        h = F.conv2d(h, *filters[-1], padding=pad(filters[-1]))
        return (h if len(filters) == 1 else h.add_(xs[i])).relu_()

    def fused(i: int) -> Tensor:
        h, (weight, bias) = xs[i], filters[-1]
        for f in filters[:-1]:
            h = torch.cudnn_convolution_relu(h, *f, one, pad(f), one, 1)
        if len(filters) == 1:
            return torch.cudnn_convolution_relu(h, weight, bias, one, pad(filters[-1]), one, 1)
        return torch.cudnn_convolution_add_relu(h, weight, xs[i], 1.0, bias, one, pad(filters[-1]), one, 1)

    return {"cudnn_graph": plain, "cudnn_graph_fused": fused}


def times_of(runs: Mapping[str, Step], calls: int = CALLS) -> dict[str, Timed]:
    """Of dense calls, by name."""
    return {name: replayed(run, unchanged, calls) for name, run in runs.items()}


def relative_error(actual: Tensor, exact: Tensor) -> float:
    return ((actual.float() - exact).abs().max() / exact.abs().max()).item()


def row(case: str, provider: str, n: int, timed: Timed, dense: dict[str, Timed]) -> dict[str, Any]:
    return {
        "case": case,
        "device": torch.cuda.get_device_name() if DEVICE == "cuda" else DEVICE,
        "dtype": "bf16",
        "batch": n,
        "provider": provider,
        "median_ms": timed.median,
        "p20_ms": timed.p20,
        "p80_ms": timed.p80,
        "dense_ms": {name: t.median for name, t in dense.items()},
    }


def realised(timed: Timed, dense: dict[str, Timed], mac_ratio: float) -> dict[str, Any]:
    best = min(dense, key=lambda name: dense[name].median)
    speedup = dense[best].median / timed.median
    return {
        "mac_ratio": round(mac_ratio, 3),
        "best_dense_provider": best,
        "speedup_vs_best_dense": round(speedup, 3),
        "realised": round(speedup / mac_ratio, 3),
    }
