"""How fast the networks of a grid are, and what halting early saves them: fills in what its rows lack, in
the engine.
"""

from __future__ import annotations

import itertools
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from ddi_kernels import collect_env, engine

from ..checkpoint import load_model
from ..data import get_dataset
from ..evaluate.run_plan import RunConfig, run_plan
from ..freeze import freeze
from ..measure.quiet import measuring
from ..measure.timing import time_passes
from .grid import Grid, Key, read_rows, row_key, write_rows

__all__ = ["measure_grid"]

_BATCHES = (1, 32)
_IMAGES = 256
_PASSES = 9
CONFIDENCES = (0.8, 0.9, 0.95, 0.98, 0.99)


def measure_grid(grid: Grid, only: str = "") -> list[dict[str, Any]]:
    """Measures the rows of every network of which one lacks a time, while trainings pause.

    A row gets ms_b1 and ms_b32, the milliseconds per image of its checkpoint, frozen, at batch 1 and 32: the
    median of 9 passes over the first 256 test images of what it was trained on, one thread; and measured_on,
    the processor. The row of a network with branch classifiers also gets halting: for each of some
    confidences (`engine.Engine`'s) accuracy and mean macs on the test images, and both times. All
    rows of a network take turns pass by pass, those that had times, too, so that their ratios are those of
    one measurement: a machine is faster at one hour than at another. They are written together, and
    `run_grid` may run at the same time.

    Args:
        grid: of `read_grid`.
        only: runs whose name contains this.

    Returns:
        All rows of the grid's file.

    Raises:
        FileNotFoundError, CheckpointError: a checkpoint is missing or damaged.
        RuntimeError: the engine is not built.

    Example:
        >>> measure_grid(read_grid("bench/grids/scene_digits_ddi.toml"))
    """
    wanted = {run.key for run in grid.runs if only in run.name}
    rows = [row for row in read_rows(grid.rows) if row_key(row) in wanted]
    waiting = dict.fromkeys(row["network"] for row in rows if _lacks_times(row))
    for network in tqdm(waiting, desc="measure", disable=None):
        mine = [row for row in rows if row["network"] == network]
        times = _times(mine, grid.checkpoints)
        # Read anew: a training may have ended meanwhile.
        write_rows(grid.rows, [row | times.get(row_key(row), {}) for row in read_rows(grid.rows)])
    return read_rows(grid.rows)


def _lacks_times(row: dict[str, Any]) -> bool:
    halting = bool(row.get("halting")) or not row.get("exit_accuracy")
    return not halting or any(row.get(f"ms_b{batch}") is None for batch in _BATCHES)


class _Frozen:
    """A row's checkpoint in the engine.

    Attributes:
        data: what it was trained on.
        ways: by batch size what to call, by name.
        halting: the row's, without times if it had none.
    """

    def __init__(self, row: dict[str, Any], checkpoint: Path) -> None:
        model, meta = load_model(checkpoint)
        name, root = meta["dataset"], meta["train"]["data_root"]
        self.data = get_dataset(name, root)
        with tempfile.TemporaryDirectory() as folder:
            plan = Path(folder) / "network.ddi"
            freeze(model, torch.zeros(1, *self.data.image_shape), plan)
            networks = {batch: engine.load(plan, max_batch=batch) for batch in _BATCHES}
            wanted = CONFIDENCES if len(networks[1].exits) > 1 else ()
            self.halting = row.get("halting") or [_halting(plan, name, root, c) for c in wanted]
        self.name = checkpoint.name
        self.ways: dict[int, dict[str, Any]] = {b: {self.name: one} for b, one in networks.items()}
        for batch, confidence in itertools.product(_BATCHES, (one["confidence"] for one in self.halting)):
            self.ways[batch][f"{self.name} {confidence}"] = partial(networks[batch], confidence=confidence)

    def columns(self, ms: dict[tuple[int, str], float]) -> dict[str, Any]:
        """Those of its row. ms: by batch size and name."""

        def times(name: str) -> dict[str, float]:
            return {f"ms_b{batch}": ms[batch, name] for batch in _BATCHES}

        halting = [{**one, **times(f"{self.name} {one['confidence']}")} for one in self.halting]
        return times(self.name) | ({"halting": halting} if halting else {})


def _halting(plan: Path, dataset: str, data_root: str | None, confidence: float) -> dict[str, Any]:
    """What a plan does on the test images if it halts where it is so certain."""
    found = run_plan(plan, RunConfig(dataset, data_root, confidence=confidence))
    return {"confidence": confidence, "accuracy": found["accuracy"], "macs": round(found["mean_macs"])}


def _times(rows: list[dict[str, Any]], checkpoints: Path) -> dict[Key, dict[str, Any]]:
    """The columns that the rows of one network get."""
    networks = {row_key(row): _Frozen(row, checkpoints / row["checkpoint"]) for row in rows}
    data = next(iter(networks.values())).data
    pool = data.normalize(data.test().images[:_IMAGES])
    ms: dict[tuple[int, str], float] = {}
    with measuring():
        for batch in _BATCHES:
            ways = {name: call for one in networks.values() for name, call in one.ways[batch].items()}
            timed = time_passes(ways, pool, batch, threads=1, passes=_PASSES)
            ms |= {(batch, name): round(timing.median_ms, 5) for name, timing in timed.items()}
    cpu = collect_env()["system"]["cpu"]
    return {key: {"measured_on": cpu, **one.columns(ms)} for key, one in networks.items()}
