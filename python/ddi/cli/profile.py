"""`ddi profile`."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import Any

__all__ = ["add", "run"]


def add(verbs: Any) -> None:
    """Adds `ddi profile`."""
    parser = verbs.add_parser(
        "profile", help="measure dense and gated kernels here, for the choices of the backend auto"
    )
    parser.add_argument("--threads", type=int, help="default: what torch takes")
    parser.add_argument("--dtype", choices=("fp32",), default="fp32")
    parser.add_argument("--out", metavar="FILE", help="default: this device's table in the user's cache")
    parser.add_argument("--budget-minutes", type=float, default=5, help="begin no shape after (default 5)")
    parser.add_argument("--cases", default="", metavar="SUBSTRING", help="only shapes with this in the name")
    parser.add_argument("--fresh", action="store_true", help="start over instead of going on")
    parser.set_defaults(run=run, measures=True)


def run(args: argparse.Namespace) -> Any:
    """Runs it; returns what --json writes."""
    from ..measure.profile import ProfileConfig, profile

    config = ProfileConfig(args.threads, args.out, args.budget_minutes, args.fresh, args.cases, args.seed)
    result = profile(config)
    print(result.describe())
    return asdict(result)
