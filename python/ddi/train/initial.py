"""The network that a run begins with, and the one that it learns from."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn as nn

from ..backbones import create_model
from ..checkpoint import CheckpointError, load_model
from ..convert import convert_
from ..data import Dataset
from ..gates import config_from_dict
from ..gating.stand_in import is_converted
from .config import TrainConfig

__all__ = ["initial_model", "model_kwargs", "teacher_model"]


def initial_model(config: TrainConfig, num_classes: int) -> nn.Module:
    """The network of a config with random weights, or with those of `init`, and its gates on it.

    Raises:
        CheckpointError: `init` holds a gated or another network, or has other branch classifiers.
    """
    torch.manual_seed(config.seed)
    model = _new_model(config, num_classes) if config.init is None else _load_init(config, num_classes)
    if config.gates is not None:
        convert_(model, config_from_dict(config.gates))
    return model


def teacher_model(config: TrainConfig, data: Dataset) -> nn.Module | None:
    """The network of `teacher`, in eval mode, if there is one.

    Raises:
        CheckpointError: it tells another number of classes apart.
    """
    if config.teacher is None:
        return None
    model, _ = load_model(config.teacher)
    with torch.no_grad():
        classes = model(torch.zeros(1, *data.image_shape)).shape[1]
    if classes != data.num_classes:
        raise CheckpointError(
            f"train: teacher={config.teacher} tells {classes} classes apart, {config.dataset} has "
            f"{data.num_classes}; give a network trained on it"
        )
    return model


def model_kwargs(config: TrainConfig, num_classes: int) -> dict[str, Any]:
    """Of `create_model`, but for exits."""
    return {"num_classes": num_classes, **(config.model_kwargs or {})}


def _new_model(config: TrainConfig, num_classes: int) -> Any:
    return create_model(config.model, exits=config.backbone_exits(), **model_kwargs(config, num_classes))


def _load_init(config: TrainConfig, num_classes: int) -> Any:
    """The checkpoint's plain network, with branch classifiers if some are wanted."""
    path: Any = config.init
    loaded: Any
    loaded, meta = load_model(path)
    if is_converted(loaded):
        raise CheckpointError(f"train: init={path} holds a gated model; give a plain one")
    if meta.get("model") not in (None, config.model):
        raise CheckpointError(f"train: init={path} holds {meta['model']!r}, the run wants {config.model!r}")
    if config.exits is None:
        return loaded
    model = _new_model(config, num_classes)
    if config.exits != "none" and loaded.exit_positions not in ((), model.exit_positions):
        raise CheckpointError(
            f"train: init={path} has branch classifiers after blocks {loaded.exit_positions}, the run "
            f"wants them after {model.exit_positions}; leave exits out to train those that it has"
        )
    model.load_state_dict(loaded.state_dict(), strict=False)  # all but exits.* that one of them lacks
    return model
