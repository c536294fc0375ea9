"""Joules of networks by an energy model (ddi_kernels/prices/energy.py), per sample and per block.

Work is counted in multiply-adds and in bytes: of weights, each used one once a sample; of activations, each
open one once when it is written and once for every layer that reads it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn as nn
from torch import Tensor

from ddi_kernels.prices.energy import ELEMENT_BYTES, HOROWITZ_45NM, EnergyModel

from ..gating.decision import Mask
from ..gating.geometry import conv_output_size
from ..gating.site import Gate, GateSite
from .macs import conv_macs
from .resource import Resource, open_pairs, open_share

__all__ = ["Joules", "Work", "conv_work"]

_DTYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16", torch.int8: "int8"}


class Work(NamedTuple):
    """What a layer does for one sample: numbers, or float[N] and differentiable in training."""

    macs: Any
    weight_bytes: Any
    activation_bytes: Any


def conv_work(
    conv: nn.Conv2d,
    size: Sequence[int],
    before: Mask | None = None,
    after: Mask | None = None,
    dtype: str = "fp32",
) -> Work:
    """Work of a convolution on an input of (height, width) under the masks on its inputs and outputs.

    With a share a of the inputs and b of the outputs open: multiply-adds and weights a * b, activations a of
    the input and b of the output. In a grouped convolution, whose groups are open to different degrees, a * b
    is the share of its own pairs of channels.
    """
    pairs, width = open_pairs(conv, before, after), ELEMENT_BYTES[dtype]
    inputs = open_share(before, conv.in_channels) * (conv.in_channels * math.prod(size))
    outputs = open_share(after, conv.out_channels) * (
        conv.out_channels * math.prod(conv_output_size(conv, size))
    )
    return Work(
        pairs * conv_macs(conv, size), pairs * (conv.weight.numel() * width), (inputs + outputs) * width
    )


def _linear_work(weight: Tensor, rows: int, dtype: str) -> Work:
    """Of float[outputs, inputs], on so many rows of inputs."""
    width = ELEMENT_BYTES[dtype]
    return Work(weight.numel() * rows, weight.numel() * width, sum(weight.shape) * rows * width)


class Joules(Resource):
    """Joules of a sample by an energy model.

    Convolutions and linear layers count, gates among them; norms, activations, poolings and additions do not,
    as they do not in MACs.

    Args:
        model: prices of arithmetic and bytes.
        dtype: "fp32", "bf16", "fp16" or "int8", what the network is to run in; default: each layer's own.
            Gates stay in theirs, as they do in frozen networks.

    Raises:
        ValueError: model knows no such dtype.
    """

    name = "joules"

    def __init__(self, model: EnergyModel = HOROWITZ_45NM, dtype: str | None = None) -> None:
        if dtype is not None:
            model.coefficients(dtype)
        self.model, self.dtype = model, dtype

    def layer(self, layer: Any, shape: Sequence[int]) -> float:
        dtype = self._dtype(layer.weight)
        if isinstance(layer, nn.Conv2d):
            work = conv_work(layer, shape[2:], dtype=dtype)
        else:
            work = _linear_work(layer.weight, math.prod(shape[1:-1]), dtype)
        return self.model.joules(*work, dtype)

    def conv(
        self, conv: nn.Conv2d, shape: Sequence[int], before: Mask | None, after: Mask | None
    ) -> Tensor | float:
        dtype = self._dtype(conv.weight)
        return self.model.joules(*conv_work(conv, shape[2:], before, after, dtype), dtype)

    def gate(self, gates: Gate, site: GateSite, shape: torch.Size) -> float:
        total = 0.0
        for layer in gates.layers(site, shape):
            dtype = _dtype_name(layer.weight)
            width = ELEMENT_BYTES[dtype]
            moved = layer.weight.numel() * width, (layer.inputs + layer.outputs) * width
            total += self.model.joules(layer.macs, *moved, dtype)
        return total

    def _dtype(self, weight: Tensor) -> str:
        return self.dtype or _dtype_name(weight)


def _dtype_name(weight: Tensor) -> str:
    if weight.dtype not in _DTYPES:
        raise ValueError(
            f"energy: got weights of {weight.dtype}, expected one of {', '.join(map(str, _DTYPES))}; name "
            'the one that the network is to run in, e.g. dtype="fp32"'
        )
    return _DTYPES[weight.dtype]
