"""gated_conv2d (native kernel) against the fastest dense convolution of the same run.

Every timed call takes the next masks of a pool of 256; the dense providers run the same calls without masks:
torch on NCHW, torch on channels_last, and torch with weights prepacked for oneDNN. Providers take turns round
by round, so that the machine's noise meets all of them; a time is the median over the rounds.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from ddi.timing import num_threads
from ddi_kernels import backend, gated_conv2d, prepack_conv2d

from .rows import write_rows

# (N, C, H): 3x3, stride 1, as many outputs as inputs; the stages of a CIFAR ResNet, then of a ResNet-18.
CASES = [(1, 16, 32), (1, 32, 16), (1, 64, 8), (32, 16, 32), (32, 32, 16), (32, 64, 8)]
CASES += [(1, 64, 56), (1, 128, 28), (1, 256, 14), (1, 512, 7)]
KEEPS = [(1.0, 1.0), (0.5, 0.5), (1.0, 0.5), (0.5, 1.0), (0.25, 0.25)]
POOL = 256
ROUNDS = 7
ROUND_SECONDS = 0.04

Call = Callable[[int], object]


def _masks(n: int, channels: int, keep: float, group_size: int) -> Tensor:
    """bool[POOL, n, groups], exactly a share `keep` of the groups open in each sample."""
    groups = -(-channels // group_size)
    ranks = torch.rand(POOL, n, groups).argsort(-1).argsort(-1)
    return ranks < max(1, round(keep * groups))


def _time(calls: dict[str, Call]) -> dict[str, list[float]]:
    """Microseconds per call of each provider, one value a round."""
    counts: dict[str, int] = {}
    for name, call in calls.items():
        call(0)
        start = time.perf_counter()
        call(1)
        once = time.perf_counter() - start
        counts[name] = max(3, min(POOL, int(ROUND_SECONDS / once)))
    rounds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(ROUNDS):
        for name, call in calls.items():
            start = time.perf_counter()
            for i in range(counts[name]):
                call(turn * counts[name] + i)
            rounds[name].append((time.perf_counter() - start) * 1e6 / counts[name])
    return rounds


def _dense_calls(xs: list[Tensor], weight: Tensor) -> dict[str, Call]:
    contiguous = [x.contiguous() for x in xs]
    last = weight.contiguous(memory_format=torch.channels_last)
    pair = [1, 1]
    reorder = torch.ops.mkldnn._reorder_convolution_weight
    packed = reorder(last, pair, pair, pair, 1, list(xs[0].shape))
    prepacked = torch.ops.mkldnn._convolution_pointwise

    def run_prepacked(i: int) -> Tensor:
        x = xs[i % len(xs)]
        return prepacked(x, packed, None, pair, pair, pair, 1, "none", [], "")

    return {
        "eager": lambda i: F.conv2d(contiguous[i % len(xs)], weight, padding=1),
        "channels_last": lambda i: F.conv2d(xs[i % len(xs)], last, padding=1),
        "onednn_prepacked": run_prepacked,
    }


def _case(case: tuple[int, int, int], group_size: int, threads: int) -> list[dict[str, Any]]:
    n, channels, side = case
    weight = torch.randn(channels, channels, 3, 3) * 0.05
    packed = prepack_conv2d(weight)
    # Inputs in the cache or not, as the size of the case decides: 8 of them are enough to differ.
    shape = (n, channels, side, side)
    xs = [torch.randn(shape).contiguous(memory_format=torch.channels_last) for _ in range(8)]
    calls = _dense_calls(xs, weight)
    ours: dict[str, tuple[Tensor, Tensor]] = {}
    for keep_in, keep_out in KEEPS:
        masks = (
            _masks(n, channels, keep_in, group_size),
            _masks(n, channels, keep_out, group_size),
        )
        name = f"{keep_in:g}x{keep_out:g}"
        ours[name] = masks

        def run(i: int, masks: tuple[Tensor, Tensor] = masks) -> Tensor:
            j = i % POOL
            gating: dict[str, Any] = dict(in_mask=masks[0][j], out_mask=masks[1][j])
            sizes = dict(in_group_size=group_size, out_group_size=group_size)
            return gated_conv2d(xs[i % 8], weight, packed=packed, padding=1, **gating, **sizes)

        calls[name] = run
    errors = {name: _error(calls[name], xs[3], weight, ours[name], group_size) for name in ours}
    return _rows(case, group_size, threads, _time(calls), ours, errors)


def _error(call: Call, x: Tensor, weight: Tensor, masks: tuple[Tensor, Tensor], group_size: int) -> float:
    """Largest difference from dense-times-mask in float64, relative to the largest value."""
    got: Any = call(3)
    channels = x.shape[1]
    gate_in, gate_out = (
        m[3].repeat_interleave(group_size, 1)[:, :channels, None, None].double() for m in masks
    )
    expected = F.conv2d(x.double() * gate_in, weight.double(), padding=1) * gate_out
    return ((got - expected).abs().max() / expected.abs().max()).item()


def _rows(
    case: tuple[int, int, int],
    group_size: int,
    threads: int,
    rounds: dict[str, list[float]],
    ours: dict[str, tuple[Tensor, Tensor]],
    errors: dict[str, float],
) -> list[dict[str, Any]]:
    medians = {name: statistics.median(values) for name, values in rounds.items()}
    best = min((name for name in medians if name not in ours), key=medians.__getitem__)
    rows = []
    for name, masks in ours.items():
        shares = [m.repeat_interleave(group_size, 2)[:, :, : case[1]].double() for m in masks]
        ratio = 1 / (shares[0].mean(2) * shares[1].mean(2)).mean().item()
        values = sorted(rounds[name])
        speedup = medians[best] / medians[name]
        rows.append(
            {
                "case": "conv3x3 N{} C{} H{}".format(*case),
                "device": "cpu",
                "dtype": "fp32",
                "batch": case[0],
                "threads": threads,
                "provider": "native",
                "keep": name,
                "group_size": group_size,
                "mac_ratio": round(ratio, 3),
                "median_ms": medians[name] / 1e3,
                "p20_ms": values[len(values) // 5] / 1e3,
                "p80_ms": values[-1 - len(values) // 5] / 1e3,
                "best_dense_provider": best,
                "dense_ms": {n: medians[n] / 1e3 for n in medians if n not in ours},
                "speedup_vs_best_dense": round(speedup, 3),
                "realised": round(speedup / ratio, 3),
                "max_rel_err": errors[name],
            }
        )
    return rows


def _run(args: argparse.Namespace) -> None:
    torch.manual_seed(args.seed)
    rows: list[dict[str, Any]] = []
    with torch.inference_mode(), num_threads(args.threads), backend("native"):
        for case in tqdm(CASES, disable=None, desc="cases"):
            for group_size in (16, 1):
                rows += _case(case, group_size, args.threads)
    for row in rows:
        print(
            f"{row['case']:22} g{row['group_size']:<3} {row['keep']:10} {row['median_ms'] * 1e3:9.1f} us  "
            f"{row['speedup_vs_best_dense']:6.2f}x of {row['best_dense_provider']:16} "
            f"realised {row['realised']:5.2f}"
        )
    for group_size in (16, 1):
        for name in dict.fromkeys(row["keep"] for row in rows):
            these = [r for r in rows if r["group_size"] == group_size and r["keep"] == name]
            realised = [r["realised"] for r in these]
            summary = {
                "summary": True,
                "dtype": "fp32",
                "keep": name,
                "group_size": group_size,
                "threads": args.threads,
                "realised_median": statistics.median(realised),
                "realised_worst": min(realised),
                "speedup_median": statistics.median(r["speedup_vs_best_dense"] for r in these),
            }
            rows.append(summary)
            print({k: v for k, v in summary.items() if k not in ("summary", "dtype", "threads")})
    if args.json:
        write_rows(args.json, rows)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `python -m bench op`."""
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", metavar="FILE", help="write header and rows there")
    parser.set_defaults(run=_run)
