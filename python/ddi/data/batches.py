"""Images in whatever form they come, as checked batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor

__all__ = ["image_batches"]

_BATCH = 32  # of a tensor of images


def image_batches(
    images: Tensor | Iterable[Any], argument: str, shape: tuple[int, ...] | None = None
) -> Iterator[Tensor]:
    """Batches of images, checked; empty ones are left out.

    Args:
        images: float[N, C, H, W], or batches of such, or pairs of a batch and anything, as a DataLoader has.
        argument: what the caller calls them, as "freeze: calibration", for messages.
        shape: (C, H, W) that they must have; None takes that of the first batch.

    Raises:
        ValueError: images are none, have another shape, are not finite, or there is not a single one.
    """

    def expected() -> str:
        return f"images float[N, {', '.join(map(str, shape or 'CHW'))}]"

    if isinstance(images, Tensor):
        images = images.split(_BATCH) if images.dim() else ()
    if not isinstance(images, Iterable):
        raise ValueError(f"{argument} is {type(images).__name__}, expected {expected()}")
    seen = 0
    for item in images:
        batch = item[0] if isinstance(item, list | tuple) and item else item
        if not isinstance(batch, Tensor):
            raise ValueError(f"{argument} yields {type(batch).__name__}, expected {expected()}")
        known = batch.dim() == 4 and tuple(batch.shape[1:]) == (shape or batch.shape[1:])
        if not known or not batch.is_floating_point():
            got = f"{str(batch.dtype).removeprefix('torch.')}{list(batch.shape)}"
            raise ValueError(f"{argument} yields {got}, expected {expected()}")
        if not batch.isfinite().all():
            raise ValueError(f"{argument} has images with NaN or infinity, expected finite ones")
        shape = tuple(batch.shape[1:])
        seen += len(batch)
        if len(batch) > 0:
            yield batch
    if seen == 0:
        raise ValueError(f"{argument} has no images, expected at least one")
