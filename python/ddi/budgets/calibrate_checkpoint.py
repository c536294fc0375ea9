"""Moves the threshold in a checkpoint so that its network costs what is wanted on validation images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..checkpoint import CheckpointError, load_model, read_tensors, write_tensors
from ..data import get_dataset
from ..gates import config_to_dict
from ..gating.stand_in import is_converted
from .calibrate import calibrate

__all__ = ["calibrate_checkpoint"]

_BATCH = 256


def calibrate_checkpoint(
    checkpoint: str | Path,
    out: str | Path,
    mac_ratio: float,
    tolerance: float = 0.01,
    dataset: str | None = None,
    data_root: str | None = None,
    images: int | None = None,
) -> dict[str, Any]:
    """Writes a checkpoint of the same network with another threshold, whole or not at all.

    Args:
        checkpoint: a file of `ddi.save_model` or `ddi train`, of a gated network.
        out: the file to write; its folder is made where there is none.
        mac_ratio, tolerance: see `ddi.calibrate`.
        dataset: name of that whose validation split is looked at; None for what the network was trained on,
            else scene_digits.
        data_root: folder of CIFAR.
        images: the first so many of the split; None for all.

    Returns:
        JSON-ready: checkpoint, out, dataset, images, wanted, threshold_before, and the fields of
        `Calibration`. `tables.format_calibration` is its text.

    Raises:
        FileNotFoundError, CheckpointError: the checkpoint is missing, damaged, or of a plain network.
        ValueError: a bad argument, or no threshold reaches mac_ratio.

    Example:
        >>> calibrate_checkpoint("net.safetensors", "cheaper.safetensors", 4)["threshold"]
    """
    model, meta = load_model(checkpoint)
    if not is_converted(model):
        raise CheckpointError(f"calibrate: {checkpoint} holds a plain network, expected a gated one")
    gates: Any = model.ddi_gates
    before = gates.config.threshold
    data = get_dataset(dataset or meta.get("dataset", "scene_digits"), data_root)
    split = data.validation().images
    count = len(split) if images is None else images
    if not 1 <= count <= len(split):
        raise ValueError(
            f"calibrate: images is {count}; allowed: 1 to {len(split)}, the validation images of {data.name}"
        )
    batches = (data.normalize(part) for part in split[:count].split(_BATCH))
    found = calibrate(model, batches, mac_ratio, tolerance, progress=True)
    tensors, info = read_tensors(checkpoint)
    write_tensors(out, tensors, {**info, "gates": config_to_dict(gates.config)})
    return {
        "checkpoint": str(checkpoint),
        "out": str(out),
        "dataset": data.name,
        "images": count,
        "wanted": mac_ratio,
        "threshold_before": before,
        "threshold": found.threshold,
        "mac_ratio": found.mac_ratio,
        "evaluations": [list(one) for one in found.evaluations],
    }
