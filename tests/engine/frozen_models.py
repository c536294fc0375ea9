"""Models with seeded weights and lively gates, and engines of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor

import ddi
from ddi_kernels import engine


def seeded(model: nn.Module, seed: int = 0) -> Any:
    """The model in eval mode with batch norms away from the identity, and gates that open about half."""
    generator = torch.Generator().manual_seed(seed)

    def draw(tensor: Tensor, low: float, high: float) -> None:
        tensor.data.copy_(torch.rand(tensor.shape, generator=generator) * (high - low) + low)

    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            draw(module.running_mean, -0.1, 0.1)
            draw(module.running_var, 0.5, 1.5)
            draw(module.weight, 0.5, 1.0)
            draw(module.bias, -0.1, 0.1)
    for name, parameter in getattr(model, "ddi_gates", nn.Module()).named_parameters():
        if "expand" in name or name.startswith("layer"):
            draw(parameter, -1.0, 1.0)
    return model.eval()


def make(name: str, gates: Any = None, exits: Any = None) -> Any:
    """A seeded model of 7 classes."""
    torch.manual_seed(0)
    return seeded(ddi.create_model(name, gates=gates, exits=exits, num_classes=7))


def make_outspoken(name: str, gates: Any = None) -> Any:
    """The same with exits that are certain of some images and not of others."""
    model = make(name, gates, exits="default")
    for head in model.exits:
        head.fc.weight.data *= 20
    return model


def random_images(count: int, size: int) -> Tensor:
    """Images of more and less contrast, of which the exits of `make_outspoken` are more and less certain."""
    return 2 * torch.rand(count, 1, 1, 1) * torch.randn(count, 3, size, size)


def freeze(model: nn.Module, size: int, path: Path, **kwargs: Any) -> engine.Engine:
    """The engine of a frozen model for images of 3 x size x size."""
    loading = {key: kwargs.pop(key) for key in ("max_batch", "threads") if key in kwargs}
    ddi.freeze(model, torch.randn(1, 3, size, size), path / "net.ddi", **kwargs)
    return engine.load(path / "net.ddi", **{"max_batch": 5, **loading})
