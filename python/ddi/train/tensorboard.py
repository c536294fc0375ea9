"""The history of a run for TensorBoard, and what each block does on the validation images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..evaluate.evaluate import Evaluation

__all__ = ["Board"]


class Board:
    """Writes into the folder `tensorboard` of a run, a step of the plots for each epoch of the whole run.

    Args:
        out: folder of the run.
        epochs: that are behind it; what lies in the folder of later ones is hidden.

    Raises:
        ImportError: tensorboard is missing.
    """

    def __init__(self, out: Path, epochs: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ImportError(
                "train: tensorboard is missing: pip install ddi-kernels[tensorboard], or train without it"
            ) from error
        self._writer: Any = SummaryWriter(str(out / "tensorboard"), purge_step=epochs + 1)

    def write(self, epoch: int, line: dict[str, Any], result: Evaluation) -> None:
        """Writes an epoch of the run, counted from 1 over all stages.

        Args:
            epoch: its number.
            line: of the history; a list's values are numbered from 1.
            result: of its validation: keep/BLOCK is the share of images that run a block, open/BLOCK the
                share of its channels that are open in those.
        """
        for name, value in _scalars(line, result).items():
            self._writer.add_scalar(name, value, epoch)
        self._writer.flush()

    def close(self) -> None:
        """Ends the file."""
        self._writer.close()


def _scalars(line: dict[str, Any], result: Evaluation) -> dict[str, float]:
    found: dict[str, float] = {}
    for name, value in line.items():
        if isinstance(value, list):
            found |= {f"{name}/{number}": one for number, one in enumerate(value, 1)}
        elif name not in ("stage", "epoch"):
            found[name] = value
    keep = dict(zip(result.keep_names, result.keep.double().mean(0).tolist(), strict=True))
    opened = dict(zip(result.block_names, result.open_share.double().mean(0).tolist(), strict=True))
    found |= {f"keep/{name}": share for name, share in keep.items()}
    # A block that was skipped counts as closed in `open_share`, and a block that no image runs has no share.
    return found | {f"open/{n}": s / keep.get(n, 1.0) for n, s in opened.items() if keep.get(n, 1.0) > 0}
