"""What reads the concatenation of a gated dense block: the transition behind it, or the last norm.

Both leave out the channels that the block's layers closed, after the BN-ReLU: a zero channel before it would
become relu(shift). Behind a transition's convolution all channels are open again.
"""

from __future__ import annotations

from typing import Any

import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from ..gating.decision import Decision
from ..gating.gate_pass import current_pass
from ..gating.site import GateSite
from ..gating.stand_in import stand_in
from ..nn.prepared import PreparedConv, runs_sparse
from .gated_block import GatedBlock, GatedConv

__all__ = ["GatedNorm", "GatedTransition"]


class GatedTransition(GatedBlock):
    """Drop-in for a DenseNet's transition, avg_pool(conv(in_mask * relu(norm(x)))); shares its layers.

    Args:
        transition: a module with norm and conv, such as this package's Transition.
        name: module path of the transition, for records.

    Inside a converted model the layers of the block before it decide. Elsewhere pass the decision:
        >>> transition = GatedTransition(Transition(8)).eval()
        >>> open = torch.rand(2, 8) > 0.5
        >>> y = transition(torch.randn(2, 8, 4, 4), ddi.Decision(in_mask=ddi.Mask(open)))
    """

    layers = ("norm", "conv")
    norm: nn.BatchNorm2d
    conv: nn.Conv2d

    def __init__(self, transition: Any, name: str = "transition") -> None:
        site = GateSite(name.replace(".", "_"), transition.conv.in_channels, (), False, "dense_layer")
        super().__init__(transition, site)

    def chain(self, decision: Decision) -> list[GatedConv]:
        return [(self.conv, decision.in_mask, None)]

    def _sources(self) -> tuple[Tensor | None, ...]:
        return (self.conv.weight,)

    def _prepare(self) -> PreparedConv:
        return PreparedConv.of(self.conv)

    def forward(self, x: Tensor, decision: Decision | None = None) -> Tensor:
        """x: float[N, C, H, W] -> float[N, C // 2, H // 2, W // 2]."""
        if decision is None:
            gate_pass = current_pass(self.site.name)
            decision, _ = gate_pass.decide_dense(self, x)
            gate_pass.concatenation = None
        elif decision.masks or decision.keep is not None:
            raise ValueError("GatedTransition: got masks or keep, expected a Decision with in_mask alone")
        mask, h = decision.in_mask, F.relu(self.norm(x))
        if mask is None:
            y = self.conv(h)
        elif runs_sparse(x, self, decision):
            y = self.prepared()(h, in_mask=mask.open, in_group_size=mask.group_size)
        else:
            y = self.conv(mask.apply(h))
        return F.avg_pool2d(y, 2)


class GatedNorm(nn.BatchNorm2d):
    """Drop-in for the BatchNorm behind the last dense block: in_mask * norm(x), for a ReLU to follow.

    Args:
        norm: the BatchNorm2d to stand for, kept for revert_.
        name: module path of the norm, for messages.
    """

    def __init__(self, norm: nn.BatchNorm2d, name: str = "norm") -> None:
        options = (norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
        super().__init__(norm.num_features, *options, device="meta")
        # The very tables of the original, so that .to() and load_state_dict() reach both.
        self._parameters, self._buffers = norm._parameters, norm._buffers
        stand_in(self, norm)
        self.name = name
        self.train(norm.training)

    def forward(self, x: Tensor, decision: Decision | None = None) -> Tensor:
        """x: float[N, C, H, W] -> the same shape; decision None takes the running mask."""
        if decision is None:
            gate_pass = current_pass(self.name)
            concatenation, gate_pass.concatenation = gate_pass.concatenation, None
            mask = None if concatenation is None else concatenation.mask
        else:
            mask = decision.in_mask
        y = super().forward(x)
        return y if mask is None else mask.apply(y)
