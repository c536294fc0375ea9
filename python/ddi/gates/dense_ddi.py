"""The gates of Dual Dynamic Inference on DenseNets (arXiv 1907.04523): the new channels of each layer.

Pooled means of the concatenation -> Linear -> ReLU -> Linear to one bit per group of the layer's new
channels, hard at the threshold, straight-through. The means come for nothing: the producer of a channel pools
it, once. A layer whose bits are all closed is skipped, so that no layer gate is needed; the first layer of
each dense block has no gate.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from ddi_kernels import gate_plan

from ..gating.decision import Decision, Mask
from ..gating.site import GateLayer, GateSite
from .threshold import (
    ChannelGate,
    ThresholdGates,
    check_sizes,
    full_precision,
    gate_input,
    require_kind,
    threshold_logit,
)

__all__ = ["DenseDDIConfig", "DenseDDIGates", "DenseGates"]


@dataclass(frozen=True)
class DenseDDIConfig:
    """Dual dynamic gating of a DenseNet.

    Args:
        group_size: channels per gate bit; 1 is the paper's, 4 to 16 suits hardware.
        hidden: width of a gate's hidden layer.
        threshold: a gate opens where its probability exceeds this.
        open_bias: initial logit of every gate; positive, so that a converted model starts fully open.

    Example:
        >>> model = ddi.create_model("densenet121", gates=ddi.DenseDDIConfig(group_size=4))
    """

    group_size: int = 1
    hidden: int = 16
    threshold: float = 0.5
    open_bias: float = 2.0

    def __post_init__(self) -> None:
        check_sizes(self, ("group_size", "hidden"))
        threshold_logit("DenseDDIConfig", self.threshold)

    def build(self, sites: list[GateSite]) -> DenseDDIGates:
        """The gate networks for the given layers of dense blocks."""
        require_kind(self, sites, "dense_layer", "DDIConfig")
        return DenseDDIGates(self, sites)


class DenseGates(ThresholdGates):
    """Base of all gates of one DenseNet: a network for each layer, from what it reads to one logit per group.

    See :class:`ddi.gates.Gate` for the methods a layer calls.
    """

    def __init__(self, config: Any, sites: list[GateSite]) -> None:
        super().__init__(config)
        self.channel = nn.ModuleDict({site.name: self._gate(site) for site in sites if site.interior})

    def _groups(self, site: GateSite) -> int:
        return math.ceil(site.interior[0] / self.config.group_size)

    def _gate(self, site: GateSite) -> nn.Module:
        raise NotImplementedError

    def _logits(self, gate: Any, x: Tensor) -> Tensor:
        """float[N, groups] of one layer's gate, in its own precision."""
        raise NotImplementedError

    def _open(self, gate: Any, x: Tensor) -> Tensor:
        """bool[N, groups] of one layer's gate, at inference."""
        return self._logits(gate, x) > self.threshold_logit

    def _layers(self, gate: Any, shape: torch.Size) -> list[GateLayer]:
        """Of one layer's gate, see `layers`."""
        raise NotImplementedError

    def initial_state(self, x: Tensor) -> tuple[()]:
        return ()

    def decide(self, site: GateSite, x: Tensor, state: tuple[()]) -> tuple[Decision, tuple[()]]:
        if not site.interior:
            return Decision(), state
        gate, soft = self.channel[site.name], None
        with full_precision(x):
            if torch.is_grad_enabled():
                logits = self._logits(gate, x)
                opened, soft = logits > self.threshold_logit, torch.sigmoid(logits)
            else:
                opened = self._open(gate, x)
        return Decision(masks=(Mask(opened, group_size=self.config.group_size, soft=soft),)), state

    def layers(self, site: GateSite, shape: torch.Size) -> list[GateLayer]:
        return self._layers(self.channel[site.name], shape) if site.interior else []


class DenseDDIGates(DenseGates):
    """The gates of :class:`DenseDDIConfig`."""

    reads: ClassVar = "means"

    def _gate(self, site: GateSite) -> ChannelGate:
        return ChannelGate(site.in_channels, self.config.hidden, self._groups(site), self.config.open_bias)

    def _logits(self, gate: Any, x: Tensor) -> Tensor:
        return gate.expand(F.relu(gate.reduce(gate_input(x, gate.reduce.weight))))

    def _open(self, gate: Any, x: Tensor) -> Tensor:
        means = gate_input(x, gate.reduce.weight)
        none = means.new_empty((means.shape[0], 0))
        reduce, expand = gate.reduce, gate.expand
        weights = (reduce.weight, reduce.bias, expand.weight, expand.bias)
        return gate_plan(means, none, none, channel=weights, threshold=self.threshold_logit)[1]

    def _layers(self, gate: Any, shape: torch.Size) -> list[GateLayer]:
        return [GateLayer.of_matrix(w) for w in gate.parameters() if w.dim() == 2]
