"""Gate networks, one kind a file.

A gate reads the input of a block and answers with a :class:`ddi.Decision`. Adding a gate: one file
with a config dataclass whose `build(sites)` makes the network, and one line below.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from ..concatenation import channel_means
from ..decision import Decision

__all__ = [
    "DDIConfig",
    "DenseDDIConfig",
    "Gate",
    "GateConfig",
    "GateSite",
    "config_from_dict",
    "config_to_dict",
    "full_precision",
    "gate_input",
    "require_kind",
]


@dataclass(frozen=True)
class GateSite:
    """One place where a gate decides: a block of the backbone.

    Args:
        name: the block's module path with dots replaced by "_".
        in_channels: channels of the block's input, which the gate sees pooled.
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


def full_precision(x: Tensor) -> torch.autocast:
    """Turns autocast off on the device of x."""
    return torch.autocast(x.device.type, enabled=False)


class Gate(Protocol):
    """The gate networks of one model, one state per forward pass (nothing is kept between passes)."""

    def initial_state(self, x: Tensor) -> Any:
        """The state before the first block of a pass whose input is x: float[N, C, H, W]."""

    def decide(self, site: GateSite, x: Tensor, state: Any) -> tuple[Decision, Any]:
        """The decision for one block, and the next state.

        x is the block's input float[N, in_channels, H, W]; of a dense layer it is the means over the pixels,
        float[N, in_channels], 0 for closed channels.
        """

    def macs(self, site: GateSite) -> int:
        """Multiply-adds that `decide` spends on one sample."""

    def matrices(self, site: GateSite) -> list[Tensor]:
        """float[outputs, inputs]: weights of the linear layers that `decide` runs on one sample."""


class GateConfig(Protocol):
    """A frozen dataclass that describes gates and builds them."""

    def build(self, sites: list[GateSite]) -> Any:
        """The nn.Module that implements Gate for these sites."""


from .ddi import DDIConfig  # noqa: E402  (the gate files import GateSite from here)
from .dense_ddi import DenseDDIConfig  # noqa: E402

_CONFIGS: dict[str, Any] = {"ddi": DDIConfig, "dense_ddi": DenseDDIConfig}


def config_to_dict(config: Any) -> dict[str, Any]:
    """A JSON-ready dict of a gate config; `config_from_dict` reverses it."""
    kind = next(name for name, cls in _CONFIGS.items() if type(config) is cls)
    return {"kind": kind, **asdict(config)}


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
