"""How large the inputs of a model's convolutions get: what the scales of an int8 plan come from.

The largest absolute value over the calibration images, nothing cut off.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor

from ddi_kernels import backend

from .trace import AllExits

__all__ = ["input_ranges"]

_BATCH = 32  # of a tensor of images


def _batches(calibration: Tensor | Iterable[Any], shape: tuple[int, ...]) -> Iterator[Tensor]:
    expected = f"images float[N, {', '.join(map(str, shape))}]"
    if isinstance(calibration, Tensor):
        calibration = calibration.split(_BATCH) if calibration.dim() else ()
    if not isinstance(calibration, Iterable):
        raise ValueError(f"freeze: calibration is {type(calibration).__name__}, expected {expected}")
    for batch in calibration:
        images = batch[0] if isinstance(batch, list | tuple) and batch else batch
        if not isinstance(images, Tensor):
            raise ValueError(f"freeze: calibration yields {type(images).__name__}, expected {expected}")
        if tuple(images.shape[1:]) != shape or not images.is_floating_point():
            got = f"{str(images.dtype).removeprefix('torch.')}{list(images.shape)}"
            raise ValueError(f"freeze: calibration yields {got}, expected {expected}")
        if not images.isfinite().all():
            raise ValueError("freeze: calibration has images with NaN or infinity, expected finite ones")
        if len(images) > 0:
            yield images


def input_ranges(model: nn.Module, calibration: Tensor | Iterable[Any], example: Tensor) -> dict[str, float]:
    """The largest absolute value that each convolution of a model reads, by the convolution's path.

    Gates decide as they will; a block computes for skipped samples too, so that these count.

    Args:
        model: gated or plain; in eval mode meanwhile.
        calibration: float[N, C, H, W], or batches of such, or (batch, anything).
        example: float32[N, C, H, W]; its image size and device are taken.

    Raises:
        ValueError: the images have another shape, are not finite, or are none; or a convolution's input is
            not finite.
    """
    ranges: dict[str, float] = {}

    def watch(path: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            largest = next(iter((*args, *kwargs.values()))).abs().max().item()
            if not largest < float("inf"):
                raise ValueError(f"freeze: the input of {path} is not finite on calibration's images")
            ranges[path] = max(ranges.get(path, 0.0), largest)

        return hook

    modes = [(module, module.training) for module in model.modules()]
    convs = [(path, module) for path, module in model.named_modules() if isinstance(module, nn.Conv2d)]
    hooks = [conv.register_forward_pre_hook(watch(path), with_kwargs=True) for path, conv in convs]
    run, seen = AllExits(model).eval(), 0
    try:
        with backend("reference"), torch.no_grad():  # in which gated blocks call their convolutions
            for images in _batches(calibration, tuple(example.shape[1:])):
                run(images.to(example.device, torch.float32))
                seen += len(images)
    finally:
        for hook in hooks:
            hook.remove()
        for module, training in modes:
            module.training = training
    if seen == 0:
        raise ValueError("freeze: calibration has no images, expected at least one")
    return ranges
