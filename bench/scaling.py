"""How the time of gated_conv2d grows with open channels and with samples, against a straight line.

Three curves a case: open output channels with all inputs open, open input channels with all outputs
open (both one sample, in sixteenths), and samples at half the inputs and half the outputs. The points
of a curve take turns; the line is the least-squares fit, its intercept is what a call costs beside work.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tqdm import tqdm

from ddi.measure.timing import num_threads
from ddi.measure.turns import time_in_turns
from ddi.report.figures import new_figure, save_figure

from .cases import DTYPES, Case, make_inputs
from .gated import Gating, our_provider, require_native
from .opponents import check_result
from .rows import write_rows

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CASES = [Case(1, 128, 128, 28), Case(1, 32, 32, 16)]
STEPS = 16
SAMPLES = 32
# Single channels: the finest gating, so the hardest to keep linear.
_GROUP_SIZE = 1
# A curve's name and the unit of its x.
CURVES = {"out_channels": "open share", "in_channels": "open share", "samples": "samples"}


@dataclass(frozen=True)
class Line:
    """Least-squares line through a curve, in milliseconds."""

    slope_ms: float
    intercept_ms: float
    r2: float

    @classmethod
    def fit(cls, xs: Sequence[float], ys: Sequence[float]) -> Line:
        """Of at least two points of different x and y."""
        slope, intercept = statistics.linear_regression(xs, ys)
        return cls(slope, intercept, statistics.correlation(xs, ys) ** 2)

    def at(self, x: float) -> float:
        return self.slope_ms * x + self.intercept_ms


def curve_points(case: Case, curve: str) -> dict[float, Gating]:
    """The gatings of a curve by x: an open share, or a number of samples."""
    shares = [step / STEPS for step in range(1, STEPS + 1)]
    if curve == "out_channels":
        return {x: Gating.draw(case, 1.0, x, _GROUP_SIZE) for x in shares}
    if curve == "in_channels":
        return {x: Gating.draw(case, x, 1.0, _GROUP_SIZE) for x in shares}
    batches = range(1, SAMPLES + 1)
    return {n: Gating.draw(replace(case, batch=n), 0.5, 0.5, _GROUP_SIZE) for n in batches}


def measure_curve(case: Case, curve: str, threads: int) -> list[dict[str, Any]]:
    """A row for each point of a curve, then one with its line."""
    points = curve_points(case, curve)
    largest = replace(case, batch=max(gating.case.batch for gating in points.values()))
    inputs, weight = make_inputs(largest, DTYPES["fp32"])
    providers = {}
    for x, gating in points.items():
        xs = [one[: gating.case.batch] for one in inputs]
        provider = our_provider("native", gating.calls(xs, weight))
        check_result("native", gating.case.name, provider.output(0), gating.expected(0, xs, weight))
        providers[f"{x:g}"] = provider
    timed = time_in_turns(providers)
    shared = {"case": case.name, "curve": curve, "dtype": "fp32", "threads": threads, "provider": "native"}
    rows: list[dict[str, Any]] = []
    for x in points:
        timing = timed[f"{x:g}"].timing
        times = {"median_ms": timing.median_ms, "p20_ms": timing.p20_ms, "p80_ms": timing.p80_ms}
        rows.append({**shared, "x": x, **times, "calls_per_round": timed[f"{x:g}"].calls})
    line = Line.fit(list(points), [row["median_ms"] for row in rows])
    fit = {"slope_ms": line.slope_ms, "intercept_ms": line.intercept_ms, "r2": line.r2}
    part = line.intercept_ms / line.at(max(points))
    return [*rows, {**shared, "fit": True, **fit, "intercept_share": part}]


def plot_scaling(rows: Sequence[dict[str, Any]]) -> Figure:
    """A panel for each case and curve: medians with their p20 to p80, and the line."""
    cases = list(dict.fromkeys(row["case"] for row in rows))
    figure = new_figure(4 * len(CURVES), 3 * len(cases))
    panels = figure.subplots(len(cases), len(CURVES), squeeze=False)
    for i, case in enumerate(cases):
        for axes, (curve, unit) in zip(panels[i], CURVES.items(), strict=True):
            some = [row for row in rows if (row["case"], row["curve"]) == (case, curve)]
            points, fit = some[:-1], some[-1]
            xs = [row["x"] for row in points]
            spread = [[row["median_ms"] - row["p20_ms"] for row in points]]
            spread.append([row["p80_ms"] - row["median_ms"] for row in points])
            axes.errorbar(xs, [row["median_ms"] for row in points], spread, fmt="o", ms=4, c="#0072b2")
            line = Line(fit["slope_ms"], fit["intercept_ms"], fit["r2"])
            axes.plot([0, xs[-1]], [line.at(0), line.at(xs[-1])], c="#d55e00")
            axes.set(title=f"{case}, {curve}\nr² {line.r2:.4f}", xlabel=unit, ylabel="ms")
            axes.set_ylim(bottom=min(0, line.at(0)))
    return figure


def run(args: argparse.Namespace) -> None:
    """Measures all curves, prints their lines, writes rows and figure."""
    if args.plot:
        new_figure(1, 1)  # says that matplotlib is missing before measuring
    require_native("fp32")
    torch.manual_seed(args.seed)
    rows: list[dict[str, Any]] = []
    with torch.inference_mode(), num_threads(args.threads):
        for case in tqdm(CASES, disable=None, desc="cases"):
            for curve in CURVES:
                rows += measure_curve(case, curve, args.threads)
    for row in rows:
        if "fit" in row:
            print(
                f"{row['case']:20} {row['curve']:13} r2 {row['r2']:.4f}  intercept "
                f"{row['intercept_ms'] * 1e3:8.1f} us, {100 * row['intercept_share']:5.1f} % of the whole"
            )
    if args.json:
        write_rows(args.json, rows)
    if args.plot:
        save_figure(plot_scaling(rows), Path(args.plot))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`bench scaling` has the options of every suite only."""
    parser.set_defaults(run=run)
