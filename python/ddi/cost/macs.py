"""Multiply-adds of dense and gated networks, per sample and per block.

1 MAC = one multiply and one add = 2 FLOPs. Gates, stem, shortcuts and heads count; normalisation, activations
and pooling do not (the convention of torch.utils.flop_counter, which does the counting).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor

from ..gating.decision import Mask
from ..gating.geometry import conv_output_size
from ..gating.site import Gate, GateSite
from .resource import Resource, open_pairs
from .shapes import ungated

__all__ = ["Macs", "conv_macs", "dense_macs"]


def conv_macs(conv: nn.Conv2d, size: Sequence[int]) -> int:
    """MACs per sample of a convolution on an input of (height, width), everything open."""
    height, width = conv_output_size(conv, size)
    return conv.weight.numel() * height * width


class Macs(Resource):
    """Multiply-adds."""

    name = "macs"

    def layer(self, layer: Any, shape: Sequence[int]) -> int:
        if isinstance(layer, nn.Conv2d):
            return conv_macs(layer, shape[2:])
        return layer.weight.numel() * math.prod(shape[1:-1])

    def conv(
        self, conv: nn.Conv2d, shape: Sequence[int], before: Mask | None, after: Mask | None
    ) -> Tensor | float:
        return conv_macs(conv, shape[2:]) * open_pairs(conv, before, after)

    def gate(self, gates: Gate, site: GateSite, shape: torch.Size) -> int:
        return gates.macs(site, shape)

    def dense(self, model: nn.Module, shape: Sequence[int]) -> int:
        return dense_macs(model, shape)


def dense_macs(model: nn.Module, input_shape: Sequence[int]) -> int:
    """MACs per sample of a model with its gates taken off, for inputs of shape (N, C, H, W).

    Counted once per input size on a copy that holds no data (meta tensors), so it costs no arithmetic.
    """
    return ungated(model, input_shape).macs
