"""Freezes a network into a plan, the one file that the engine runs with neither Python nor torch.

trace.py takes the model apart, fuse.py joins what is one step, emit.py lays it out, plan.py writes bytes;
for int8 ranges.py looks at how large activations get.
"""

from .freeze import freeze
from .ir import FreezeError

__all__ = ["FreezeError", "freeze"]
