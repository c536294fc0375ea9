"""`python -m bench op --threads 1 --json FILE`, or `ddi bench op ...`: run from a checkout."""

from __future__ import annotations

import argparse
import sys

from ddi.measure.quiet import measuring

from . import block, budget, int8, model, op, scaling


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("bench")
    suites = parser.add_subparsers(dest="name", required=True)
    op.add_arguments(suites.add_parser("op", help="gated_conv2d against dense convolutions"))
    block.add_arguments(suites.add_parser("block", help="gated_basic_block against dense blocks, batch 1"))
    model.add_arguments(
        suites.add_parser("model", help="whole networks in the engine against dense runtimes")
    )
    budget.add_arguments(suites.add_parser("budget", help="budgets of the engine, held or exceeded"))
    int8.add_arguments(suites.add_parser("int8", help="gated_conv2d_int8 against our float32 kernel"))
    scaling.add_arguments(suites.add_parser("scaling", help="time by open channels and by samples"))
    for suite in suites.choices.values():
        suite.add_argument("--threads", type=int, default=1)
        suite.add_argument("--seed", type=int, default=0)
        suite.add_argument("--json", metavar="FILE", help="write header and rows there")
        suite.add_argument("--plot", metavar="FILE", help="draw the figure there, as PNG")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Runs a suite; returns the exit status."""
    args = _parser().parse_args(argv)
    try:
        with measuring():
            args.run(args)
    except KeyboardInterrupt:
        print(f"bench {args.name}: interrupted", file=sys.stderr)
        return 130
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        print(f"bench {args.name}: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
