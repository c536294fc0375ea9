"""One training, from its config to its end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .config import TrainConfig
from .distributed import world
from .trainer import Trainer

__all__ = ["train"]


def train(
    config: TrainConfig,
    out: str | Path,
    resume: bool = False,
    progress_bar: bool = True,
    tensorboard: bool = False,
) -> dict[str, Any]:
    """Runs a training to its end into a folder.

    In processes that `torchrun` has started, or that have made a process group, all train the same model:
    `batch_size` is that of all together, and the images and the sign of the budget's penalty do not depend on
    their number. Each one's own images give the statistics of its BatchNorms in training, and the factors
    that equalise the losses of branch classifiers; running statistics are those of rank 0. Rank 0 validates
    and writes; `out` must be a folder that all see. SIGINT in one stops all after the same step.

    Args:
        config: what to train.
        out: folder for `model.safetensors`, `history.jsonl` (a line an epoch), and the state of an unfinished
            run.
        resume: continue the unfinished run in `out` (same config) if there is one; the number of processes
            may be another.
        progress_bar: show a bar, on a terminal only.
        tensorboard: write the history and what each block does to the folder `tensorboard` in `out`.

    Returns:
        The last line of the history, in all processes: stage, epoch; on its training steps loss, task_loss,
        penalty (their difference), mac_share, seconds, images_per_second, and the last of lr_network and
        lr_gates; validation_accuracy, mac_ratio, resource_share (of the dense cost in the config's resource)
        and exit_accuracy.

    Raises:
        Interrupted: SIGINT came; the state is saved.
        ImportError: tensorboard is missing.
        ValueError: batch_size is larger than an epoch, or does not suit the number of processes.

    Example:
        >>> train(TrainConfig(model="cifar_resnet8", dataset="digits32", joint_epochs=0), "out/digits")
    """
    with world(config.device) as processes:
        trainer = Trainer(config, out, processes)
        if resume and trainer._state_path.exists():
            trainer.resume()
        return trainer.run(progress_bar, tensorboard)
