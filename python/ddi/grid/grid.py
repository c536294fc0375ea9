"""Many trainings in one file, and the file of their rows.

All runs of a network and a seed begin with the same dense backbone, a run of its own: gated networks go on
from it, and so does "dense", so that all have been trained equally long; "narrow" and "shallow" networks,
whose shape is another, are trained from scratch for as many epochs as both together. With `teacher = "dense"`
all of these learn from the "dense" network of their seed, too. A row says what the committed checkpoint,
whose weights are rounded to bfloat16, does on the test images; `run_grid` trains and writes it. Trainings are
no time to measure: `measure_grid` fills in the milliseconds.
"""

from __future__ import annotations

import itertools
import json
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddi_kernels import collect_env

from ..files import write_atomic
from ..train import TrainConfig

__all__ = ["Grid", "Run", "read_grid", "read_rows", "row_key", "write_rows"]

GATINGS = ("backbone", "dense", "narrow", "shallow", "layer", "channel", "both")
_FROM_SCRATCH = ("backbone", "narrow", "shallow")
GATED = ("layer", "channel", "both")
TEACHERS = ("backbone", "dense")


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
        train: other fields of `TrainConfig`; `teacher` is the gating, "dense" or "backbone", of the run whose
            network all others of this network and seed learn from.
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
        if self.train.get("teacher", "dense") not in TEACHERS:
            raise ValueError(
                f"grid: teacher must be one of {', '.join(TEACHERS)}, got {self.train['teacher']!r}"
            )

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
        return None if self.gating in _FROM_SCRATCH else self._plain("backbone").key

    @property
    def teacher(self) -> Key | None:
        """The key of the run whose network this one learns from."""
        named = self.train.get("teacher")
        return None if named is None or self.gating in TEACHERS else self._plain(named).key

    @property
    def needs(self) -> set[Key]:
        """The keys of the runs that must have ended before this one."""
        return {key for key in (self.start, self.teacher) if key is not None}

    def _plain(self, gating: str) -> Run:
        """A run of the same network and seed without gates."""
        return Run(self.network, gating, 1.0, self.seed, None, 1, {})

    def checkpoint(self, checkpoints: Path) -> Path:
        """Its file in a folder of checkpoints."""
        return checkpoints / f"{self.name}.safetensors"

    def config(self, checkpoints: Path) -> TrainConfig:
        """What to train, where checkpoints of other runs lie in a folder."""
        values = {"model": self.network, "seed": self.seed, "model_kwargs": self.model_kwargs, **self.train}
        named = values.pop("teacher", None)
        if self.teacher is not None:
            values |= {"teacher": str(self._plain(named).checkpoint(checkpoints))}
        config = TrainConfig.from_dict(values)
        after = config.gates_epochs + config.joint_epochs
        if self.gating == "backbone":
            values |= {"joint_epochs": 0}
        elif self.start is None:
            values |= {"joint_epochs": after}
        else:
            values |= {"init": str(self._plain("backbone").checkpoint(checkpoints))}
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
        for network, gating, _, seed, _ in run.needs - known:
            raise ValueError(
                f'grid {path}: {run.name} needs a run of {network} with gating = "{gating}", seed {seed}'
            )
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
