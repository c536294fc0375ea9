"""Writes a model as a plan: traced, fused, laid out, written."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor

from ..cost import dense_macs
from ..files import write_atomic
from ..version import __version__
from .emit import emit
from .fuse import fuse
from .ranges import input_ranges
from .trace import trace

__all__ = ["freeze"]

_DTYPES = (torch.float32, torch.bfloat16, torch.int8)


@torch.no_grad()
def freeze(
    model: nn.Module,
    example_input: Tensor,
    path: str | Path,
    dtype: torch.dtype = torch.float32,
    calibration: Tensor | Iterable[Any] | None = None,
) -> dict[str, Any]:
    """Writes a model, gated or plain, as a plan that the engine runs.

    Batch norms are folded, gates, exits and costs recorded; the file holds everything, and its weights are
    packed for the machine that loads it. It is written whole or not at all.

    Args:
        model: in eval mode its forward must be traceable by torch.export.
        example_input: float32[N, C, H, W]; the plan takes images of this size, in batches of any.
        path: of the plan.
        dtype: float32; bfloat16, of activations and convolution weights; or int8, in which residual blocks
            and convolutions compute, between activations of float32. Gates and linear layers stay float32 in
            all; in int8 also the first convolution (more exact, and it reads the image where it lies),
            grouped ones, those that a batch norm stands before, and the layers of dense blocks. Where int8
            is computed NaN counts as 0.
        calibration: for int8, images like those that the network is to see: float[N, C, H, W], or batches of
            such, or pairs of a batch and anything, as a DataLoader has. What a convolution reads gets one
            scale, the largest absolute value over 127, weights one for each output channel; as in Jacob et
            al., CVPR 2018, without training. What is larger than anything seen is cut off, also where gates
            open more than they did then.

    Returns:
        What the plan says of itself: model (its class), version of ddi, dense_macs (of a sample, without
        gates), gates (a dictionary for each gated block) and exits (names of the classifiers).

    Raises:
        FreezeError: names the operation that the engine does not have, and the module it stands in.
        ValueError: a bad argument.

    Example:
        >>> ddi.freeze(model, torch.randn(1, 3, 32, 32), "resnet.ddi")
        >>> logits = ddi_kernels.engine.load("resnet.ddi")(images)
        >>> ddi.freeze(model, torch.randn(1, 3, 32, 32), "int8.ddi", dtype=torch.int8, calibration=images)
    """
    if not isinstance(example_input, Tensor) or example_input.dim() != 4:
        got = (
            tuple(example_input.shape) if isinstance(example_input, Tensor) else type(example_input).__name__
        )
        raise ValueError(f"freeze: example_input must be a Tensor [N, C, H, W], got {got}")
    if dtype not in _DTYPES:
        raise ValueError(f"freeze: dtype must be one of {', '.join(map(str, _DTYPES))}, got {dtype}")
    if (dtype == torch.int8) != (calibration is not None):
        given = "no calibration" if calibration is None else "calibration"
        raise ValueError(f"freeze: got {given} with dtype {dtype}, expected it for torch.int8 and only then")
    example = example_input.float()
    ranges = {} if calibration is None else input_ranges(model, calibration, example)
    network = trace(model, example)
    metadata = {
        "model": type(model).__name__,
        "version": __version__,
        "dense_macs": dense_macs(model, example_input.shape),
    }
    plan, metadata = emit(fuse(network), dtype, metadata, ranges)
    write_atomic(path, plan)
    return metadata
