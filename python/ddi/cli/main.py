"""The `ddi` command: one verb a file, each a thin shell over the library.

Verbs import what they run inside their functions, so that each loads only what it needs: `ddi env` neither
training nor plotting.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from contextlib import nullcontext

from . import bench, calibrate, demo, env, evaluate, freeze, grid, profile, report, run, train

__all__ = ["main"]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("ddi", description="Dual dynamic inference with real savings.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    demo.add(verbs)
    train.add(verbs)
    grid.add(verbs)
    report.add(verbs)
    evaluate.add(verbs)
    calibrate.add(verbs)
    freeze.add(verbs)
    run.add(verbs)
    env.add(verbs)
    profile.add(verbs)
    for verb in verbs.choices.values():
        verb.add_argument("--json", metavar="FILE", help="write the result there too")
        if not any(action.dest == "seed" for action in verb._actions):
            verb.add_argument("--seed", type=int, default=0)
    bench.add(verbs)  # its suites have these two themselves
    return parser


def main(argv: list[str] | None = None) -> int:
    """Runs a verb; returns the exit status."""
    args = _parser().parse_args(argv)
    # Our own progress, not the chatter of the libraries beneath.
    logging.basicConfig(format="%(message)s")
    logging.getLogger("ddi").setLevel(logging.INFO)
    from ..measure.quiet import measuring
    from ..train import Interrupted
    from ..train.distributed import is_main

    try:
        with measuring() if "measures" in args else nullcontext():
            result = args.run(args)
        if args.json and is_main():
            from ..files import write_atomic

            write_atomic(args.json, json.dumps(result, indent=1).encode())
    except Interrupted as error:
        print(error, file=sys.stderr)
        return 130
    except KeyboardInterrupt:
        print(f"ddi {args.verb}: interrupted", file=sys.stderr)
        return 130
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        print(f"ddi {args.verb}: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0
