"""The gated forms of backbones' blocks: same parameters and state_dict keys as before."""

from .gated_basic_block import GatedBasicBlock
from .gated_bottleneck import GatedBottleneck
from .gated_dense_layer import GatedDenseLayer
from .gated_transition import GatedNorm, GatedTransition

__all__ = ["GatedBasicBlock", "GatedBottleneck", "GatedDenseLayer", "GatedNorm", "GatedTransition"]
