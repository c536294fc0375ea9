"""How large the inputs of a model's convolutions get: what the scales of an int8 plan come from.

The largest absolute value over the calibration images, nothing cut off.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor

from ddi_kernels import backend

from ..data.batches import image_batches
from ..eval_mode import eval_mode
from .trace import AllExits

__all__ = ["input_ranges"]


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

    convs = [(path, module) for path, module in model.named_modules() if isinstance(module, nn.Conv2d)]
    hooks = [conv.register_forward_pre_hook(watch(path), with_kwargs=True) for path, conv in convs]
    run = AllExits(model)
    batches = image_batches(calibration, "freeze: calibration", tuple(example.shape[1:]))
    try:
        # The reference, in which gated blocks call their convolutions.
        with eval_mode(run), backend("reference"), torch.no_grad():
            for images in batches:
                run(images.to(example.device, torch.float32))
    finally:
        for hook in hooks:
            hook.remove()
    return ranges
