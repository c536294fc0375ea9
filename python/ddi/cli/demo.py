"""`ddi demo`."""

from __future__ import annotations

import argparse
from typing import Any

__all__ = ["add", "run"]


def add(verbs: Any) -> None:
    """Adds `ddi demo`."""
    parser = verbs.add_parser("demo", help="the shipped gated network against its dense counterpart")
    parser.add_argument("--out", required=True, help="folder for report.json and the figures")
    parser.add_argument("--dense", metavar="FILE", help="plain checkpoint instead of the shipped one")
    parser.add_argument("--gated", metavar="FILE", help="gated checkpoint instead of the shipped one")
    parser.add_argument("--images", type=int, metavar="N", help="use the first N test images only")
    parser.add_argument("--passes", type=int, default=5, help="timing passes (default 5)")
    parser.set_defaults(run=run, measures=True)


def run(args: argparse.Namespace) -> Any:
    """Runs it; returns what --json writes."""
    from ..report.demo import DemoConfig, run_demo
    from ..report.text import format_demo

    config = DemoConfig(args.dense, args.gated, args.images, args.passes, args.seed)
    report = run_demo(args.out, config)
    print(format_demo(report))
    print(f"\nWrote report.json and four figures to {args.out} after {report['seconds']:.0f} s.")
    return report
