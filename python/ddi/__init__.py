"""Dual dynamic inference: per-sample channel gating and layer skipping whose savings are wall-clock.

The framework: gates, gated modules, backbones, conversion, training, freezing. Operators: `ddi_kernels`.
"""

from ddi_kernels.prices.energy_counters import measure_joules

from . import data
from .backbones import create_model, list_models, register_model
from .blocks.gated_basic_block import GatedBasicBlock
from .blocks.gated_bottleneck import GatedBottleneck
from .blocks.gated_dense_layer import GatedDenseLayer
from .blocks.gated_transition import GatedNorm, GatedTransition
from .budgets.budget import Answer, Budget, budget
from .budgets.calibrate import calibrate
from .checkpoint import load_model, save_model
from .convert import convert_, revert_
from .cost import count_macs, energy, latency
from .cost.record import record
from .freeze import FreezeError, freeze
from .gates import DDIConfig, DenseConvConfig, DenseDDIConfig
from .gating.decision import Decision, Mask
from .nn import ExitHead, GatedConv2d, LayerSkip, prepare_
from .nn.losses import branch_loss, budget_loss, distillation_loss
from .runtime.frozen import FrozenModel
from .runtime.graphed import GraphedModel
from .version import __version__

__all__ = [
    "Answer",
    "Budget",
    "DDIConfig",
    "Decision",
    "DenseConvConfig",
    "DenseDDIConfig",
    "ExitHead",
    "FreezeError",
    "FrozenModel",
    "GatedBasicBlock",
    "GatedBottleneck",
    "GatedConv2d",
    "GatedDenseLayer",
    "GatedNorm",
    "GatedTransition",
    "GraphedModel",
    "LayerSkip",
    "Mask",
    "__version__",
    "branch_loss",
    "budget",
    "budget_loss",
    "calibrate",
    "convert_",
    "count_macs",
    "create_model",
    "data",
    "distillation_loss",
    "energy",
    "freeze",
    "latency",
    "list_models",
    "load_model",
    "measure_joules",
    "prepare_",
    "record",
    "register_model",
    "revert_",
    "save_model",
]
