"""`ddi report`."""

from __future__ import annotations

import argparse
from typing import Any

__all__ = ["add", "run"]


def add(verbs: Any) -> None:
    """Adds `ddi report`."""
    parser = verbs.add_parser("report", help="curves and tables of training runs and grids")
    parser.add_argument(
        "sources", nargs="+", metavar="FOLDER_OR_ROWS", help="folder of a run, or rows of ddi grid (.jsonl)"
    )
    parser.add_argument("--out", required=True, help="folder for the figures")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> Any:
    """Runs it; returns what --json writes."""
    from ..report.curves import draw_report

    report = draw_report(args.sources, args.out)
    print("\n\n".join([*report.tables, f"Wrote {len(report.figures)} figures to {args.out}."]))
    return {"figures": report.figures, "comparisons": report.comparisons}
