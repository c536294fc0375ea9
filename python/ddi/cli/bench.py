"""`ddi bench`."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

__all__ = ["add", "run"]


def add(verbs: Any) -> None:
    """Adds `ddi bench`."""
    parser = verbs.add_parser(
        "bench",
        help="measure the operators; from a checkout only",
        description="The options of a suite, --json and --seed among them: ddi bench SUITE --help",
    )
    parser.add_argument("suite", help="e.g. op")
    parser.add_argument("options", nargs=argparse.REMAINDER, help="handed to the suite")
    parser.set_defaults(run=run, json=None)


def run(args: argparse.Namespace) -> None:
    """Runs a suite, which writes what it measured itself."""
    # In a process of its own: bench imports this package, so this package does not import bench.
    root = Path(__file__).resolve().parents[3]
    if not (root / "bench" / "__main__.py").is_file():
        raise ValueError(
            f"{root} has no folder bench: it is part of a checkout, not of an installed package; "
            "clone the repository, run `pip install --no-build-isolation -e .` there, and try again"
        )
    path = os.pathsep.join(filter(None, (str(root), os.environ.get("PYTHONPATH"))))
    # -P: not a folder named bench that happens to lie in the current one.
    command = [sys.executable, "-P", "-m", "bench", args.suite, *args.options]
    status = subprocess.run(command, env=os.environ | {"PYTHONPATH": path}).returncode
    if status:
        sys.exit(status)  # the suite has said why
