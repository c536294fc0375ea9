"""What a run did, a line an epoch: `history.jsonl` in its folder.

The state of an unfinished run holds the history, too, and rules: the file is written from it, whole, after
every epoch and when a run goes on, so that an epoch which is repeated has one line.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..files import write_atomic

__all__ = ["add_step", "read_history", "summary", "without_times", "write_history"]

_NAME = "history.jsonl"
_MEANS = ("loss", "task_loss", "penalty", "mac_share")
_TIMES = ("seconds", "images_per_second")
_NEEDED = ("stage", "epoch", "loss", "task_loss", "mac_share", "validation_accuracy", "mac_ratio")


def write_history(folder: Path, history: list[dict[str, Any]]) -> None:
    """Writes the lines of a history, atomically."""
    write_atomic(folder / _NAME, "".join(json.dumps(line) + "\n" for line in history).encode())


def read_history(folder: str | Path) -> list[dict[str, Any]]:
    """The lines of a run's history, in order; none before the end of the first epoch.

    Raises:
        FileNotFoundError: the folder has no history.
        ValueError: it is damaged; the message names the line.

    Example:
        >>> [line["validation_accuracy"] for line in read_history("out/ddi")]
    """
    path = Path(folder) / _NAME
    if not path.is_file():
        raise FileNotFoundError(f"history: {folder} has no {_NAME}; `ddi train --out` writes one there")
    lines = []
    for number, text in enumerate(path.read_bytes().splitlines(), 1):
        try:
            line = json.loads(text)
            missing = [name for name in _NEEDED if name not in line]
        except (ValueError, TypeError) as error:
            raise ValueError(f"history: {path}, line {number} is damaged ({error})") from error
        if missing:
            raise ValueError(f"history: {path}, line {number} has no {', '.join(missing)}")
        lines.append(line)
    return lines


def add_step(totals: dict[str, float], images: int, seconds: float, means: dict[str, float]) -> None:
    """Adds a step to the sums of its epoch; `means` has loss, task_loss, penalty and mac_share."""
    for name, value in {**means, "steps": 1, "images": images, "seconds": seconds}.items():
        totals[name] = totals.get(name, 0.0) + value


def summary(totals: dict[str, float]) -> dict[str, float]:
    """A history line's part on training: means over the steps of an epoch, seconds and images_per_second."""
    means = {name: round(totals[name] / totals["steps"], 5) for name in _MEANS}
    seconds = totals["seconds"]
    return {
        **means,
        "seconds": round(seconds, 3),
        "images_per_second": round(totals["images"] / seconds, 1),
    }


def without_times(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A history that is the same whenever the run is."""
    return [{name: value for name, value in line.items() if name not in _TIMES} for line in history]
