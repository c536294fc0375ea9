"""The layer of DenseNet-BC, gated by new channel: y = out_mask * conv2(relu(norm2(conv1(h)))).

h = in_mask * relu(norm1(x)) for a concatenation x: a channel that its producer left closed stays closed for
every layer behind it, and the mask acts after the BN-ReLU, since a zero channel before it would become
relu(shift). A sample whose new channels are all closed skips the layer. See
:func:`ddi_kernels.gated_dense_layer`, which it is at inference.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from ddi_kernels import fold_bn, gated_dense_layer

from ..gating.concatenation import channel_means
from ..gating.decision import Decision
from ..gating.gate_pass import current_pass
from ..gating.site import GateSite
from ..nn.prepared import PreparedConv, runs_sparse
from .gated_block import GatedBlock, GatedConv

__all__ = ["GatedDenseLayer"]


@dataclass(frozen=True)
class _Prepared:
    scale1: Tensor
    shift1: Tensor
    conv1: PreparedConv
    conv2: PreparedConv


class GatedDenseLayer(GatedBlock):
    """Drop-in for a layer of a dense block; shares its layers, so state_dict keys do not change.

    Args:
        layer: a module with norm1, conv1 (1x1), norm2, conv2 (3x3), such as this package's DenseLayer.
        name: module path of the layer, for records.
        gated: whether its new channels have a gate. Without one, as in the first layer of each dense block,
            it still leaves out the closed channels of its input.

    Inside a converted model the gates decide. Elsewhere pass the decision:
        >>> layer = GatedDenseLayer(DenseLayer(24, 12)).eval()
        >>> masks = (ddi.Mask(torch.rand(2, 12) > 0.5),)
        >>> y = layer(torch.randn(2, 24, 8, 8), ddi.Decision(masks=masks))
    """

    layers = ("norm1", "conv1", "norm2", "conv2")
    norm1: nn.BatchNorm2d
    conv1: nn.Conv2d
    norm2: nn.BatchNorm2d
    conv2: nn.Conv2d

    def __init__(self, layer: Any, name: str = "layer", gated: bool = True) -> None:
        site = GateSite(
            name=name.replace(".", "_"),
            in_channels=layer.conv1.in_channels,
            interior=(layer.conv2.out_channels,) if gated else (),
            skippable=False,
            kind="dense_layer",
        )
        super().__init__(layer, site)

    def chain(self, decision: Decision) -> list[GatedConv]:
        out_mask = decision.masks[0] if decision.masks else None
        return [(self.conv1, decision.in_mask, None), (self.conv2, None, out_mask)]

    def kept(self, decision: Decision) -> Tensor | None:
        """1 where a new channel is open. Without gradient: bits are paid for by what each of them decides."""
        if not decision.masks:
            return None
        return decision.masks[0].open.any(1).to(torch.get_default_dtype())

    def _sources(self) -> tuple[Tensor | None, ...]:
        norms = (self.norm1, self.norm2)
        stats = [t for norm in norms for t in (norm.weight, norm.running_var)]
        return (self.conv1.weight, self.conv2.weight, *stats)

    def _prepare(self) -> _Prepared:
        # The ReLU between keeps norm1 out of conv1: it stays a factor and an addend of each channel.
        ones = torch.ones_like(self.conv1.weight[0, :, 0, 0])
        scale1, shift1 = fold_bn(ones, None, self.norm1)
        return _Prepared(scale1, shift1, PreparedConv.of(self.conv1, self.norm2), PreparedConv.of(self.conv2))

    def forward(self, x: Tensor, decision: Decision | None = None) -> Tensor:
        """x: float[N, C, H, W] -> new channels float[N, K, H, W]; decision None asks the model's gates."""
        if decision is not None:
            return self._run(x, decision)[0]
        gate_pass = current_pass(self.site.name)
        decision, concatenation = gate_pass.decide_dense(self, x)
        y, pooled = self._run(x, decision)
        mask = decision.masks[0] if decision.masks else None
        gate_pass.concatenation = concatenation.append(pooled, mask)
        return y

    def _run(self, x: Tensor, decision: Decision) -> tuple[Tensor, Tensor]:
        """The new channels and their means float[N, K]."""
        in_mask, out_mask = decision.in_mask, decision.masks[0] if decision.masks else None
        scaled = any(mask is not None and mask.scale is not None for mask in (in_mask, out_mask))
        if scaled or decision.keep is not None or decision.keep_scale is not None:
            raise ValueError(
                "GatedDenseLayer: got a Decision with keep or a scale, expected in_mask and a mask alone: "
                "a sample skips the layer by closing all its new channels"
            )
        if not runs_sparse(x, self, decision):
            h = F.relu(self.norm1(x))
            h = h if in_mask is None else in_mask.apply(h)
            y = self.conv2(F.relu(self.norm2(self.conv1(h))))
            y = y if out_mask is None else out_mask.apply(y)
            return y, channel_means(y)
        prepared: _Prepared = self.prepared()
        return gated_dense_layer(
            x,
            prepared.scale1,
            prepared.shift1,
            prepared.conv1.weight,
            prepared.conv1.bias,
            prepared.conv2.weight,
            prepared.conv2.bias,
            packed1=prepared.conv1.packed,
            packed2=prepared.conv2.packed,
            in_mask=None if in_mask is None else in_mask.per_channel(x.shape[1]).open,
            out_mask=None if out_mask is None else out_mask.open,
            group_size=1 if out_mask is None else out_mask.group_size,
            pool=True,
        )
