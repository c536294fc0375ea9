"""Multiply-adds of dense and gated networks, per sample and per block.

1 MAC = one multiply and one add = 2 FLOPs. Gates, stem, shortcuts and heads count; normalisation, activations
and pooling do not (the convention of torch.utils.flop_counter, which does the counting).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn as nn
from torch import Tensor

from .resource import Resource, open_pairs, priced
from .shapes import conv_output_size, ungated

if TYPE_CHECKING:
    from ..decision import Mask
    from ..gates import Gate, GateSite

__all__ = ["MacCount", "Macs", "conv_macs", "conv_output_size", "count_macs", "dense_macs"]


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


@torch.no_grad()
def count_macs(model: nn.Module, x: Tensor) -> MacCount:
    """MACs of a model on a batch, dense and at its gates' hard decisions.

    Those of `model(x)`, which runs no branch classifier: what one costs comes on top where it is run.

    Args:
        model: gated or plain; run once in its current mode if gated.
        x: float[N, C, H, W].

    Example:
        >>> ddi.count_macs(ddi.create_model("cifar_resnet20"), torch.randn(1, 3, 32, 32)).dense
        40813184
    """
    cost, blocks = priced(model, x, Macs())
    per_sample = cost.per_sample.double()
    means = {name: part.double().mean().item() for name, part in blocks.items()}
    return MacCount(dense_macs(model, x.shape), per_sample.mean().item(), means, per_sample)
