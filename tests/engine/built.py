"""Names of what `make engine` makes, and how tests start programs."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["ROOT", "Build", "run"]

ROOT = Path(__file__).resolve().parents[2]


def run(*command: str | Path, **kwargs: Any) -> subprocess.CompletedProcess[str]:
    """Waits for a program, and leaves it to the caller how it ended."""
    return subprocess.run([str(c) for c in command], capture_output=True, text=True, **kwargs)


@dataclass(frozen=True)
class Build:
    """What `make engine` makes, in a folder that has its objects too."""

    folder: Path

    @property
    def library(self) -> Path:
        return self.folder / "libddi.so"

    @property
    def program(self) -> Path:
        return self.folder / "ddi_run"
