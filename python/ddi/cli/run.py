"""`ddi run`."""

from __future__ import annotations

import argparse
from dataclasses import fields
from typing import Any

from .energy_option import energy_model

__all__ = ["add", "run"]


def add(verbs: Any) -> None:
    """Adds `ddi run`."""
    parser = verbs.add_parser("run", help="accuracy, MACs and milliseconds of a frozen plan")
    parser.add_argument("plan")
    parser.add_argument("--dataset", help="default: scene_digits")
    parser.add_argument("--data-root", metavar="DIR", help="folder of CIFAR")
    parser.add_argument("--split", choices=("test", "validation"), help="default: test")
    parser.add_argument("--input", metavar="FILE", help=".npy of float32 [N, C, H, W], not a data set")
    parser.add_argument("--output", metavar="FILE", help="write the logits there, a .npy file")
    parser.add_argument("--images", type=int, metavar="N", help="the first N only")
    parser.add_argument("--batch", type=int, default=1, help="images a call (default 1)")
    parser.add_argument("--threads", type=int, default=1, help="of a call (default 1)")
    parser.add_argument("--max-macs", type=int, metavar="M", help="multiply-adds of a sample, never exceeded")
    parser.add_argument("--deadline-ms", type=float, metavar="D", help="milliseconds of a call")
    parser.add_argument("--max-joules", type=float, metavar="J", help="of a sample, by an energy model")
    parser.add_argument("--energy", metavar="FILE", help="that model, JSON; default: Horowitz, 45 nm")
    parser.add_argument(
        "--confidence", type=float, metavar="P", help="each image halts at the first exit as sure as this"
    )
    parser.set_defaults(run=run, measures=True)


def run(args: argparse.Namespace) -> Any:
    """Runs it; returns what --json writes."""
    from ..evaluate.run_plan import RunConfig, run_plan
    from ..report.text import format_run

    args.energy = energy_model(args)
    config = RunConfig(**{item.name: getattr(args, item.name) for item in fields(RunConfig)})
    summary = run_plan(args.plan, config)
    print(format_run(summary))
    return summary
