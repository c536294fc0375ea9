"""Eval mode for as long as a look at a model lasts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch.nn as nn

__all__ = ["eval_mode"]


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Inside, a model is in eval mode; behind, each of its modules is in the mode that it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        model.eval()  # once more, to drop what was prepared for inference: training would make it stale
        for module, training in modes:
            module.training = training
