"""Ways to run a model: from a frozen plan, as a CUDA graph."""

from .frozen import FrozenModel
from .graphed import GraphedModel

__all__ = ["FrozenModel", "GraphedModel"]
