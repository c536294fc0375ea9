"""The gates of Dual Dynamic Inference on ResNets (arXiv 1907.04523): layers and channels, per sample.

Layer gate, as in the authors' line of work (SkipNet, arXiv 1711.09485): pooled input -> Linear(C, 10), one
per width -> one LSTM(10, 10) shared by all blocks -> Linear(10, 1) -> sigmoid, hard at the threshold. The
channel gate reads the same pooled input and the LSTM's new state: Linear -> ReLU -> Linear to one bit per
channel group of the block's interior. Both cost some thousand multiply-adds a block, against millions in
the block.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from ..decision import Decision, Mask
from . import GateSite

__all__ = ["ChannelGate", "DDIConfig", "DDIGates"]

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
        for name in ("group_size", "hidden", "channel_hidden"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"DDIConfig: {name} must be a positive int, got {value!r}")
        if not 0.0 < self.threshold < 1.0:
            raise ValueError(f"DDIConfig: threshold must lie in (0, 1), got {self.threshold!r}")

    def build(self, sites: list[GateSite]) -> DDIGates:
        """The gate networks for the given blocks."""
        return DDIGates(self, sites)


class ChannelGate(nn.Module):
    """Pooled input and LSTM state float[N, in_features] -> logits float[N, groups]."""

    def __init__(self, in_features: int, hidden: int, groups: int, open_bias: float) -> None:
        super().__init__()
        self.reduce = nn.Linear(in_features, hidden)
        self.expand = nn.Linear(hidden, groups)
        # Open for every input at first: the bias outweighs the weighted part.
        nn.init.normal_(self.expand.weight, std=0.01)
        nn.init.constant_(self.expand.bias, open_bias)

    def forward(self, features: Tensor) -> Tensor:
        return self.expand(F.relu(self.reduce(features)))


class DDIGates(nn.Module):
    """All gates of one backbone. See :class:`ddi.gates.Gate` for the three methods a block calls."""

    def __init__(self, config: DDIConfig, sites: list[GateSite]) -> None:
        super().__init__()
        self.config = config
        widths = sorted({site.in_channels for site in sites})
        self.project = nn.ModuleDict({str(c): nn.Linear(c, config.hidden) for c in widths})
        self.lstm = nn.LSTMCell(config.hidden, config.hidden)
        if config.layers:
            self.layer = nn.Linear(config.hidden, 1)
            nn.init.normal_(self.layer.weight, std=0.01)
            nn.init.constant_(self.layer.bias, config.open_bias)
        if config.channels:
            self.channel = nn.ModuleDict({site.name: self._channel_gate(site) for site in sites})
        self.set_threshold(config.threshold)

    def _channel_gate(self, site: GateSite) -> ChannelGate:
        config = self.config
        groups = sum(math.ceil(c / config.group_size) for c in site.interior)
        return ChannelGate(site.in_channels + config.hidden, config.channel_hidden, groups, config.open_bias)

    def set_threshold(self, threshold: float) -> None:
        """Moves the threshold of every gate; lower opens more. Not part of the state_dict."""
        if not 0.0 < threshold < 1.0:
            raise ValueError(f"set_threshold: threshold must lie in (0, 1), got {threshold!r}")
        # p > threshold is logit > this, without a sigmoid at inference.
        self._threshold_logit = math.log(threshold / (1.0 - threshold))

    def initial_state(self, pooled: Tensor) -> LSTMState:
        zeros = pooled.new_zeros(pooled.shape[0], self.config.hidden)
        return zeros, zeros

    def _bits(self, logits: Tensor) -> tuple[Tensor, Tensor | None]:
        soft = torch.sigmoid(logits) if torch.is_grad_enabled() else None
        return logits > self._threshold_logit, soft

    def decide(self, site: GateSite, pooled: Tensor, state: LSTMState) -> tuple[Decision, LSTMState]:
        state = self.lstm(self.project[str(site.in_channels)](pooled), state)
        keep, keep_soft = None, None
        if self.config.layers and site.skippable:
            keep, keep_soft = self._bits(self.layer(state[0]).squeeze(1))
        masks: tuple[Mask, ...] = ()
        if self.config.channels:
            masks = self._masks(site, torch.cat((pooled, state[0]), dim=1))
        return Decision(keep=keep, masks=masks, keep_soft=keep_soft), state

    def _masks(self, site: GateSite, features: Tensor) -> tuple[Mask, ...]:
        size = self.config.group_size
        bits, soft = self._bits(self.channel[site.name](features))
        masks, start = [], 0
        for channels in site.interior:
            stop = start + math.ceil(channels / size)
            part = None if soft is None else soft[:, start:stop]
            masks.append(Mask(bits[:, start:stop], group_size=size, soft=part))
            start = stop
        return tuple(masks)

    def macs(self, site: GateSite) -> int:
        hidden = self.config.hidden
        total = site.in_channels * hidden + 8 * hidden * hidden
        if self.config.layers and site.skippable:
            total += hidden
        if self.config.channels:
            total += sum(w.numel() for w in self.channel[site.name].parameters() if w.dim() == 2)
        return total

    def extra_repr(self) -> str:
        return f"{self.config}"
