"""Gate networks, one kind a file.

A gate reads the input of a block and answers with a :class:`ddi.Decision`. Adding a gate: one file
with a config dataclass whose `build(sites)` makes the network, and one line below.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, Protocol

import torch
import torch.nn as nn
from torch import Tensor

from ..concatenation import channel_means
from ..cost.shapes import conv_output_size
from ..decision import Decision

__all__ = [
    "DDIConfig",
    "DenseConvConfig",
    "DenseDDIConfig",
    "Gate",
    "GateConfig",
    "GateLayer",
    "GateSite",
    "config_from_dict",
    "config_to_dict",
    "full_precision",
    "gate_kind",
    "gate_input",
    "require_kind",
]


@dataclass(frozen=True)
class GateSite:
    """One place where a gate decides: a block of the backbone.

    Args:
        name: the block's module path with dots replaced by "_".
        in_channels: channels of the block's input, which the gate sees.
        interior: channels of each tensor that can be gated: the interior ones of a residual block, the new
            channels of a dense layer. Empty where channels are not decided on.
        skippable: whether the block keeps its input's shape, so that its shortcut can stand for it.
        kind: "residual_block", or "dense_layer" for all that reads the concatenation of a dense block.
    """

    name: str
    in_channels: int
    interior: tuple[int, ...]
    skippable: bool
    kind: Literal["residual_block", "dense_layer"] = "residual_block"


def require_kind(config: Any, sites: list[GateSite], kind: str, other: str) -> None:
    """Raises ValueError, naming the `other` config, unless all sites are of the kind that config gates."""
    for site in sites:
        if site.kind != kind:
            name = type(config).__name__
            raise ValueError(f"{name}: gates a {kind}, but {site.name!r} is a {site.kind}; use ddi.{other}")


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


@dataclass(frozen=True)
class GateLayer:
    """A linear layer or a convolution that a gate runs on one sample.

    Args:
        weight: float[outputs, inputs], or a kernel.
        positions: output pixels at which the kernel is applied; 1 for a linear layer.
        inputs, outputs: elements that it reads and writes.
    """

    weight: Tensor
    positions: int
    inputs: int
    outputs: int

    @classmethod
    def of_matrix(cls, weight: Tensor) -> GateLayer:
        return cls(weight, 1, weight.shape[1], weight.shape[0])

    @classmethod
    def of_conv(cls, conv: nn.Conv2d, size: Sequence[int]) -> GateLayer:
        """On a map of (height, width)."""
        positions = math.prod(conv_output_size(conv, size))
        return cls(conv.weight, positions, conv.in_channels * math.prod(size), conv.out_channels * positions)

    @property
    def macs(self) -> int:
        return self.weight.numel() * self.positions


class Gate(Protocol):
    """The gate networks of one model, one state per forward pass (nothing is kept between passes).

    Attributes:
        reads: what `decide` takes of a block's input, in which closed channels are 0: its "features",
            float[N, in_channels, H, W], the "means" of them over the pixels, float[N, in_channels], or
            "either". The means of a dense layer's input come for nothing, each channel pooled by its
            producer; so do those of a residual block's on a GPU, behind another one.
    """

    reads: Literal["features", "means", "either"]

    def initial_state(self, x: Tensor) -> Any:
        """The state before the first block of a pass whose input is x: float[N, C, H, W]."""

    def decide(self, site: GateSite, x: Tensor, state: Any) -> tuple[Decision, Any]:
        """The decision for one block whose input the gates see as x, and the next state."""

    def layers(self, site: GateSite, shape: torch.Size) -> list[GateLayer]:
        """What `decide` runs on one sample, for a block's input of `shape`, (N, C, H, W)."""

    def macs(self, site: GateSite, shape: torch.Size) -> int:
        """Multiply-adds of all these layers."""


class GateConfig(Protocol):
    """A frozen dataclass that describes gates and builds them."""

    def build(self, sites: list[GateSite]) -> Any:
        """The nn.Module that implements Gate for these sites."""


from .ddi import DDIConfig  # noqa: E402  (the gate files import GateSite from here)
from .dense_conv import DenseConvConfig  # noqa: E402
from .dense_ddi import DenseDDIConfig  # noqa: E402

_CONFIGS: dict[str, Any] = {"ddi": DDIConfig, "dense_conv": DenseConvConfig, "dense_ddi": DenseDDIConfig}


def gate_kind(config: Any) -> str:
    """The name by which checkpoints know a gate config, as "ddi".

    Raises:
        ValueError: it is none of this package.
    """
    for name, cls in _CONFIGS.items():
        if type(config) is cls:
            return name
    raise ValueError(f"gate config: {type(config).__name__} is none of the kinds {sorted(_CONFIGS)}")


def config_to_dict(config: Any) -> dict[str, Any]:
    """A JSON-ready dict of a gate config; `config_from_dict` reverses it."""
    return {"kind": gate_kind(config), **asdict(config)}


def config_from_dict(data: dict[str, Any]) -> Any:
    """The gate config that `config_to_dict` wrote.

    Raises:
        ValueError: unknown kind or key, naming the allowed ones.
    """
    values = dict(data)
    kind = values.pop("kind", None)
    if kind not in _CONFIGS:
        raise ValueError(f"gate config: unknown kind {kind!r}; known kinds: {sorted(_CONFIGS)}")
    allowed = {field.name for field in fields(_CONFIGS[kind])}
    if unknown := sorted(set(values) - allowed):
        raise ValueError(f"gate config {kind!r}: unknown keys {unknown}; allowed: {sorted(allowed)}")
    return _CONFIGS[kind](**values)
