"""Freezes a network into a plan, the one file that the engine runs with neither Python nor torch.

trace.py takes the model apart, fuse.py joins what is one step, emit.py lays it out, plan.py writes bytes.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn as nn
from torch import Tensor

import ddi

from ..checkpoint import write_atomic
from ..cost import dense_macs
from .emit import emit
from .fuse import fuse
from .ir import FreezeError
from .trace import trace

__all__ = ["FreezeError", "freeze"]

_DTYPES = (torch.float32, torch.bfloat16)


@torch.no_grad()
def freeze(
    model: nn.Module,
    example_input: Tensor,
    path: str | Path,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Writes a model, gated or plain, as a plan that the engine runs.

    Batch norms are folded, gates, exits and costs recorded; the file holds everything, and its weights are
    packed for the machine that loads it.

    Args:
        model: in eval mode its forward must be traceable by torch.export.
        example_input: float32[N, C, H, W]; the plan takes images of this size, in batches of any.
        path: of the plan.
        dtype: of activations and convolution weights. Gates and linear layers stay float32.

    Raises:
        FreezeError: names the operation that the engine does not have, and the module it stands in.
        ValueError: a bad argument.

    Example:
        >>> ddi.freeze(model, torch.randn(1, 3, 32, 32), "resnet.ddi")
        >>> logits = ddi_kernels.engine.load("resnet.ddi")(images)
    """
    if not isinstance(example_input, Tensor) or example_input.dim() != 4:
        got = (
            tuple(example_input.shape) if isinstance(example_input, Tensor) else type(example_input).__name__
        )
        raise ValueError(f"freeze: example_input must be a Tensor [N, C, H, W], got {got}")
    if dtype not in _DTYPES:
        raise ValueError(f"freeze: dtype must be one of {', '.join(map(str, _DTYPES))}, got {dtype}")
    network = trace(model, example_input.float())
    metadata = {
        "model": type(model).__name__,
        "version": ddi.__version__,
        "dense_macs": dense_macs(model, example_input.shape),
    }
    write_atomic(path, emit(fuse(network, dtype), dtype, metadata))
