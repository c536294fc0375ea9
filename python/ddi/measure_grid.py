"""How fast the networks of a grid are: fills in the milliseconds that its rows lack, in the engine."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from ddi_kernels import collect_env, engine

from .checkpoint import load_model
from .data import get_dataset
from .freeze import freeze
from .grid import Grid, read_rows, row_key, write_rows
from .quiet import measuring
from .timing import measure

__all__ = ["measure_grid"]

_BATCHES = (1, 32)
_IMAGES = 256
_PASSES = 5


def measure_grid(grid: Grid, only: str = "") -> list[dict[str, Any]]:
    """Measures the networks of all rows that lack a time, one after the other, while trainings pause.

    A row gets ms_b1 and ms_b32, the milliseconds per image of its checkpoint, frozen, at batch 1 and 32: the
    median of 5 passes over the first 256 test images of what it was trained on, one thread; and measured_on,
    the processor. It is written as soon as it is measured, so an interrupted call loses one row at most, and
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
    waiting = [row for row in read_rows(grid.rows) if row_key(row) in wanted and _lacks_times(row)]
    for row in tqdm(waiting, desc="measure", disable=None):
        times = _times(grid.checkpoints / row["checkpoint"])
        # Read anew: a training may have ended meanwhile.
        rows = [r | times if row_key(r) == row_key(row) else r for r in read_rows(grid.rows)]
        write_rows(grid.rows, rows)
    return read_rows(grid.rows)


def _lacks_times(row: dict[str, Any]) -> bool:
    return any(row.get(f"ms_b{batch}") is None for batch in _BATCHES)


def _times(checkpoint: Path) -> dict[str, Any]:
    """The columns that a row gets."""
    model, meta = load_model(checkpoint)
    data = get_dataset(meta["dataset"], meta["train"]["data_root"])
    pool = data.normalize(data.test().images[:_IMAGES])
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        plan = Path(folder) / "network.ddi"
        freeze(model, torch.zeros(1, *data.image_shape), plan)
        networks = {batch: engine.load(plan, max_batch=batch) for batch in _BATCHES}
    with measuring():
        for batch, network in networks.items():
            timing = measure({"engine": network}, pool, batch, threads=1, passes=_PASSES)["engine"]
            found[f"ms_b{batch}"] = round(timing.median_ms, 5)
    return {**found, "measured_on": collect_env()["system"]["cpu"]}
