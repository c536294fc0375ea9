"""Gate networks, one kind a file.

A gate reads the input of a block and answers with a :class:`ddi.Decision`. Adding a gate: one file
with a config dataclass whose `build(sites)` makes the network, and one line in registry.py.
"""

from ..gating.site import Gate, GateConfig, GateLayer, GateSite
from .ddi import DDIConfig
from .dense_conv import DenseConvConfig
from .dense_ddi import DenseDDIConfig
from .registry import config_from_dict, config_to_dict, gate_kind
from .threshold import full_precision, gate_input, require_kind

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
    "gate_input",
    "gate_kind",
    "require_kind",
]
