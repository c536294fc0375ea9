"""Drop-in modules that run gated: same parameters and state_dict keys as before. And frozen models."""

from .exit_head import ExitHead
from .frozen import FrozenModel
from .gated_basic_block import GatedBasicBlock
from .gated_bottleneck import GatedBottleneck
from .gated_conv2d import GatedConv2d
from .gated_dense_layer import GatedDenseLayer
from .gated_transition import GatedNorm, GatedTransition
from .layer_skip import LayerSkip
from .prepared import prepare_

__all__ = [
    "ExitHead",
    "FrozenModel",
    "GatedBasicBlock",
    "GatedBottleneck",
    "GatedConv2d",
    "GatedDenseLayer",
    "GatedNorm",
    "GatedTransition",
    "LayerSkip",
    "prepare_",
]
