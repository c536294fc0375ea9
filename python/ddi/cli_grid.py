"""The verbs of the `ddi` command for many trainings: `grid` runs and measures them, `report` draws them."""

from __future__ import annotations

import argparse
from typing import Any

__all__ = ["add_grid", "add_report"]


def add_grid(verbs: Any) -> None:
    """Adds `ddi grid`."""
    parser = verbs.add_parser("grid", help="run the trainings of a file: a row for each finished one")
    parser.add_argument("grid", help="TOML file, see ddi.grid.read_grid")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time (default 1)")
    parser.add_argument("--work", default="out/grid", help="folder of unfinished runs (default out/grid)")
    parser.add_argument("--only", default="", metavar="SUBSTRING", help="only runs with this in the name")
    parser.add_argument(
        "--measure", action="store_true", help="train nothing: fill in the milliseconds that rows lack"
    )
    parser.set_defaults(run=_grid)


def _grid(args: argparse.Namespace) -> Any:
    from .grid import read_grid
    from .measure_grid import measure_grid
    from .run_grid import run_grid

    grid = read_grid(args.grid)
    if args.measure:
        return measure_grid(grid, args.only)
    return run_grid(grid, args.work, args.jobs, args.only)


def add_report(verbs: Any) -> None:
    """Adds `ddi report`."""
    parser = verbs.add_parser("report", help="curves and tables of training runs and grids")
    parser.add_argument(
        "sources", nargs="+", metavar="FOLDER_OR_ROWS", help="folder of a run, or rows of ddi grid (.jsonl)"
    )
    parser.add_argument("--out", required=True, help="folder for the figures")
    parser.set_defaults(run=_report)


def _report(args: argparse.Namespace) -> Any:
    from .curves import draw_report

    report = draw_report(args.sources, args.out)
    print("\n\n".join([*report.tables, f"Wrote {len(report.figures)} figures to {args.out}."]))
    return {"figures": report.figures, "comparisons": report.comparisons}
