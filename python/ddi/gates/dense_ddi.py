"""The gates of Dual Dynamic Inference on DenseNets (arXiv 1907.04523): the new channels of each layer.

Pooled means of the concatenation -> Linear -> ReLU -> Linear to one bit per group of the layer's new
channels, hard at the threshold, straight-through. The means come for nothing: the producer of a channel pools
it, once. A layer whose bits are all closed is skipped, so that no layer gate is needed; the first layer of
each dense block has no gate.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from ..decision import Decision, Mask
from . import GateSite, full_precision, gate_input, require_kind
from .ddi import ChannelGate, check_sizes, threshold_logit

__all__ = ["DenseDDIConfig", "DenseDDIGates"]


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


class DenseDDIGates(nn.Module):
    """All gates of one DenseNet. See :class:`ddi.gates.Gate` for the methods a layer calls."""

    def __init__(self, config: DenseDDIConfig, sites: list[GateSite]) -> None:
        super().__init__()
        self.config = config
        self.channel = nn.ModuleDict({site.name: self._gate(site) for site in sites if site.interior})
        self.set_threshold(config.threshold)

    def _gate(self, site: GateSite) -> ChannelGate:
        groups = math.ceil(site.interior[0] / self.config.group_size)
        return ChannelGate(site.in_channels, self.config.hidden, groups, self.config.open_bias)

    def set_threshold(self, threshold: float) -> None:
        """Moves the threshold of every gate; lower opens more. Not part of the state_dict."""
        self.threshold_logit = threshold_logit("set_threshold", threshold)

    def initial_state(self, x: Tensor) -> tuple[()]:
        return ()

    def decide(self, site: GateSite, x: Tensor, state: tuple[()]) -> tuple[Decision, tuple[()]]:
        if not site.interior:
            return Decision(), state
        gate: Any = self.channel[site.name]
        with full_precision(x):
            logits = gate.expand(F.relu(gate.reduce(gate_input(x, gate.reduce.weight))))
        soft = torch.sigmoid(logits) if torch.is_grad_enabled() else None
        mask = Mask(logits > self.threshold_logit, group_size=self.config.group_size, soft=soft)
        return Decision(masks=(mask,)), state

    def macs(self, site: GateSite) -> int:
        return sum(matrix.numel() for matrix in self.matrices(site))

    def matrices(self, site: GateSite) -> list[Tensor]:
        if not site.interior:
            return []
        return [w for w in self.channel[site.name].parameters() if w.dim() == 2]

    def extra_repr(self) -> str:
        return f"{self.config}"
