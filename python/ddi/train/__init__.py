"""Training: the three-stage recipe of Dual Dynamic Inference (arXiv 1907.04523), resumable to the step.

`backbone` trains the plain network; `gates` freezes it and trains the gates to full execution; `joint` trains
everything to the target, of MACs, milliseconds or joules.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .config import TrainConfig
from .trainer import Interrupted, Trainer

__all__ = ["Interrupted", "TrainConfig", "train"]


def train(
    config: TrainConfig, out: str | Path, resume: bool = False, progress_bar: bool = True
) -> dict[str, Any]:
    """Runs a training to its end into a folder.

    Args:
        config: what to train.
        out: folder for `model.safetensors`, `history.json`, and the state of an unfinished run.
        resume: continue the unfinished run in `out` (same config) if there is one.

    Returns:
        The last entry of the history: stage, epoch, validation_accuracy, mac_ratio, resource_share
            (of the dense cost in the config's resource).

    Raises:
        Interrupted: SIGINT came; the state is saved.

    Example:
        >>> train(TrainConfig(model="cifar_resnet8", dataset="digits32", joint_epochs=0), "out/digits")
    """
    trainer = Trainer(config, out)
    if resume and trainer._state_path.exists():
        trainer.resume()
    return trainer.run(progress_bar)
