"""Runs the trainings of a grid: a row and a checkpoint for each finished one, in a fixed order, resumable."""

from __future__ import annotations

import os
import signal
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from multiprocessing import active_children, get_context
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from ..backbones import create_model
from ..checkpoint import load_model, save_model
from ..cost import dense_macs
from ..data import get_dataset
from ..evaluate.evaluate import evaluate
from ..train import train
from ..train.initial import model_kwargs
from .grid import GATED, Grid, Key, Run, read_rows, row_key, write_rows

__all__ = ["run_grid", "with_needs"]


def run_grid(grid: Grid, work: str | Path, jobs: int = 1, only: str = "") -> list[dict[str, Any]]:
    """Trains all runs that have no row yet, `jobs` at a time, each with its part of the cores.

    Args:
        grid: of `read_grid`.
        work: folder for the state of unfinished runs, from which they go on.
        jobs: runs at a time.
        only: runs whose name contains this, and those that they need.

    Returns:
        All rows of the grid's file.

    Raises:
        KeyboardInterrupt: on SIGINT, after the runs have saved their state.
    """
    rows = read_rows(grid.rows)
    needed = with_needs(grid, {run.key for run in grid.runs if only in run.name})
    finished = {row_key(row) for row in rows}
    waiting = [run for run in grid.runs if run.key in needed and run.key not in finished]
    threads = max(1, (os.cpu_count() or 1) // jobs)
    running: dict[Future[dict[str, Any]], Run] = {}
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        try:
            while waiting or running:
                ready = [run for run in waiting if run.needs <= finished]
                for run in ready[: jobs - len(running)]:
                    running[pool.submit(train_run, run, grid.checkpoints, Path(work), threads)] = run
                    waiting.remove(run)
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    finished.add(running.pop(future).key)
                    # Read anew: others may have measured meanwhile, see `measure_grid`.
                    rows = [*read_rows(grid.rows), future.result()]
                    write_rows(grid.rows, rows)
                    print(_line(rows[-1]), flush=True)
        except BaseException:  # SIGINT, or a run that failed: the others save what they have
            pool.shutdown(wait=False, cancel_futures=True)
            for process in active_children():
                os.kill(process.pid or 0, signal.SIGINT)
            raise
    return rows


def with_needs(grid: Grid, keys: set[Key]) -> set[Key]:
    """The keys of runs, and those of all runs that these need, directly or not."""
    more = {key for run in grid.runs if run.key in keys for key in run.needs} - keys
    return with_needs(grid, keys | more) if more else keys


def _line(row: dict[str, Any]) -> str:
    name = f"{row['network']} {row['gating']} {row['target']:g} seed {row['seed']}"
    return f"{name}: accuracy {100 * row['accuracy']:.2f} %, mac_ratio {row['mac_ratio']:.2f}"


def train_run(run: Run, checkpoints: Path, work: Path, threads: int) -> dict[str, Any]:
    """Trains one run to its end, or goes on with it, and writes its checkpoint.

    Returns:
        Its row: network, gating, target, seed, accuracy (test), macs (mean of an image), mac_ratio (of the
        named network's dense MACs to these), resource and resource_share (of its own dense cost, in what it
        was trained to), validation_accuracy, exit_accuracy, seconds, checkpoint, ms_b1 and ms_b32 (None until
        `measure_grid` has measured them).
    """
    torch.set_num_threads(threads)
    began = perf_counter()
    config = run.config(checkpoints)
    train(config, work / run.name, resume=True, progress_bar=False)
    target = run.checkpoint(checkpoints)
    data = get_dataset(config.dataset, config.data_root)
    kwargs = model_kwargs(config, data.num_classes)
    _save_rounded(work / run.name / "model.safetensors", target, config.model, kwargs)
    model, meta = load_model(target)
    resource = "macs" if config.gates is None else config.priced()
    result = evaluate(model, data, data.test(), resource=resource)
    dense = dense_macs(create_model(run.network), (1, *data.image_shape))
    return {
        **dict(zip(("network", "gating", "target", "seed"), run.key, strict=False)),
        "accuracy": result.accuracy,
        "macs": round(result.macs.mean().item()),
        "mac_ratio": round(dense / result.macs.mean().item(), 4),
        "resource": result.resource,
        "resource_share": round(result.cost.share.item(), 4),
        "ms_b1": None,
        "ms_b32": None,
        "validation_accuracy": meta["validation_accuracy"],
        "exit_accuracy": result.exit_accuracy,
        "group_size": run.group_size if run.gating in GATED else None,
        "seconds": round(perf_counter() - began),
        "checkpoint": target.name,
    }


def _save_rounded(source: Path, target: Path, name: str, kwargs: dict[str, Any]) -> None:
    """The checkpoint with its kernels and matrices in bfloat16, half the size; vectors stay float32."""
    model, meta = load_model(source)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data = parameter.data.bfloat16()
    history = meta.pop("history")
    meta = {**meta, "validation_accuracy": history[-1]["validation_accuracy"]}
    exits: Any = list(model.exit_positions) or None  # type: ignore[arg-type]
    save_model(target, model, name, meta, exits=exits, **kwargs)
