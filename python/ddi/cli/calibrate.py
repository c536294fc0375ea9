"""`ddi calibrate`."""

from __future__ import annotations

import argparse
from typing import Any

__all__ = ["add", "run"]


def add(verbs: Any) -> None:
    """Adds `ddi calibrate`."""
    parser = verbs.add_parser("calibrate", help="move the threshold of trained gates to a wanted cost")
    parser.add_argument("checkpoint")
    parser.add_argument(
        "--mac-ratio", type=float, required=True, metavar="R", help="dense MACs over mean MACs"
    )
    parser.add_argument("--out", required=True, metavar="FILE", help="the checkpoint to write")
    parser.add_argument("--tolerance", type=float, default=0.01, help="share of R to be off (default 0.01)")
    parser.add_argument("--dataset", help="default: what it was trained on, else scene_digits")
    parser.add_argument("--data-root", metavar="DIR", help="folder of CIFAR")
    parser.add_argument("--images", type=int, metavar="N", help="the first N of the validation split only")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> Any:
    """Runs it; returns what --json writes."""
    from ..budgets.calibrate_checkpoint import calibrate_checkpoint
    from ..report.text import format_calibration

    where = (args.dataset, args.data_root, args.images)
    summary = calibrate_checkpoint(args.checkpoint, args.out, args.mac_ratio, args.tolerance, *where)
    print(format_calibration(summary))
    return summary
