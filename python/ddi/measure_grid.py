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
from .grid import Grid, Key, read_rows, row_key, write_rows
from .quiet import measuring
from .timing import measure

__all__ = ["measure_grid"]

_BATCHES = (1, 32)
_IMAGES = 256
_PASSES = 9


def measure_grid(grid: Grid, only: str = "") -> list[dict[str, Any]]:
    """Measures the rows of every network of which one lacks a time, while trainings pause.

    A row gets ms_b1 and ms_b32, the milliseconds per image of its checkpoint, frozen, at batch 1 and 32: the
    median of 9 passes over the first 256 test images of what it was trained on, one thread; and measured_on,
    the processor. All rows of a network take turns pass by pass, those that had times, too, so that their
    ratios are those of one measurement: a machine is faster at one hour than at another. They are written
    together, and `run_grid` may run at the same time.

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
        mine = {row_key(row): row["checkpoint"] for row in rows if row["network"] == network}
        times = _times({key: grid.checkpoints / name for key, name in mine.items()})
        # Read anew: a training may have ended meanwhile.
        write_rows(grid.rows, [row | times.get(row_key(row), {}) for row in read_rows(grid.rows)])
    return read_rows(grid.rows)


def _lacks_times(row: dict[str, Any]) -> bool:
    return any(row.get(f"ms_b{batch}") is None for batch in _BATCHES)


def _times(checkpoints: dict[Key, Path]) -> dict[Key, dict[str, Any]]:
    """The columns that the rows of one network get."""
    networks: dict[int, dict[str, Any]] = {batch: {} for batch in _BATCHES}
    for checkpoint in checkpoints.values():
        model, meta = load_model(checkpoint)
        data = get_dataset(meta["dataset"], meta["train"]["data_root"])
        with tempfile.TemporaryDirectory() as folder:
            plan = Path(folder) / "network.ddi"
            freeze(model, torch.zeros(1, *data.image_shape), plan)
            for batch in _BATCHES:
                networks[batch][checkpoint.name] = engine.load(plan, max_batch=batch)
    pool = data.normalize(data.test().images[:_IMAGES])
    cpu = collect_env()["system"]["cpu"]
    times: dict[Key, dict[str, Any]] = {key: {"measured_on": cpu} for key in checkpoints}
    with measuring():
        for batch, providers in networks.items():
            taken = measure(providers, pool, batch, threads=1, passes=_PASSES)
            for key, checkpoint in checkpoints.items():
                times[key][f"ms_b{batch}"] = round(taken[checkpoint.name].median_ms, 5)
    return times
