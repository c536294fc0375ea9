"""What budgets buy: accuracy of a frozen network at limits from its first exit to the whole network.

Runs in the engine, over a split, with limits on multiply-adds and joules, with deadlines, and halting where
a classifier is certain enough; the same network without any limit is the last point of each curve.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from ddi_kernels import engine

from ..evaluate.run_plan import RunConfig, run_plan
from ..files import write_atomic
from ..freeze.freeze_checkpoint import FreezeConfig, freeze_checkpoint
from .figures import plot_sweep, save_figure

__all__ = ["sweep"]

_ROUNDING = 1 + 1e-12  # so that a mean of joules that all meet the limit meets it, too


def sweep(
    checkpoint: str | Path, out: str | Path, base: RunConfig | None = None, points: int = 8
) -> dict[str, Any]:
    """Runs a checkpoint's network at many budgets; writes sweep.json and sweep.png into a folder.

    Args:
        checkpoint: a network with branch classifiers, gated or not.
        out: the folder.
        base: which images, how many at a time, threads; without limits.
        points: budgets of each kind, evenly spread from what the first exit takes at worst (MACs, joules) or
            in half of the calls (ms) to what the whole network does; confidences of 1/2, 3/4, 7/8 and so on.

    Returns:
        JSON-ready: checkpoint, and rows with resource ("macs", "joules", "ms" or "confidence"), limit (None
        for the whole network), accuracy, mean_macs, mean_joules, mean_ms, p99_ms (of a call) and exits (of
        each classifier the share of images that it answered).

    Raises:
        ValueError: the network has no branch classifiers; and what `freeze_checkpoint` and `run_plan` raise.

    Example:
        >>> sweep("net.safetensors", "out/sweep")["rows"][0]["accuracy"]
    """
    base = base or RunConfig()
    with tempfile.TemporaryDirectory() as folder:
        plan = f"{folder}/net.ddi"
        freeze_checkpoint(checkpoint, plan, FreezeConfig())
        network = engine.load(plan)
        if len(network.exits) == 1:
            raise ValueError(
                f"sweep: {checkpoint} has no branch classifiers to halt at; "
                "ddi train --exits default adds them"
            )
        first, last = network.exit_worst_macs[0], network.exit_worst_macs[-1]
        whole = run_plan(plan, base)
        shortest = run_plan(plan, replace(base, max_macs=first))
        rows = []
        for limit in _spread(first, last, points):
            rows.append(_row("macs", limit, run_plan(plan, replace(base, max_macs=round(limit)))))
        rows.append(_row("macs", None, whole))
        worst = [base.energy.joules(*work, network.dtype) for work in network.exit_worst_work]
        for limit in _spread(worst[0] * _ROUNDING, worst[-1], points):
            rows.append(_row("joules", limit, run_plan(plan, replace(base, max_joules=limit))))
        rows.append(_row("joules", None, whole))
        for limit in _spread(shortest["p50_ms"], whole["p50_ms"], points):
            rows.append(_row("ms", limit, run_plan(plan, replace(base, deadline_ms=limit))))
        rows.append(_row("ms", None, whole))
        for limit in (1 - 0.5**i for i in range(1, points + 1)):
            rows.append(_row("confidence", limit, run_plan(plan, replace(base, confidence=limit))))
        rows.append(_row("confidence", None, whole))
    summary = {"checkpoint": str(checkpoint), "rows": rows}
    write_atomic(Path(out) / "sweep.json", json.dumps(summary, indent=1).encode())
    save_figure(plot_sweep(rows), Path(out) / "sweep.png")
    return summary


def _spread(low: float, high: float, count: int) -> list[float]:
    return [low + (high - low) * i / (count - 1) for i in range(count)]


def _row(resource: str, limit: float | None, found: dict[str, Any]) -> dict[str, Any]:
    names = ("accuracy", "mean_macs", "mean_joules", "p99_ms", "exits")
    mean_ms = 1e3 * found["batch"] / found["images_per_second"]
    return {"resource": resource, "limit": limit, **{name: found[name] for name in names}, "mean_ms": mean_ms}
