"""gated_conv2d_int8 against our own float32 kernel, both native, over the cases of `bench op`.

Both take turns with the same masks, groups of 16; int8 in and out, weights quantised for each output
channel. There is no dense int8 opponent here: what a runtime gains by int8 belongs to whole networks.
"""

from __future__ import annotations

import argparse
import statistics
from functools import partial
from typing import Any

import torch
from tqdm import tqdm

from ddi.measure.timing import num_threads
from ddi.measure.turns import Provider, time_in_turns
from ddi_kernels import gated_conv2d_int8, prepack_conv2d, quantize, quantize_weight

from .cases import Case, make_inputs, select_cases
from .gated import Gating, our_provider
from .rows import write_rows

KEEPS = (1.0, 0.5)
GROUP_SIZE = 16


def providers(case: Case, keep: float) -> dict[str, Provider]:
    """The calls of a case with this share of inputs and of outputs open, in float32 and in int8."""
    inputs, weight = make_inputs(case, torch.float32)
    gating = Gating.draw(case, keep, keep, GROUP_SIZE)
    x_scale = max(x.abs().max().item() for x in inputs) / 127
    images = [quantize(x, x_scale).contiguous(memory_format=torch.channels_last) for x in inputs]
    int_weight, weight_scale = quantize_weight(weight)
    # Calibrated on the first calls, so that theirs are within the range.
    out_scale = max(gating.expected(i, inputs, weight).abs().max().item() for i in range(len(inputs))) / 127
    int8 = partial(
        gated_conv2d_int8,
        weight=int_weight,
        weight_scale=weight_scale,
        x_scale=x_scale,
        out_scale=out_scale,
        packed=prepack_conv2d(int_weight),
    )
    return {
        "fp32": our_provider("native", gating.calls(inputs, weight)),
        "int8": our_provider("native", gating.bind(int8, images)),
    }


def measure_case(case: Case, threads: int) -> list[dict[str, Any]]:
    """A row for each share of open channels."""
    rows = []
    for keep in KEEPS:
        timed = time_in_turns(providers(case, keep))
        fp32, int8 = timed["fp32"].timing, timed["int8"].timing
        rows.append(
            {
                "case": case.name,
                "device": "cpu",
                "dtype": "int8",
                "batch": case.batch,
                "threads": threads,
                "provider": "native",
                "keep": f"{keep:g}x{keep:g}",
                "group_size": GROUP_SIZE,
                "median_ms": int8.median_ms,
                "p20_ms": int8.p20_ms,
                "p80_ms": int8.p80_ms,
                "fp32_ms": fp32.median_ms,
                "speedup_vs_fp32": round(fp32.median_ms / int8.median_ms, 3),
            }
        )
    return rows


def summarise(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row for each share of open channels."""
    summaries = []
    for keep in dict.fromkeys(row["keep"] for row in rows):
        gains = [row["speedup_vs_fp32"] for row in rows if row["keep"] == keep]
        summary = {"summary": True, "dtype": "int8", "keep": keep, "cases": len(gains)}
        summary |= {"speedup_median": statistics.median(gains), "speedup_worst": min(gains)}
        summaries.append(summary)
    return summaries


def run(args: argparse.Namespace) -> None:
    """Measures all cases, prints and writes the rows."""
    torch.manual_seed(args.seed)
    rows: list[dict[str, Any]] = []
    with torch.inference_mode(), num_threads(args.threads):
        for case in tqdm(select_cases("cpu", args.cases), disable=None, desc="cases"):
            rows += measure_case(case, args.threads)
    for row in rows:
        print(f"{row['case']:24} {row['keep']:8} int8 {row['speedup_vs_fp32']:5.2f}x as fast as fp32")
    summaries = summarise(rows)
    for one in summaries:
        print(f"{one['keep']:8} median {one['speedup_median']:5.2f}x, worst {one['speedup_worst']:5.2f}x")
    if args.json:
        write_rows(args.json, [*rows, *summaries])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `bench int8`, beside those of every suite."""
    parser.add_argument("--cases", default="", metavar="SUBSTRING", help="only cases with this in their name")
    parser.set_defaults(run=run)
