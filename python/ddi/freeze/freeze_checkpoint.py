"""Freezes the network of a checkpoint into a plan, calibrated on the checkpoint's data set where int8 asks.

Calibration takes training images: validation images are for choices, test images for results.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..checkpoint import load_model
from ..data import Dataset, get_dataset
from . import freeze

__all__ = ["DTYPES", "FreezeConfig", "freeze_checkpoint"]

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.int8}
CALIBRATE = 256


@dataclass(frozen=True)
class FreezeConfig:
    """How a checkpoint is frozen.

    Args:
        dtype: fp32, bf16 or int8, see `ddi.freeze`.
        size: (height, width) of the images that the plan takes; None for those of the data sets here.
        calibrate: for int8 only, training images of the data set to look at; None for 256.
        dataset: for int8 only, its name; None for what the network was trained on, else scene_digits.
        data_root: for int8 only, folder of CIFAR.
        seed: of the drawing of the training images.
    """

    dtype: str = "fp32"
    size: tuple[int, int] | None = None
    calibrate: int | None = None
    dataset: str | None = None
    data_root: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ValueError(f"freeze: dtype is {self.dtype!r}; allowed: {', '.join(DTYPES)}")
        if self.size is not None and min(self.size) < 1:
            raise ValueError(f"freeze: size is {self.size[0]} x {self.size[1]}; both must be at least 1")
        for name in ("calibrate", "dataset", "data_root"):
            if getattr(self, name) is not None and self.dtype != "int8":
                raise ValueError(
                    f"freeze: {name} is {getattr(self, name)!r}, but {self.dtype} is not calibrated; "
                    f"allowed with dtype int8 only: leave {name} out"
                )


def freeze_checkpoint(
    checkpoint: str | Path, plan: str | Path, config: FreezeConfig | None = None
) -> dict[str, Any]:
    """Writes the network of a checkpoint as a plan, whole or not at all.

    Args:
        checkpoint: a file of `ddi.save_model` or `ddi train`.
        plan: the file to write; its folder is made where there is none.
        config: how.

    Returns:
        JSON-ready: what the plan says of itself (see `ddi.freeze`), checkpoint, plan, input_shape, bytes of
        the file, the settings; for int8 dataset and calibrate are those taken. `tables.format_freeze` is
        its text.

    Raises:
        FileNotFoundError, CheckpointError: the checkpoint is missing or damaged.
        FreezeError: the network has an operation that the engine does not have.
        ValueError: there are fewer training images than asked for, or they have another size.

    Example:
        >>> freeze_checkpoint("net.safetensors", "net.ddi")["dense_macs"]
    """
    config = config or FreezeConfig()
    model, meta = load_model(checkpoint)
    settings = asdict(config)
    images = None
    if config.dtype == "int8":
        settings["dataset"] = config.dataset or meta.get("dataset", "scene_digits")
        data = get_dataset(settings["dataset"], config.data_root)
        images = _calibration(data, config)
        settings["calibrate"] = len(images)
    channels, *size = Dataset.image_shape
    shape = (channels, *(config.size or size))
    found = freeze(model, torch.zeros(1, *shape), plan, DTYPES[config.dtype], images)
    head = {"checkpoint": str(checkpoint), "plan": str(plan), "input_shape": shape}
    return {**head, "bytes": Path(plan).stat().st_size, **found, **settings}


def _calibration(data: Dataset, config: FreezeConfig) -> Tensor:
    """float32[N, C, H, W]: the first images of a training epoch, in which every class comes up."""
    size = data.image_shape[1:]
    if config.size not in (None, size):
        raise ValueError(
            f"freeze: size is {config.size}, but int8 is calibrated on images of {data.name}, which are "
            f"{size}; leave size out, or call ddi.freeze with calibration images of your own"
        )
    images = data.train(config.seed, 0).images
    count = CALIBRATE if config.calibrate is None else config.calibrate
    if not 1 <= count <= len(images):
        raise ValueError(
            f"freeze: calibrate is {count}; allowed: 1 to {len(images)}, the training images of {data.name}"
        )
    return data.normalize(images[:count])
