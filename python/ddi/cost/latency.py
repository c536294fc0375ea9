"""Milliseconds of networks by a measured table (ddi_kernels/prices/latency.py), and of convolutions only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor

from ddi_kernels.prices.latency import ConvShape, Estimate, LatencyTable
from ddi_kernels.prices.tables import pricing_table

from ..gating.decision import Decision, Mask
from ..gating.geometry import conv_output_size
from ..gating.site import Gate, GatedBlock, GateSite
from .macs import conv_macs
from .resource import Resource, open_share

__all__ = ["Milliseconds", "block_ms"]


class Milliseconds(Resource):
    """A sample's part of the milliseconds of a call with N samples, by a latency table.

    Outside gated blocks and without gates convolutions take the dense kernel's time, in gated blocks the
    gated one's: also where `auto` would take the dense one, whose time does not depend on the gates. With all
    open that may be more than the dense network's. Linear layers and gates are not among them.

    Args:
        table: default: the one in force, which must be this device's; see
            `ddi_kernels.prices.tables.pricing_table`.

    Raises:
        ValueError: there is no table of this device; or, when a price is asked for, no row of the weights'
            dtype.
    """

    name = "ms"

    def __init__(self, table: LatencyTable | None = None) -> None:
        self.table = pricing_table(table)

    def layer(self, layer: Any, shape: Sequence[int]) -> float:
        if not isinstance(layer, nn.Conv2d):
            return 0.0
        estimate, factor = self._estimate(layer, shape)
        return estimate.dense_ms * factor

    def conv(
        self, conv: nn.Conv2d, shape: Sequence[int], before: Mask | None, after: Mask | None
    ) -> Tensor | float:
        estimate, factor = self._estimate(conv, shape)
        if before is None and after is None:
            return estimate.plain_ms * factor
        group_size = math.gcd(*(mask.group_size for mask in (before, after) if mask is not None))
        shares = open_share(before, conv.in_channels), open_share(after, conv.out_channels)
        return estimate.gated_ms(*shares, group_size) * factor

    def gate(self, gates: Gate, site: GateSite, shape: torch.Size) -> float:
        return 0.0

    def _estimate(self, conv: nn.Conv2d, shape: Sequence[int]) -> tuple[Estimate, float]:
        """What the table says of a convolution on inputs of `shape`, and the factor to one sample."""
        height, width = conv_output_size(conv, shape[2:])
        dtype = str(conv.weight.dtype).removeprefix("torch.")
        like = ConvShape(
            conv.kernel_size[0],
            conv.stride[0],
            conv.in_channels,
            conv.out_channels,
            height * width,
            shape[0],
            torch.get_num_threads(),
            dtype,
        )
        estimate = self.table.estimate(like)
        if estimate is None:
            raise ValueError(
                f"latency: the table of {self.table.device} ({self.table.isa}) has no row for {dtype} "
                "weights; measure one with: ddi profile"
            )
        # Convolution groups and oblong kernels, which tables do not know, count by their multiply-adds.
        return estimate, conv_macs(conv, shape[2:]) / like.macs


def block_ms(
    block: GatedBlock, shape: Sequence[int], decision: Decision, table: LatencyTable | None = None
) -> Tensor:
    """Milliseconds of a gated block under a decision, differentiable in training.

    The gradient reaches the gates through the straight-through bits, each weighted by the time it decides
    over. `Record.cost("ms")` has those of a whole pass.

    Args:
        block: a gated block, e.g. `ddi.GatedBasicBlock`.
        shape: of its input, (N, C, H, W).
        decision: of its gate.
        table: see `Milliseconds`.

    Returns:
        float32[N], each sample's part of a call with N samples.

    Raises:
        ValueError: see `Milliseconds`.

    Example:
        >>> with ddi.record(model) as rec:
        ...     logits = model(images)
        >>> ms = block_ms(block, shape, rec.passes[0][0].decision).mean()
    """
    return Milliseconds(table).block(block, shape, decision)
