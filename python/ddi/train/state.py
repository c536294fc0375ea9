"""The state of an unfinished run on disk: weights, optimizers, and where it stands."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor
from torch.optim import Optimizer

from ..checkpoint import CheckpointError, read_tensors, write_tensors
from .config import TrainConfig

__all__ = ["Progress", "load_state", "restore_optimizers", "save_state"]


@dataclass
class Progress:
    """Where a run stands: the next step to take, whether its gates have settled (see `TrainConfig`), its
    history, and what it has summed up in this epoch.
    """

    stage: int = 0
    epoch: int = 0
    step: int = 0
    settled: bool = False
    history: list[dict[str, Any]] = field(default_factory=list)
    totals: dict[str, float] = field(default_factory=dict)


def save_state(
    path: Path, config: TrainConfig, progress: Progress, model: nn.Module, optimizers: list[Optimizer]
) -> None:
    """Writes the state of a run, whole or not at all."""
    tensors = {f"model.{name}": t for name, t in model.state_dict().items()}
    for i, optimizer in enumerate(optimizers):
        for j, entry in optimizer.state_dict()["state"].items():
            tensors |= {
                f"optimizer.{i}.{j}.{key}": torch.as_tensor(value)
                for key, value in entry.items()
                if value is not None
            }
    write_tensors(path, tensors, {"config": asdict(config), "progress": asdict(progress)})


def load_state(path: Path, config: TrainConfig, model: nn.Module) -> tuple[Progress, dict[str, Tensor]]:
    """Loads the weights of a state into a model.

    Returns:
        Where the run stands, and what `restore_optimizers` takes.

    Raises:
        FileNotFoundError: there is no state.
        CheckpointError: it is damaged, or belongs to another configuration.
    """
    tensors, info = read_tensors(path)
    # A setting that did not exist when the state was written has its default.
    saved_config = asdict(TrainConfig()) | info.get("config", {})
    if saved_config != json.loads(json.dumps(asdict(config))):
        raise CheckpointError(
            f"train: {path} was written by another configuration; resume with the same "
            f"arguments, or train into another folder. It has {info.get('config')}"
        )
    prefix = "model."
    weights = {k[len(prefix) :]: t for k, t in tensors.items() if k.startswith(prefix)}
    model.load_state_dict(weights)
    saved = {k: t for k, t in tensors.items() if k.startswith("optimizer.")}
    return Progress(**info["progress"]), saved


def restore_optimizers(optimizers: list[Optimizer], saved: dict[str, Tensor]) -> None:
    """Gives optimizers the state that `load_state` found."""
    for name, tensor in saved.items():
        _, i, j, key = name.split(".")
        parameter = optimizers[int(i)].param_groups[0]["params"][int(j)]
        # Counters stay on the CPU, where the optimizers keep them.
        optimizers[int(i)].state[parameter][key] = tensor.to(parameter.device) if tensor.dim() else tensor
