"""`ddi freeze`."""

from __future__ import annotations

import argparse
from typing import Any

__all__ = ["add", "run"]


def add(verbs: Any) -> None:
    """Adds `ddi freeze`."""
    parser = verbs.add_parser("freeze", help="write a checkpoint's network as a plan, for the engine")
    parser.add_argument("checkpoint")
    parser.add_argument("plan", help="the file to write")
    parser.add_argument("--dtype", choices=("fp32", "bf16", "int8"), default="fp32")
    parser.add_argument("--size", type=int, nargs=2, metavar=("H", "W"), help="of the images (default 32 32)")
    parser.add_argument("--calibrate", type=int, metavar="N", help="int8: on N training images (default 256)")
    parser.add_argument("--dataset", help="int8: of these; default: what it was trained on")
    parser.add_argument("--data-root", metavar="DIR", help="int8: folder of CIFAR")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> Any:
    """Runs it; returns what --json writes."""
    from ..freeze.freeze_checkpoint import FreezeConfig, freeze_checkpoint
    from ..report.text import format_freeze

    size = None if args.size is None else (args.size[0], args.size[1])
    config = FreezeConfig(args.dtype, size, args.calibrate, args.dataset, args.data_root, args.seed)
    summary = freeze_checkpoint(args.checkpoint, args.plan, config)
    print(format_freeze(summary))
    return summary
