"""Training: the three-stage recipe of Dual Dynamic Inference (arXiv 1907.04523), resumable to the step.

`backbone` trains the plain network; `gates` freezes it and trains the gates to full execution; `joint` trains
everything to the target, of MACs, milliseconds or joules. Under `torchrun` several processes train one model,
see `train`.
"""

from .config import TrainConfig
from .train import train
from .trainer import Interrupted

__all__ = ["Interrupted", "TrainConfig", "train"]
