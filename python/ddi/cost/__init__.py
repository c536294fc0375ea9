"""What networks cost, dense and gated, per sample and per block: multiply-adds, milliseconds, joules.

A `Resource` prices layers, blocks under a decision, and gates; all else is made of these: `Record.cost`,
`ddi.budget_loss`, `ddi.count_macs`, `ddi.latency`, `ddi.energy`. docs/resources.md has the definitions.
"""

from __future__ import annotations

from ..gating.geometry import conv_output_size
from ..gating.site import GatedBlock
from .count import Energy, Latency, MacCount, count_macs, energy, latency
from .energy import Joules, conv_work
from .latency import Milliseconds, block_ms
from .macs import Macs, conv_macs, dense_macs
from .named import RESOURCES, as_resource
from .resource import Cost, Resource, open_pairs, open_share

__all__ = [
    "RESOURCES",
    "Cost",
    "Energy",
    "GatedBlock",
    "Joules",
    "Latency",
    "MacCount",
    "Macs",
    "Milliseconds",
    "Resource",
    "as_resource",
    "block_ms",
    "conv_macs",
    "conv_output_size",
    "conv_work",
    "count_macs",
    "dense_macs",
    "energy",
    "latency",
    "open_pairs",
    "open_share",
]
