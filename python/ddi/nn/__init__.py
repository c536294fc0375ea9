"""Layers that run gated, the branch classifier, and losses."""

from .exit_head import ExitHead
from .gated_conv2d import GatedConv2d
from .layer_skip import LayerSkip
from .prepared import prepare_

__all__ = ["ExitHead", "GatedConv2d", "LayerSkip", "prepare_"]
