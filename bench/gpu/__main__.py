"""`python -m bench.gpu --budget 200 --json FILE`: what is measured when the budget is spent is written."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

from ddi_kernels import backend, backends

from ..rows import write_rows
from .ceilings import ceiling_rows
from .networks import NETWORKS, network_rows
from .operators import conv_rows, dense_layer_rows, gated_block_rows, skip_rows

# (channels, side) of a ResNet's 3x3 convolutions; batches in the order of what they can win.
SHAPES = [(64, 56), (128, 28), (256, 14), (512, 7)]
DENSE_SHAPES = [(128, 56), (256, 28)]
BATCHES = (64, 8, 256, 1)

Suite = tuple[str, Callable[[], Iterator[dict[str, Any]]]]  # the backend that it runs on, and its rows


def suites(compiled: bool) -> Iterator[Suite]:
    """What matters most first: the budget may end the run anywhere."""
    yield "auto", ceiling_rows
    for n in BATCHES:
        for kind in ("basic", "bottleneck"):
            for rows in (skip_rows, gated_block_rows):
                yield from (("triton", partial(rows, kind, *shape, n)) for shape in SHAPES)
        yield from (("triton", partial(conv_rows, *shape, n)) for shape in SHAPES)
        if n == BATCHES[0]:
            yield from (("triton", partial(dense_layer_rows, *shape, n)) for shape in DENSE_SHAPES)
            yield from (("auto", partial(network_rows, *network, compiled)) for network in NETWORKS)
            if backends.cuda_available()[0]:
                yield from (("native", partial(conv_rows, *shape, n)) for shape in SHAPES)


def text(row: dict[str, Any]) -> str:
    """A row as a line."""
    line = f"{row['case']:36} N{row['batch']:<4} {row.get('keep', ''):10} {row['median_ms'] * 1e3:9.2f} us"
    for unit in ("tb_per_s", "tflops"):
        if unit in row:
            line += f"  {row[unit]:.1f} {unit}"
    if "realised" in row:
        line += f"  {row['speedup_vs_best_dense']:6.2f}x of {row['best_dense_provider']}"
        line += f"  realised {row['realised']:5.2f}"
    return line + (f"  error {row['max_rel_err']:.1e}" if "max_rel_err" in row else "")


def measure(chosen: Iterator[Suite], seconds: float) -> list[dict[str, Any]]:
    """Rows until the time is up; the last one says so if it was."""
    deadline, rows = time.monotonic() + seconds, []
    for name, suite in chosen:
        with backend(name):
            for row in suite():
                rows.append(row)
                print(text(row), flush=True)
                if time.monotonic() > deadline:
                    rows.append({"incomplete": True, "reason": f"the budget of {seconds:g} s is spent"})
                    print(rows[-1]["reason"])
                    return rows
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return rows


def main() -> None:
    parser = argparse.ArgumentParser("bench.gpu")
    parser.add_argument("--budget", type=float, default=200.0, metavar="SECONDS", help="stop after so long")
    parser.add_argument(
        "--compile", action="store_true", help="torch.compile as an opponent of networks, too"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", metavar="FILE", help="write header and rows there")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("bench.gpu: error: no CUDA GPU is visible")
    torch.manual_seed(args.seed)
    torch.backends.cudnn.benchmark = True
    with torch.inference_mode():
        rows = measure(suites(args.compile), args.budget)
    if args.json:
        write_rows(args.json, rows)


if __name__ == "__main__":
    main()
