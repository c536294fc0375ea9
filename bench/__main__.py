"""`python -m bench op --threads 1 --json FILE`: run from a checkout."""

from __future__ import annotations

import argparse
import sys

from . import op


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("bench")
    suites = parser.add_subparsers(dest="suite", required=True)
    op.add_arguments(suites.add_parser("op", help="gated_conv2d against dense convolutions"))
    args = parser.parse_args(argv)
    args.run(args)
    return 0


if __name__ == "__main__":
    sys.exit(main())
