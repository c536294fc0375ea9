"""gated_basic_block as one call against the same block, dense, as one call of a runtime.

The blocks of a CIFAR ResNet at batch 1, where a call costs as much as its arithmetic. What a call costs
beside its kernels is the time of one sample minus that of a sample in a batch of 32, whose calls cost
next to nothing a sample. Masks come from a pool of 256, as in `bench op`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from ddi.measure.timing import num_threads
from ddi.measure.turns import Measured, Provider, time_in_turns
from ddi_kernels import gated_basic_block, prepack_conv2d

from .cases import GROUP_SIZES, INPUTS
from .gated import draw_masks, expand_mask, our_provider
from .opponents import bind_onnxruntime, bind_openvino, check_result
from .rows import write_rows

# (channels, side): the three stages.
CASES = [(16, 32), (32, 16), (64, 8)]
KEEPS = (1.0, 0.75, 0.5, 0.25)
BATCH = 32

Weights = tuple[Tensor, Tensor, Tensor, Tensor]


def make_weights(channels: int) -> Weights:
    """Weight and bias of both convolutions, BatchNorm folded."""
    weights = [torch.randn(channels, channels, 3, 3) * 0.05 for _ in range(2)]
    return weights[0], torch.randn(channels), weights[1], torch.randn(channels)


def dense_block(x: Tensor, weights: Weights, mask: Tensor | None = None) -> Tensor:
    """The block in plain torch; mask bool[N, C] over the interior."""
    weight1, bias1, weight2, bias2 = (w.to(x.dtype) for w in weights)
    h = F.conv2d(x, weight1, bias1, padding=1).relu()
    if mask is not None:
        h = h * mask[:, :, None, None]
    return (F.conv2d(h, weight2, bias2, padding=1) + x).relu()


def _onnx_block(weights: Weights, shape: tuple[int, ...]) -> bytes:
    from onnx import TensorProto, helper

    names = ("w1", "b1", "w2", "b2")
    values = [
        helper.make_tensor(name, TensorProto.FLOAT, w.shape, w.numpy().tobytes(), raw=True)
        for name, w in zip(names, weights, strict=True)
    ]
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["c1"], pads=[1] * 4),
        helper.make_node("Relu", ["c1"], ["h"]),
        helper.make_node("Conv", ["h", "w2", "b2"], ["c2"], pads=[1] * 4),
        helper.make_node("Add", ["c2", "x"], ["s"]),
        helper.make_node("Relu", ["s"], ["y"]),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "block", ends[:1], ends[1:], values)
    opset = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opset, ir_version=8).SerializeToString()


def dense_providers(xs: list[Tensor], weights: Weights, threads: int) -> dict[str, Provider]:
    """The dense block in torch (channels_last), onnxruntime and OpenVINO, inputs and outputs bound."""
    import openvino as ov

    last = [w.contiguous(memory_format=torch.channels_last) if w.dim() == 4 else w for w in weights]
    plain, ys = [x.contiguous() for x in xs], [torch.zeros(x.shape) for x in xs]
    model = _onnx_block(weights, tuple(xs[0].shape))
    return {
        "channels_last": Provider([partial(dense_block, x, tuple(last)) for x in xs]),
        "onnxruntime": bind_onnxruntime(model, plain, ys, threads),
        "openvino": bind_openvino(ov.Core().read_model(model, b""), plain, ys, threads),
    }


def our_calls(
    xs: list[Tensor], weights: Weights, masks: Tensor, group_size: int
) -> list[Callable[[], Tensor]]:
    """One call for each masks of the pool, bool[POOL, N, groups]; y of the block."""
    weight1, bias1, weight2, bias2 = weights
    packed = {"packed1": prepack_conv2d(weight1), "packed2": prepack_conv2d(weight2)}

    def call(x: Tensor, mask: Tensor) -> Tensor:
        block = gated_basic_block
        return block(x, weight1, bias1, weight2, bias2, mask=mask, group_size=group_size, **packed)[0]

    return [partial(call, xs[i % len(xs)], mask) for i, mask in enumerate(masks.unbind())]


def measure_case(channels: int, side: int, group_size: int, threads: int) -> list[dict[str, Any]]:
    """A row for each share of open interior channels."""
    case = f"basic_block N1 C{channels} H{side}"
    weights = make_weights(channels)
    images = [
        torch.randn(batch, channels, side, side).contiguous(memory_format=torch.channels_last)
        for batch in [1] * INPUTS + [BATCH] * 2
    ]
    singles, batches = images[:INPUTS], images[INPUTS:]
    dense = dense_providers(singles, weights, threads)
    for name, one in dense.items():
        check_result(name, case, one.output(0), dense_block(singles[0].double(), weights))
    providers, ratios, errors = dict(dense), {}, {}
    for keep in KEEPS:
        for batch, xs in ((1, singles), (BATCH, batches)):
            masks = draw_masks(batch, channels, keep, group_size)
            ours = our_provider("native", our_calls(xs, weights, masks, group_size))
            providers[f"{keep:g} N{batch}"] = ours
            opened = expand_mask(masks, channels, group_size)
            ratios[keep] = 1 / opened.double().mean().item()
            expected = dense_block(xs[0].double(), weights, opened[0])
            errors[keep] = check_result(f"native {keep:g}", case, ours.output(0), expected)
    timed = time_in_turns(providers)
    opponents = {name: timed[name].timing.median_ms for name in dense}
    return [
        {
            "case": case,
            "device": "cpu",
            "dtype": "fp32",
            "batch": 1,
            "threads": threads,
            "provider": "native",
            "keep": f"{keep:g}",
            "group_size": group_size,
            "keep_layers": 1.0,
            "keep_channels": round(1 / ratios[keep], 4),
            "mac_ratio": round(ratios[keep], 3),
            **row_times(timed[f"{keep:g} N1"], timed[f"{keep:g} N{BATCH}"], opponents, ratios[keep]),
            "max_rel_err": errors[keep],
        }
        for keep in KEEPS
    ]


def row_times(
    mine: Measured, batched: Measured, opponents: dict[str, float], mac_ratio: float
) -> dict[str, Any]:
    """Times of a row, against the fastest opponent and against a sample of a batch."""
    best = min(opponents, key=opponents.__getitem__)
    speedup = opponents[best] / mine.timing.median_ms
    kernels_us = batched.timing.median_ms * 1e3 / BATCH
    return {
        "median_ms": mine.timing.median_ms,
        "p20_ms": mine.timing.p20_ms,
        "p80_ms": mine.timing.p80_ms,
        "best_dense_provider": best,
        "dense_ms": opponents,
        "speedup_vs_best_dense": round(speedup, 3),
        "realised": round(speedup / mac_ratio, 3),
        "kernels_us": kernels_us,
        "overhead_us": mine.timing.median_ms * 1e3 - kernels_us,
    }


def run(args: argparse.Namespace) -> None:
    """Measures all cases, prints and writes the rows."""
    torch.manual_seed(args.seed)
    rows: list[dict[str, Any]] = []
    with torch.inference_mode(), num_threads(args.threads):
        for channels, side in tqdm(CASES, disable=None, desc="blocks"):
            for group_size in GROUP_SIZES:
                rows += measure_case(channels, side, group_size, args.threads)
    for row in rows:
        print(
            f"{row['case']:26} g{row['group_size']:<3} {row['keep']:5} {row['median_ms'] * 1e3:7.1f} us "
            f"{row['speedup_vs_best_dense']:5.2f}x of {row['best_dense_provider']:13} realised "
            f"{row['realised']:5.2f}, {row['overhead_us']:5.1f} us beside the kernels"
        )
    if args.json:
        write_rows(args.json, rows)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Has only the options of every suite."""
    parser.set_defaults(run=run)
