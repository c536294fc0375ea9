"""A frozen network in the place of the model that it was frozen from. See :mod:`ddi_kernels.engine`."""

from __future__ import annotations

import os

import torch
import torch.nn as nn
from torch import Tensor

from ddi_kernels import engine

__all__ = ["FrozenModel"]


class FrozenModel(nn.Module):
    """Runs a plan as a module, for inference on the CPU.

    It has no parameters and is always in eval mode. Batches larger than `max_batch` are run in pieces.

    Args:
        path: of a plan that `ddi.freeze` wrote.
        max_batch: images a call of the engine.
        threads: that a call uses.

    Attributes:
        engine: the loaded network, whose calls take budgets and report costs.

    Example:
        >>> model = ddi.FrozenModel("resnet.ddi", max_batch=32)
        >>> logits = model(images)
    """

    def __init__(self, path: str | os.PathLike[str], max_batch: int = 1, threads: int = 1) -> None:
        super().__init__()
        self.engine = engine.load(path, max_batch, threads)
        self.max_batch = max_batch
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        """x: float32[N, C, H, W] on the CPU -> logits float32[N, classes], without gradient."""
        if len(x) <= self.max_batch:
            return self.engine(x)
        return torch.cat([self.engine(part) for part in x.split(self.max_batch)])

    def train(self, mode: bool = True) -> FrozenModel:
        """Raises RuntimeError for True: a plan holds no parameters to train."""
        if mode:
            raise RuntimeError("FrozenModel: cannot be trained; train the model and freeze it again")
        return super().train(False)

    def extra_repr(self) -> str:
        return repr(self.engine)
