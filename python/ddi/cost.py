"""Multiply-adds of dense and gated networks, per sample and per block.

1 MAC = one multiply and one add = 2 FLOPs. Gates, stem, shortcuts and heads count; normalisation, activations
and pooling do not (the convention of torch.utils.flop_counter, which does the counting).
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn as nn
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["MacCount", "conv_macs", "conv_output_size", "count_macs", "dense_macs"]


@dataclass(frozen=True)
class MacCount:
    """MACs per sample. `gated` and the values of `blocks` are means over the samples of the input.

    Args:
        dense: of the ungated backbone.
        gated: at the model's hard decisions; equals `dense` for a model without gates.
        blocks: mean gated MACs of each gated block, its gate included.
        per_sample: float64[N] gated MACs of each sample.
    """

    dense: int
    gated: float
    blocks: dict[str, float]
    per_sample: Tensor

    @property
    def mac_ratio(self) -> float:
        return self.dense / self.gated


def conv_output_size(conv: nn.Conv2d, size: Sequence[int]) -> tuple[int, int]:
    """(height, width) of a convolution's output for an input of (height, width)."""
    pads = conv.padding if isinstance(conv.padding, tuple) else (0, 0)
    out = [
        (n + 2 * int(p) - d * (k - 1) - 1) // s + 1
        for n, p, d, k, s in zip(size, pads, conv.dilation, conv.kernel_size, conv.stride, strict=True)
    ]
    return out[0], out[1]


def conv_macs(conv: nn.Conv2d, size: Sequence[int]) -> int:
    """MACs per sample of a convolution on an input of (height, width), everything open."""
    height, width = conv_output_size(conv, size)
    return conv.weight.numel() * height * width


def dense_macs(model: nn.Module, input_shape: Sequence[int]) -> int:
    """MACs per sample of a model with its gates taken off, for inputs of shape (N, C, H, W).

    Counted once per input size on a copy that holds no data (meta tensors), so it costs no arithmetic.
    """
    cache: dict[tuple[int, ...], int] = model.__dict__.setdefault("_ddi_dense_macs", {})
    key = tuple(input_shape[1:])
    if key not in cache:
        from .convert import is_converted, revert_

        dense = copy.deepcopy(model).to("meta").eval()
        if is_converted(dense):
            revert_(dense)
        counter = FlopCounterMode(display=False)
        with torch.no_grad(), counter:
            dense(torch.empty(1, *key, device="meta"))
        cache[key] = counter.get_total_flops() // 2
    return cache[key]


@torch.no_grad()
def count_macs(model: nn.Module, x: Tensor) -> MacCount:
    """MACs of a model on a batch, dense and at its gates' hard decisions.

    Args:
        model: gated or plain; run once in its current mode if gated.
        x: float[N, C, H, W].

    Example:
        >>> ddi.count_macs(ddi.create_model("cifar_resnet20"), torch.randn(1, 3, 32, 32)).dense
        40813184
    """
    from .convert import is_converted
    from .record import record

    dense = dense_macs(model, x.shape)
    if not is_converted(model):
        return MacCount(dense, float(dense), {}, torch.full((x.shape[0],), dense).double())
    with record(model) as rec:
        model(x)
    per_sample = rec.macs.double()
    blocks: dict[str, Any] = {b.name: b.macs.double().mean().item() for b in rec.passes[0]}
    return MacCount(dense, per_sample.mean().item(), blocks, per_sample)
