"""gated_conv2d against the fastest dense convolution of the same run, on the same threads.

Every call of ours takes the next masks of a pool of 256, every call of anyone the next of 8 inputs.
`native` forces our kernels, `auto` is what users get. keep_channels is the open part of the pairs of
an input and an output channel, so the inverse of mac_ratio; a single operator skips no layers.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from ddi.measure.timing import num_threads
from ddi.measure.turns import Measured, Provider, time_in_turns
from ddi.report.figures import new_figure, save_figure

from .cases import DTYPES, GROUP_SIZES, KEEPS, SUITES, Case, make_inputs, select_cases
from .gated import Gating, our_provider, require_native
from .opponents import check_result, make_opponents
from .roofline import Machine, gated_bytes, measure_machine, plot_roofline
from .rows import write_rows

OURS = ("native", "auto")


def measure_case(
    case: Case, dtype: str, group_size: int, threads: int, machine: Machine
) -> list[dict[str, Any]]:
    """Times ours at every share of open channels and the opponents, all in turn.

    Returns:
        A row for each share and each provider of ours.
    """
    inputs, weight = make_inputs(case, DTYPES[dtype])
    dense, missing = make_opponents(inputs, weight, case, threads)
    gatings: dict[str, Gating] = {}
    providers: dict[str, Provider] = dict(dense)
    errors: dict[str, float] = {}
    for keep_in, keep_out in KEEPS:
        keep = f"{keep_in:g}x{keep_out:g}"
        gatings[keep] = gating = Gating.draw(case, keep_in, keep_out, group_size)
        calls = gating.calls(inputs, weight)
        expected = gating.expected(0, inputs, weight)
        for name in OURS:
            provider = providers[f"{name} {keep}"] = our_provider(name, calls)
            errors[f"{name} {keep}"] = check_result(name, case.name, provider.output(0), expected)
    timed = time_in_turns(providers)
    rows = []
    for keep, gating in gatings.items():
        ratio = gating.mac_ratio
        for name in OURS:
            mine = timed[f"{name} {keep}"]
            rows.append(
                {
                    "case": case.name,
                    "device": "cpu",
                    "dtype": dtype,
                    "batch": case.batch,
                    "threads": threads,
                    "provider": name,
                    "keep": keep,
                    "group_size": group_size,
                    "keep_layers": 1.0,
                    "keep_channels": round(1 / ratio, 4),
                    "mac_ratio": round(ratio, 3),
                    **time_fields(mine, {n: timed[n] for n in dense}, ratio),
                    "max_rel_err": errors[f"{name} {keep}"],
                    **roofline_fields(machine, gating, weight.element_size(), mine),
                    "incomplete": bool(missing),
                    "missing": missing,
                }
            )
    return rows


def time_fields(mine: Measured, dense: Mapping[str, Measured], mac_ratio: float) -> dict[str, Any]:
    """Times of a row, against the fastest of the dense providers."""
    best = min(dense, key=lambda name: dense[name].timing.median_ms)
    speedup = dense[best].timing.median_ms / mine.timing.median_ms
    return {
        "median_ms": mine.timing.median_ms,
        "p20_ms": mine.timing.p20_ms,
        "p80_ms": mine.timing.p80_ms,
        "rounds": len(mine.timing.passes_ms),
        "calls_per_round": mine.calls,
        "best_dense_provider": best,
        "dense_ms": {name: one.timing.median_ms for name, one in dense.items()},
        "speedup_vs_best_dense": round(speedup, 3),
        "realised": round(speedup / mac_ratio, 3),
    }


def roofline_fields(machine: Machine, gating: Gating, element_size: int, mine: Measured) -> dict[str, Any]:
    """GFLOP/s of a row, its FLOPs per byte, and the GFLOP/s that the machine could attain at them."""
    flops = 2 * gating.case.macs / gating.mac_ratio
    intensity = flops / gated_bytes(gating, element_size)
    return {
        "gflops": flops / mine.timing.median_ms / 1e6,
        "intensity": intensity,
        "attainable_gflops": machine.attainable(intensity),
    }


def summarise(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row for each (provider, dtype, keep, group_size), over its cases."""
    keys = ("provider", "dtype", "keep", "group_size", "threads")
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    summaries = []
    for values, some in groups.items():
        worst = min(some, key=lambda row: row["realised"])
        summaries.append(
            {
                "summary": True,
                **dict(zip(keys, values, strict=True)),
                "cases": len(some),
                "realised_median": statistics.median(row["realised"] for row in some),
                "realised_worst": worst["realised"],
                "worst_case": worst["case"],
                "speedup_median": statistics.median(row["speedup_vs_best_dense"] for row in some),
                "incomplete": any(row["incomplete"] for row in some),
            }
        )
    return summaries


def format_row(row: dict[str, Any]) -> str:
    """A line of the table that the run prints."""
    note = f"  incomplete: {', '.join(row['missing'])}" if row["incomplete"] else ""
    return (
        f"{row['case']:24} g{row['group_size']:<3} {row['keep']:10} {row['provider']:7}"
        f"{row['median_ms'] * 1e3:10.1f} us {row['speedup_vs_best_dense']:6.2f}x of "
        f"{row['best_dense_provider']:16} realised {row['realised']:5.2f}{note}"
    )


def format_summary(row: dict[str, Any]) -> str:
    """A line of the closing table."""
    return (
        f"{row['provider']:7} {row['dtype']} g{row['group_size']:<3} {row['keep']:10} realised median "
        f"{row['realised_median']:5.2f}, worst {row['realised_worst']:5.2f} ({row['worst_case']}), "
        f"speedup median {row['speedup_median']:5.2f}"
    )


def run(args: argparse.Namespace) -> None:
    """Measures a suite, prints it, writes rows and figure."""
    if args.plot:
        new_figure(1, 1)  # says that matplotlib is missing before minutes of measuring
    require_native(args.dtype)
    cases = select_cases(args.suite, args.cases)
    torch.manual_seed(args.seed)
    rows: list[dict[str, Any]] = []
    with torch.inference_mode(), num_threads(args.threads):
        machine = measure_machine(DTYPES[args.dtype], args.threads)
        for case in tqdm(cases, disable=None, desc="cases"):
            for group_size in GROUP_SIZES:
                rows += measure_case(case, args.dtype, group_size, args.threads, machine)
    summaries = summarise(rows)
    print("\n".join([*map(format_row, rows), *map(format_summary, summaries)]))
    limits = {"peak_gflops": machine.peak_gflops, "bandwidth_gb_s": machine.bandwidth_gb_s}
    if args.json:
        write_rows(args.json, [{"machine": True, **limits}, *rows, *summaries])
    if args.plot:
        last = [r for r in rows if r["provider"] == "native" and r["group_size"] == GROUP_SIZES[-1]]
        save_figure(plot_roofline(machine, last), Path(args.plot))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `bench op`, beside those of every suite."""
    parser.add_argument("--suite", choices=sorted(SUITES), default="cpu")
    parser.add_argument("--dtype", choices=list(DTYPES), default="fp32")
    parser.add_argument("--cases", default="", metavar="SUBSTRING", help="only cases with this in their name")
    parser.set_defaults(run=run)
