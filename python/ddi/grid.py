"""Many trainings from one file: a row and a checkpoint for each finished run, in a fixed order, resumable.

All runs of a network and a seed begin with the same dense backbone, a run of its own: gated networks go on
from it, and so does "dense", so that all have been trained equally long; "narrow" and "shallow" networks,
whose shape is another, are trained from scratch for as many epochs as both together. A row says what the
committed checkpoint, whose weights are rounded to bfloat16, does on the test images. Trainings are no time to
measure: `measure_grid` fills in the milliseconds.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import tomllib
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from multiprocessing import active_children, get_context
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from ddi_kernels import collect_env

from .backbones import create_model
from .checkpoint import load_model, save_model, write_atomic
from .cost import dense_macs
from .data import get_dataset
from .evaluate import evaluate
from .train import TrainConfig, train
from .train.initial import model_kwargs

__all__ = ["Grid", "Run", "read_grid", "read_rows", "row_key", "run_grid", "write_rows"]

GATINGS = ("backbone", "dense", "narrow", "shallow", "layer", "channel", "both")
_FROM_SCRATCH = ("backbone", "narrow", "shallow")
GATED = ("layer", "channel", "both")


Key = tuple[str, str, float, int, str]
"""Network, gating, target, seed and resource: what tells the runs of a grid apart."""


@dataclass(frozen=True)
class Run:
    """One training.

    Args:
        network: name of a backbone.
        gating: "backbone", the start of the others; "dense", "narrow" or "shallow" networks without gates;
            gates on "layer", "channel" or "both". Those of a DenseNet are "both": it skips a layer by closing
            all its channels.
        target: wanted share of the dense MACs, or of the resource in `train`; 1.0 where nothing is gated, for
            "narrow" and "shallow" what `model_kwargs` were chosen for.
        seed: of weights, images and order.
        model_kwargs: more for `create_model`, e.g. {"width": 8}.
        group_size: channels per gate bit.
        train: other fields of `TrainConfig`.
    """

    network: str
    gating: str
    target: float
    seed: int
    model_kwargs: dict[str, Any] | None
    group_size: int
    train: dict[str, Any]

    def __post_init__(self) -> None:
        if self.gating not in GATINGS:
            raise ValueError(f"grid: unknown gating {self.gating!r}; allowed: {', '.join(GATINGS)}")

    @property
    def resource(self) -> str:
        """What gates are held to; "macs" where there are none."""
        return self.train.get("resource", "macs") if self.gating in GATED else "macs"

    @property
    def key(self) -> Key:
        return self.network, self.gating, self.target, self.seed, self.resource

    @property
    def name(self) -> str:
        """Of its checkpoint and its folder."""
        share = f"_{self.target:g}" if self.target < 1 else ""
        resource = "" if self.resource == "macs" else f"_{self.resource}"
        return f"{self.network}_{self.gating}{share}{resource}_s{self.seed}"

    @property
    def start(self) -> Key | None:
        """The key of the run whose network this one goes on with."""
        return None if self.gating in _FROM_SCRATCH else (self.network, "backbone", 1.0, self.seed, "macs")

    def config(self, checkpoints: Path) -> TrainConfig:
        """What to train, where checkpoints of other runs lie in a folder."""
        values = {"model": self.network, "seed": self.seed, "model_kwargs": self.model_kwargs, **self.train}
        config = TrainConfig.from_dict(values)
        after = config.gates_epochs + config.joint_epochs
        if self.gating == "backbone":
            values |= {"joint_epochs": 0}
        elif self.start is None:
            values |= {"joint_epochs": after}
        else:
            start = Run(self.network, "backbone", 1.0, self.seed, None, 1, {})
            values |= {"init": str(checkpoints / f"{start.name}.safetensors")}
            if self.gating == "dense":
                values |= {"joint_epochs": after}
            else:
                values |= {"gates": self._gates(), "mac_target": self.target}
        return TrainConfig.from_dict(values)

    def _gates(self) -> dict[str, Any]:
        if self.network.startswith("densenet"):
            return {"kind": "dense_ddi", "group_size": self.group_size}
        grains = {"layers": self.gating != "channel", "channels": self.gating != "layer"}
        return {"kind": "ddi", "group_size": self.group_size, **grains}


@dataclass(frozen=True)
class Grid:
    """The runs of a file, in order, and where their results go."""

    rows: Path
    checkpoints: Path
    runs: tuple[Run, ...]


def read_grid(path: str | Path) -> Grid:
    """The grid of a TOML file: `rows` and `checkpoints` (paths, relative to it), a table `train` of fields of
    `TrainConfig`, and tables `[[runs]]` with network, gating, target, seed (each one or a list), and
    optionally model_kwargs, group_size and fields of `TrainConfig` that differ in this table.

    Raises:
        OSError, ValueError: there is no such file; it is no TOML, or a key is missing or unknown.
    """
    path = Path(path)
    try:
        data = tomllib.loads(path.read_text())
        common, tables = data.pop("train", {}), data.pop("runs")
        rows, checkpoints = (path.parent / data.pop(name) for name in ("rows", "checkpoints"))
        runs = [run for table in tables for run in _expand(table, common)]
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"grid {path}: {error}") from error
    except KeyError as error:
        raise ValueError(f"grid {path}: {error} is missing") from error
    if data:
        raise ValueError(f"grid {path}: unknown keys {sorted(data)}; allowed: rows, checkpoints, train, runs")
    unique = list({run.key: run for run in runs}.values())
    known = {run.key for run in unique}
    for run in unique:
        run.config(checkpoints)  # what is wrong with it is said now, not after hours
        if run.start is not None and run.start not in known:
            raise ValueError(f'grid {path}: {run.name} needs a run with gating = "backbone", seed {run.seed}')
    return Grid(rows, checkpoints, tuple(unique))


def _expand(table: dict[str, Any], common: dict[str, Any]) -> Iterator[Run]:
    table = dict(table)
    axes = [_listed(table.pop(name)) for name in ("seed", "gating", "target", "network")]
    shape, size = table.pop("model_kwargs", None), table.pop("group_size", 1)
    for seed, gating, target, network in itertools.product(*axes):
        share = 1.0 if gating in ("backbone", "dense") else float(target)
        yield Run(network, gating, share, seed, shape, size, {**common, **table})


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSONL file, without its header; none if there is no file.

    Raises:
        ValueError: a line is no JSON object, or does not say of which run it is.
    """
    rows = []
    for number, line in enumerate(path.read_bytes().splitlines() if path.exists() else [], 1):
        try:
            row = json.loads(line)
            if not row.get("header"):
                row_key(row)
                rows.append(row)
        except KeyError as error:
            raise ValueError(f"grid: {path} is damaged: line {number} has no {error}") from error
        except (ValueError, AttributeError) as error:
            raise ValueError(
                f"grid: {path} is damaged, line {number} ({error}); restore or remove it"
            ) from error
    return rows


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """A header of machine and versions, and the rows, atomically."""
    lines = [json.dumps(row) for row in ({"header": True, **collect_env()}, *rows)]
    write_atomic(path, ("\n".join(lines) + "\n").encode())


def row_key(row: dict[str, Any]) -> Key:
    """The key of the run that a row is of."""
    return row["network"], row["gating"], row["target"], row["seed"], row.get("resource", "macs")


def run_grid(grid: Grid, work: str | Path, jobs: int = 1, only: str = "") -> list[dict[str, Any]]:
    """Trains all runs that have no row yet, `jobs` at a time, each with its part of the cores.

    Args:
        grid: of `read_grid`.
        work: folder for the state of unfinished runs, from which they go on.
        jobs: runs at a time.
        only: runs whose name contains this, and the backbones they need.

    Returns:
        All rows of the grid's file.

    Raises:
        KeyboardInterrupt: on SIGINT, after the runs have saved their state.
    """
    rows = read_rows(grid.rows)
    wanted = [run for run in grid.runs if only in run.name]
    needed = {run.start for run in wanted} | {run.key for run in wanted}
    finished = {row_key(row) for row in rows}
    waiting = [run for run in grid.runs if run.key in needed and run.key not in finished]
    threads = max(1, (os.cpu_count() or 1) // jobs)
    running: dict[Future[dict[str, Any]], Run] = {}
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        try:
            while waiting or running:
                ready = [run for run in waiting if run.start is None or run.start in finished]
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
    target = checkpoints / f"{run.name}.safetensors"
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
