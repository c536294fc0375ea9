"""Checkpoints: one safetensors file whose header carries a JSON description, written atomically.

No pickle is involved, so a foreign file cannot run code; a truncated or foreign one gives a CheckpointError.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch.nn as nn
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from .backbones import create_model
from .files import write_atomic
from .gates import config_from_dict, config_to_dict

__all__ = [
    "CheckpointError",
    "load_model",
    "read_tensors",
    "save_model",
    "write_tensors",
]

_KEY = "ddi"
_VERSION = 1


class CheckpointError(ValueError):
    """A file that is no checkpoint of ours, is damaged, or does not fit."""


def write_tensors(path: str | Path, tensors: dict[str, Tensor], info: dict[str, Any]) -> None:
    """Tensors and a JSON-ready description into one safetensors file, atomically."""
    flat = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    header = {_KEY: json.dumps({"version": _VERSION, **info})}
    write_atomic(path, save(flat, metadata=header))


def read_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What `write_tensors` wrote.

    Raises:
        FileNotFoundError: no such file.
        CheckpointError: truncated, not safetensors, or not written by this package.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint {path}: no such file")
    try:
        with safe_open(path, framework="pt") as file:
            header = (file.metadata() or {}).get(_KEY)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"checkpoint {path}: damaged or not a safetensors file ({error})") from error
    if header is None:
        raise CheckpointError(
            f"checkpoint {path}: a safetensors file, but not written by ddi (no {_KEY!r} in its header); "
            "load its tensors yourself with safetensors.torch.load_file and model.load_state_dict"
        )
    try:
        info = json.loads(header)
        version = info["version"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise CheckpointError(f"checkpoint {path}: its description is unreadable ({error})") from error
    if version != _VERSION:
        raise CheckpointError(f"checkpoint {path}: version {version}, this ddi reads version {_VERSION}")
    return tensors, info


def describe_model(model: nn.Module, name: str, **kwargs: Any) -> dict[str, Any]:
    """The JSON-ready description from which `load_model` rebuilds a model."""
    gates = getattr(model, "ddi_gates", None)
    return {
        "model": name,
        "kwargs": kwargs,
        "gates": None if gates is None else config_to_dict(gates.config),
    }


def save_model(
    path: str | Path, model: nn.Module, name: str, meta: dict[str, Any] | None = None, **kwargs: Any
) -> None:
    """Saves a model made by `create_model(name, gates, **kwargs)` with free-form JSON-ready meta.

    Example:
        >>> ddi.save_model("net.safetensors", model, "cifar_resnet38", num_classes=10)
    """
    info = {**describe_model(model, name, **kwargs), "meta": meta or {}}
    write_tensors(path, model.state_dict(), info)


def load_model(path: str | Path) -> tuple[nn.Module, dict[str, Any]]:
    """The model of a checkpoint, in eval mode, and its meta.

    Raises:
        FileNotFoundError, CheckpointError: see `read_tensors`; also when weights and description disagree.

    Example:
        >>> model, meta = ddi.load_model("net.safetensors")
    """
    tensors, info = read_tensors(path)
    try:
        gates = info["gates"]
        model = create_model(
            info["model"],
            gates=None if gates is None else config_from_dict(gates),
            **info["kwargs"],
        )
        model.load_state_dict(tensors)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"checkpoint {path}: does not describe a model here ({error})") from error
    return model.eval(), info.get("meta", {})
