"""What all gates share that open where a probability exceeds a threshold: base, layers, checks."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor

from ..gating.concatenation import channel_means
from ..gating.site import GateLayer, GateSite

__all__ = [
    "ChannelGate",
    "ThresholdGates",
    "check_sizes",
    "full_precision",
    "gate_input",
    "open_linear",
    "require_kind",
    "threshold_logit",
]


def require_kind(config: Any, sites: list[GateSite], kind: str, other: str) -> None:
    """Raises ValueError, naming the `other` config, unless all sites are of the kind that config gates."""
    for site in sites:
        if site.kind != kind:
            name = type(config).__name__
            raise ValueError(f"{name}: gates a {kind}, but {site.name!r} is a {site.kind}; use ddi.{other}")


def check_sizes(config: Any, names: tuple[str, ...]) -> None:
    """Raises ValueError unless these fields of a gate config are positive ints."""
    for name in names:
        value = getattr(config, name)
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{type(config).__name__}: {name} must be a positive int, got {value!r}")


def threshold_logit(caller: str, threshold: float) -> float:
    """p > threshold is logit > this, without a sigmoid at inference."""
    if not 0.0 < threshold < 1.0:
        raise ValueError(f"{caller}: threshold must lie in (0, 1), got {threshold!r}")
    return math.log(threshold / (1.0 - threshold))


def gate_input(x: Tensor, weight: Tensor) -> Tensor:
    """What a gate reads of x: x itself, or its means over the pixels where its dtype is not the gates' own.

    Under autocast features come in half precision, but gates compare with a threshold and stay as they are.
    """
    if x.dtype == weight.dtype:
        return x
    return (x if x.dim() == 2 else channel_means(x)).to(weight.dtype)


def full_precision(x: Tensor) -> AbstractContextManager[Any]:
    """Turns autocast off on the device of x."""
    return nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False)


class ThresholdGates(nn.Module):
    """Base of gates that open where their probability exceeds the one threshold of their config."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config

    @property
    def threshold_logit(self) -> float:
        return threshold_logit(type(self.config).__name__, self.config.threshold)

    def set_threshold(self, threshold: float) -> None:
        """Moves the threshold of every gate; lower opens more.

        It is the config's from then on, so that checkpoints and frozen plans keep it; state_dicts do not.

        Raises:
            ValueError: not in (0, 1).
        """
        self.config = replace(self.config, threshold=threshold)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        # model.bfloat16() and model.half() leave the gates as they are: they compare with a threshold.
        def moved(t: Tensor) -> Tensor:
            other = fn(t)
            half = other.dtype in (torch.bfloat16, torch.float16)
            return t.to(other.device) if half and other.dtype != t.dtype else other

        return super()._apply(moved, recurse)

    def layers(self, site: GateSite, shape: torch.Size) -> list[GateLayer]:
        """See :class:`ddi.gates.Gate`."""
        raise NotImplementedError

    def macs(self, site: GateSite, shape: torch.Size) -> int:
        """See :class:`ddi.gates.Gate`."""
        return sum(layer.macs for layer in self.layers(site, shape))

    def extra_repr(self) -> str:
        return f"{self.config}"


def open_linear(in_features: int, out_features: int, open_bias: float) -> nn.Linear:
    """A gate's last layer, open for every input at first: the bias outweighs the weighted part."""
    layer = nn.Linear(in_features, out_features)
    nn.init.normal_(layer.weight, std=0.01)
    nn.init.constant_(layer.bias, open_bias)
    return layer


class ChannelGate(nn.Module):
    """Weights of Linear -> ReLU -> Linear, from what a gate sees to one logit per channel group."""

    def __init__(self, in_features: int, hidden: int, groups: int, open_bias: float) -> None:
        super().__init__()
        self.reduce = nn.Linear(in_features, hidden)
        self.expand = open_linear(hidden, groups, open_bias)
