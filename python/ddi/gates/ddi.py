"""The gates of Dual Dynamic Inference on ResNets (arXiv 1907.04523): layers and channels, per sample.

Layer gate, as in the authors' line of work (SkipNet, arXiv 1711.09485): pooled input -> Linear(C, 10), one
per width -> one LSTM(10, 10) shared by all blocks -> Linear(10, 1) -> sigmoid, hard at the threshold. That
last layer is each block's own: with one for all, a penalty moves the gates of all blocks together, and chance
decides which one falls first. The channel gate reads the same pooled input and the LSTM's new state:
Linear -> ReLU -> Linear to one bit per channel group of the block's interior. Both cost some thousand
multiply-adds a block, against millions in the block.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn as nn
from torch import Tensor

from ddi_kernels import gate_logits, gate_plan

from ..gating.decision import Decision, Mask
from ..gating.site import GateLayer, GateSite
from .threshold import (
    ChannelGate,
    ThresholdGates,
    check_sizes,
    full_precision,
    gate_input,
    open_linear,
    require_kind,
    threshold_logit,
)

__all__ = ["DDIConfig", "DDIGates"]

LSTMState = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class DDIConfig:
    """Dual dynamic gating: which grains to gate, and how finely.

    Args:
        layers: gate whole blocks.
        channels: gate the interior channels of blocks.
        group_size: channels per gate bit; 1 is the paper's, 8 to 64 suits wide layers and hardware.
        hidden: width of the LSTM and of its input.
        channel_hidden: width of the channel gate's hidden layer.
        threshold: a gate opens where its probability exceeds this.
        open_bias: initial logit of every gate; positive, so that a converted model starts fully open.
    """

    layers: bool = True
    channels: bool = True
    group_size: int = 1
    hidden: int = 10
    channel_hidden: int = 16
    threshold: float = 0.5
    open_bias: float = 2.0

    def __post_init__(self) -> None:
        if not (self.layers or self.channels):
            raise ValueError("DDIConfig: layers and channels are both False; turn one on")
        check_sizes(self, ("group_size", "hidden", "channel_hidden"))
        threshold_logit("DDIConfig", self.threshold)

    def build(self, sites: list[GateSite]) -> DDIGates:
        """The gate networks for the given residual blocks."""
        require_kind(self, sites, "residual_block", "DenseDDIConfig")
        return DDIGates(self, sites)


class DDIGates(ThresholdGates):
    """All gates of one backbone. See :class:`ddi.gates.Gate` for the methods a block calls."""

    reads: ClassVar = "either"

    def __init__(self, config: DDIConfig, sites: list[GateSite]) -> None:
        super().__init__(config)
        widths = sorted({site.in_channels for site in sites})
        self.project = nn.ModuleDict({str(c): nn.Linear(c, config.hidden) for c in widths})
        self.lstm = nn.LSTMCell(config.hidden, config.hidden)
        if config.layers:
            gates = {s.name: open_linear(config.hidden, 1, config.open_bias) for s in sites if s.skippable}
            self.layer = nn.ModuleDict(gates)
        if config.channels:
            self.channel = nn.ModuleDict({site.name: self._channel_gate(site) for site in sites})
        self._lists: dict[str, dict[str, list[Tensor]]] = {}

    def _channel_gate(self, site: GateSite) -> ChannelGate:
        config = self.config
        groups = sum(math.ceil(c / config.group_size) for c in site.interior)
        return ChannelGate(site.in_channels + config.hidden, config.channel_hidden, groups, config.open_bias)

    def initial_state(self, x: Tensor) -> LSTMState:
        zeros = self.lstm.weight_hh.new_zeros(x.shape[0], self.config.hidden)
        return zeros, zeros

    def weights(self, site: GateSite) -> dict[str, list[Tensor]]:
        """A site's weights as `gate_plan` takes them; looked up once, since module attributes are slow."""
        if site.name not in self._lists:
            lists: dict[str, list[Tensor]] = {"layer": [], "channel": []}
            lists["lstm"] = [*self.project[str(site.in_channels)].parameters(), *self.lstm.parameters()]
            if self.config.layers and site.skippable:
                lists["layer"] = list(self.layer[site.name].parameters())
            if self.config.channels:
                lists["channel"] = list(self.channel[site.name].parameters())
            self._lists[site.name] = lists
        return self._lists[site.name]

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        self._lists.clear()
        return super()._apply(*args, **kwargs)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._lists.clear()
        super()._load_from_state_dict(*args, **kwargs)

    def decide(self, site: GateSite, x: Tensor, state: LSTMState) -> tuple[Decision, LSTMState]:
        with full_precision(x):
            return self._decide(site, gate_input(x, self.lstm.weight_hh), state)

    def _decide(self, site: GateSite, x: Tensor, state: LSTMState) -> tuple[Decision, LSTMState]:
        weights = self.weights(site)
        skippable = bool(weights["layer"])
        h, c = state
        if not torch.is_grad_enabled():
            keep, open, h, c = gate_plan(x, h, c, **weights, threshold=self.threshold_logit)
            return Decision(keep=keep if skippable else None, masks=self._masks(site, open, None)), (h, c)
        logit, logits, h, c = gate_logits(x, h, c, **weights)
        keep_bits = None if logit is None else logit > self.threshold_logit
        keep_soft = None if logit is None else torch.sigmoid(logit)
        masks: tuple[Mask, ...] = ()
        if logits is not None:
            masks = self._masks(site, logits > self.threshold_logit, torch.sigmoid(logits))
        return Decision(keep=keep_bits, masks=masks, keep_soft=keep_soft), (h, c)

    def _masks(self, site: GateSite, bits: Tensor, soft: Tensor | None) -> tuple[Mask, ...]:
        """Cuts the bits of all interior tensors of a block apart."""
        size = self.config.group_size
        if not self.config.channels:
            return ()
        if len(site.interior) == 1:
            return (Mask(bits, group_size=size, soft=soft),)
        counts = [math.ceil(channels / size) for channels in site.interior]
        softs = [None] * len(counts) if soft is None else soft.split(counts, dim=1)
        parts = zip(bits.split(counts, dim=1), softs, strict=True)
        return tuple(Mask(open, group_size=size, soft=part) for open, part in parts)

    def layers(self, site: GateSite, shape: torch.Size) -> list[GateLayer]:
        lists = self.weights(site).values()
        return [GateLayer.of_matrix(w) for weights in lists for w in weights if w.dim() == 2]
