"""`ddi env`."""

from __future__ import annotations

import argparse
from typing import Any

__all__ = ["add", "run"]


def add(verbs: Any) -> None:
    """Adds `ddi env`."""
    parser = verbs.add_parser("env", help="machine, versions, and which kernels are in use and why")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> Any:
    """Runs it; returns what --json writes."""
    from ddi_kernels import collect_env
    from ddi_kernels.collect_env import format_env

    env = collect_env()
    print(format_env(env))
    return env
