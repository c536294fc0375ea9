"""`ddi grid`: many trainings, and their measurement."""

from __future__ import annotations

import argparse
from typing import Any

__all__ = ["add", "run"]


def add(verbs: Any) -> None:
    """Adds `ddi grid`."""
    parser = verbs.add_parser("grid", help="run the trainings of a file: a row for each finished one")
    parser.add_argument("grid", help="TOML file, see ddi.grid.read_grid")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time (default 1)")
    parser.add_argument("--work", default="out/grid", help="folder of unfinished runs (default out/grid)")
    parser.add_argument("--only", default="", metavar="SUBSTRING", help="only runs with this in the name")
    parser.add_argument(
        "--measure", action="store_true", help="train nothing: fill in the milliseconds that rows lack"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> Any:
    """Runs it; returns what --json writes."""
    from ..grid.grid import read_grid
    from ..grid.measure_grid import measure_grid
    from ..grid.run_grid import run_grid

    grid = read_grid(args.grid)
    if args.measure:
        return measure_grid(grid, args.only)
    return run_grid(grid, args.work, args.jobs, args.only)
