"""Results on disk: JSONL with a header line of machine, versions and commit, and figures."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from ddi.files import write_atomic
from ddi_kernels import collect_env


def header() -> dict[str, Any]:
    """Machine, versions and commit of this run."""
    root = Path(__file__).parents[1]
    git = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True)
    return {"header": True, "commit": git.stdout.strip() or None, **collect_env()}


def write_rows(path: str | Path, rows: list[dict[str, Any]]) -> None:
    """Writes header and rows as JSONL, atomically."""
    lines = [json.dumps(row) for row in [header(), *rows]]
    write_atomic(path, ("\n".join(lines) + "\n").encode())
