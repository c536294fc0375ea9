"""Gate bits drawn for benchmarks, as the engine takes them: uint8[N, decision_bytes].

A gate network runs in full wherever it is timed; only its bits are overridden, so that a network without
training can be measured at any share of open layers and channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

import ddi
from ddi_kernels.engine import Engine

__all__ = ["draw_decisions", "find_keep", "forced", "mean_macs"]

_STEPS = 10  # of the bisection


def draw_decisions(
    engine: Engine, count: int, keep_layers: float, keep_channels: float, seed: int = 0
) -> Tensor:
    """uint8[count, decision_bytes]: each layer and each channel group open with these probabilities.

    What a seed draws is monotone in both. A block without a layer bit, as in a DenseNet, closes all of its
    channels where its layer is closed.
    """
    generator = torch.Generator().manual_seed(seed)
    parts = []
    for gate in engine.gates:
        layer = torch.rand(count, 1, generator=generator) < keep_layers
        groups = torch.rand(count, sum(gate["groups"]), generator=generator) < keep_channels
        shortcut = not gate["keep"] and gate["layer"]
        parts += [layer] if gate["keep"] else []
        parts.append(groups & layer if shortcut else groups)
    return torch.cat(parts, dim=1).to(torch.uint8)


def mean_macs(engine: Engine, images: Sequence[Tensor], decisions: Tensor) -> float:
    """Of a sample, over single images [1, C, H, W] in rotation, one for each row of decisions."""
    total = 0
    for i, row in enumerate(decisions.split(1)):
        total += engine(images[i % len(images)], decisions=row, report=True)[1].macs[0]
    return total / len(decisions)


def find_keep(mac_ratio: Callable[[float], float], target: float) -> float:
    """The share of open gates at which mac_ratio, which falls with it, is nearest to the target."""
    low, high = 0.0, 1.0
    for _ in range(_STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if mac_ratio(middle) > target else (low, middle)
    return (low + high) / 2


@contextmanager
def forced(model: Any, bits: Tensor) -> Iterator[None]:
    """Inside, the gates of a PyTorch model decide what `bits` says, pass after pass."""
    gates, at = model.ddi_gates, 0
    decide = type(gates).decide

    def next_bits(count: int) -> Tensor:
        nonlocal at
        at = at % bits.shape[1] + count
        return bits[:, at - count : at].bool()

    def forced_decide(site: Any, x: Tensor, state: Any) -> tuple[ddi.Decision, Any]:
        decision, state = decide(gates, site, x, state)
        keep = None if decision.keep is None else next_bits(1)[:, 0]
        masks = tuple(replace(m, open=next_bits(m.open.shape[1])) for m in decision.masks)
        return replace(decision, keep=keep, masks=masks), state

    gates.decide = forced_decide
    try:
        yield
    finally:
        del gates.decide
