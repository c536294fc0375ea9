"""The concatenation that a dense block grows: which of its channels are open, and their means.

Every layer of the block appends its new channels. Their mask is needed by all that read the concatenation
later, and their means by the gates of the following layers: each channel is pooled once, by its producer.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .decision import Mask

__all__ = ["Concatenation", "channel_means"]


def channel_means(x: Tensor) -> Tensor:
    """float[N, C]: means of x over the pixels, as the operators pool: never below float32.

    Gates compare what they see with a threshold, which half precision would blur.
    """
    return x.mean((2, 3), dtype=torch.float64 if x.dtype == torch.float64 else torch.float32)


@dataclass(frozen=True)
class Concatenation:
    """What a forward pass keeps of a dense block while it runs.

    Args:
        pooled: float[N, C], means over the pixels, 0 for closed channels.
        mask: of all C channels, group size 1; None while nothing can be closed.
    """

    pooled: Tensor
    mask: Mask | None = None

    @classmethod
    def of(cls, x: Tensor) -> Concatenation:
        """The input of a dense block, float[N, C, H, W], which is open."""
        return cls(channel_means(x))

    def features(self, x: Tensor) -> Tensor:
        """x: float[N, C, H, W], the concatenation itself, with 0 in closed channels whatever they hold."""
        if self.mask is None or self.mask.needs_grad:
            return x  # what is trained holds zeros there, through which the gradient reaches the mask
        return self.mask.apply(x)

    def append(self, pooled: Tensor, mask: Mask | None) -> Concatenation:
        """With the new channels of a layer: their means float[N, K], and their mask or None."""
        means = torch.cat((self.pooled, pooled), dim=1)
        if self.mask is None and mask is None:
            return Concatenation(means)
        parts = [_per_channel(self.mask, self.pooled), _per_channel(mask, pooled)]
        open = torch.cat([part.open for part in parts], dim=1)
        if all(part.soft is None for part in parts):
            return Concatenation(means, Mask(open))
        softs = [part.open.to(pooled.dtype) if part.soft is None else part.soft for part in parts]
        return Concatenation(means, Mask(open, soft=torch.cat(softs, dim=1)))


def _per_channel(mask: Mask | None, pooled: Tensor) -> Mask:
    if mask is None:
        return Mask(torch.ones_like(pooled, dtype=torch.bool))
    return mask.per_channel(pooled.shape[1])
