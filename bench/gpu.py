"""Gated convolutions and skipped blocks on a GPU against dense cuDNN, every side in a CUDA graph.

A graph holds CALLS calls on inputs of their own; before every replay, outside of the timed span, it
gets the next masks of a pool. A time is the span of a replay
over its calls, the median of at least nine. Dense is bfloat16, channels_last, batch norm folded, the
faster of cuDNN's plain and fused calls. What is measured when the budget is spent is written.
Run as `python -m bench.gpu --budget 200 --json FILE`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ddi_kernels import backend, gated_conv2d, skip_conv2d_

from .rows import header

# (channels, side) of a ResNet's 3x3 convolutions; batches in the order of what they can win.
SHAPES = [(64, 56), (128, 28), (256, 14), (512, 7)]
BATCHES = (64, 8, 256, 1)
KEEPS = (1.0, 0.75, 0.5, 0.25)
POOL = 256
CALLS = 8
REPLAYS = 32
EMPTY_NODES = 200
DTYPE = torch.bfloat16

Step = Callable[[int], object]


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
    for replay in range(REPLAYS + 3):
        refresh(replay)
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        if replay >= 3:
            spans.append(begin.elapsed_time(end) / calls)
    del kept
    spans.sort()
    return Timed(statistics.median(spans), spans[len(spans) // 5], spans[-1 - len(spans) // 5])


def images(n: int, channels: int, side: int) -> list[Tensor]:
    """One input a call, channels_last."""
    shape = (n, channels, side, side)
    last = torch.channels_last
    return [
        torch.randn(shape, device="cuda", dtype=DTYPE).contiguous(memory_format=last) for _ in range(CALLS)
    ]


def filters(channels: int) -> tuple[Tensor, Tensor]:
    """Weight and bias of a 3x3 convolution that keeps the size of what it is given."""
    weight = torch.randn(channels, channels, 3, 3, device="cuda") / (9 * channels) ** 0.5
    weight = weight.to(DTYPE).contiguous(memory_format=torch.channels_last)
    return weight, torch.randn(channels, device="cuda", dtype=DTYPE) * 0.1


def choices(n: int, entries: int, keep: float) -> Tensor:
    """bool[POOL, n, entries] with exactly a share `keep` true in each row, at least one."""
    ranks = torch.rand(POOL, n, entries, device="cuda").argsort(-1).argsort(-1)
    return ranks < max(1, round(keep * entries))


def relative_error(actual: Tensor, exact: Tensor) -> float:
    return ((actual.float() - exact).abs().max() / exact.abs().max()).item()


def node_rows() -> Iterator[dict[str, Any]]:
    """What a node of a graph costs: a graph of tiny kernels."""
    one = torch.zeros(1, device="cuda")
    timed = replayed(lambda i: one.fill_(1.0), lambda replay: None, calls=EMPTY_NODES)
    yield _row("graph_node", "cuda_graph", 1, timed, {})


def conv_rows(channels: int, side: int, n: int) -> Iterator[dict[str, Any]]:
    """relu(conv3x3 + bias), channels gated on both sides."""
    xs, (weight, bias) = images(n, channels, side), filters(channels)
    one = [1, 1]
    dense = _best_dense(
        {
            "cudnn_graph": lambda i: F.conv2d(xs[i], weight, bias, padding=1).relu_(),
            "cudnn_graph_fused": lambda i: torch.cudnn_convolution_relu(
                xs[i], weight, bias, one, one, one, 1
            ),
        },
        lambda replay: None,
    )
    group = 32 if channels > 64 else 16  # four groups at least, so that every share exists
    for keep in KEEPS:
        pools = [choices(n, channels // group, keep) for _ in range(2)]
        masks = [[pool[i].clone() for pool in pools] for i in range(CALLS)]

        def refresh(replay: int, pools: list[Tensor] = pools, masks: list[list[Tensor]] = masks) -> None:
            for i, pair in enumerate(masks):
                for mask, pool in zip(pair, pools, strict=True):
                    mask.copy_(pool[(replay * CALLS + i) % POOL])

        def run(i: int, masks: list[list[Tensor]] = masks) -> Tensor:
            return gated_conv2d(
                xs[i], weight, bias, in_mask=masks[i][0], out_mask=masks[i][1], padding=1,
                in_group_size=group, out_group_size=group, activation="relu",
            )  # fmt: skip

        share = [pool.double().mean().item() for pool in pools]
        timed = replayed(run, refresh)
        y = run(0)
        gates = [m.repeat_interleave(group, 1)[:, :, None, None] for m in masks[0]]
        exact = F.conv2d(xs[0].float() * gates[0], weight.float(), bias.float(), padding=1).relu() * gates[1]
        yield _row(f"conv3x3 C{channels} H{side}", "triton", n, timed, dense) | {
            "keep": f"{keep}x{keep}",
            "keep_channels": keep,
            "keep_layers": 1.0,
            "group_size": group,
            "max_rel_err": relative_error(y, exact),
            **_realised(timed, dense, 1 / (share[0] * share[1])),
        }


def block_rows(channels: int, side: int, n: int) -> Iterator[dict[str, Any]]:
    """A basic residual block, samples skipped, in place."""
    xs, first, second = images(n, channels, side), filters(channels), filters(channels)
    fresh, scratch, one = xs[0].clone(), torch.empty_like(xs[0]), [1, 1]

    def plain(i: int) -> Tensor:
        h = F.conv2d(xs[i], *first, padding=1).relu_()
        return F.conv2d(h, *second, padding=1).add_(xs[i]).relu_()

    def fused(i: int) -> Tensor:
        h = torch.cudnn_convolution_relu(xs[i], *first, one, one, one, 1)
        return torch.cudnn_convolution_add_relu(h, second[0], xs[i], 1.0, second[1], one, one, one, 1)

    dense = _best_dense({"cudnn_graph": plain, "cudnn_graph_fused": fused}, lambda replay: None)
    for keep in KEEPS:
        if round(keep * n) < 1 and keep < 1:
            continue
        pool = choices(1, n, keep)[:, 0]
        keeps = [pool[i].clone() for i in range(CALLS)]

        def refresh(replay: int, pool: Tensor = pool, keeps: list[Tensor] = keeps) -> None:
            for i, kept in enumerate(keeps):
                kept.copy_(pool[(replay * CALLS + i) % POOL])
                xs[i].copy_(fresh)  # in place, so values would grow from replay to replay

        def run(i: int, keeps: list[Tensor] = keeps) -> None:
            options: dict[str, Any] = {"keep": keeps[i], "padding": 1, "activation": "relu"}
            skip_conv2d_(scratch, xs[i], *first, **options)
            skip_conv2d_(xs[i], scratch, *second, accumulate=True, **options)

        timed = replayed(run, refresh)
        refresh(0)
        run(0)
        h = F.conv2d(fresh.float(), *(t.float() for t in first), padding=1).relu()
        exact = (F.conv2d(h, *(t.float() for t in second), padding=1) + fresh.float()).relu()
        exact = torch.where(keeps[0][:, None, None, None], exact, fresh.float())
        yield _row(f"basic_block C{channels} H{side}", "triton", n, timed, dense) | {
            "keep": f"{keep}",
            "keep_channels": 1.0,
            "keep_layers": keep,
            "max_rel_err": relative_error(xs[0], exact),
            **_realised(timed, dense, 1 / pool.double().mean().item()),
        }


def _best_dense(runs: dict[str, Step], refresh: Step) -> dict[str, Timed]:
    return {name: replayed(run, refresh) for name, run in runs.items()}


def _row(case: str, provider: str, n: int, timed: Timed, dense: dict[str, Timed]) -> dict[str, Any]:
    return {
        "case": case,
        "device": torch.cuda.get_device_name(),
        "dtype": "bf16",
        "batch": n,
        "provider": provider,
        "median_ms": timed.median,
        "p20_ms": timed.p20,
        "p80_ms": timed.p80,
        "dense_ms": {name: t.median for name, t in dense.items()},
    }


def _realised(timed: Timed, dense: dict[str, Timed], mac_ratio: float) -> dict[str, Any]:
    best = min(dense, key=lambda name: dense[name].median)
    speedup = dense[best].median / timed.median
    return {
        "mac_ratio": round(mac_ratio, 3),
        "best_dense_provider": best,
        "speedup_vs_best_dense": round(speedup, 3),
        "realised": round(speedup / mac_ratio, 3),
    }


def _run(args: argparse.Namespace) -> None:
    if not torch.cuda.is_available():
        raise RuntimeError("no CUDA GPU is visible")
    torch.manual_seed(args.seed)
    torch.backends.cudnn.benchmark = True
    deadline = time.monotonic() + args.budget
    suites = [node_rows()]
    suites += [rows(*shape, n) for n in BATCHES for shape in SHAPES for rows in (block_rows, conv_rows)]
    lines = [header()]
    with torch.inference_mode(), backend("triton"):
        for suite in suites:
            for row in suite:
                lines.append(row)
                print(_text(row), flush=True)
                if time.monotonic() > deadline:
                    break
            if time.monotonic() > deadline:
                lines.append({"incomplete": True, "reason": f"the budget of {args.budget:g} s is spent"})
                print(lines[-1]["reason"])
                break
            torch.cuda.empty_cache()
    if args.json:
        with open(args.json, "w") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)


def _text(row: dict[str, Any]) -> str:
    text = f"{row['case']:22} N{row['batch']:<4} {row.get('keep', ''):10} {row['median_ms'] * 1e3:9.2f} us"
    if "realised" in row:
        text += f"  {row['speedup_vs_best_dense']:6.2f}x of {row['best_dense_provider']}"
        text += f"  realised {row['realised']:5.2f}  error {row['max_rel_err']:.1e}"
    return text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the GPU suite."""
    parser.add_argument("--budget", type=float, default=200.0, metavar="SECONDS", help="stop after so long")
    parser.set_defaults(run=_run)


if __name__ == "__main__":
    _parser = argparse.ArgumentParser("bench.gpu")
    add_arguments(_parser)
    _parser.add_argument("--seed", type=int, default=0)
    _parser.add_argument("--json", metavar="FILE", help="write header and rows there")
    _args = _parser.parse_args()
    try:
        _args.run(_args)
    except RuntimeError as error:
        sys.exit(f"bench.gpu: error: {error}")
