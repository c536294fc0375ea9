"""What a gate decided: which samples run a block, and which of its channels.

Hard bits (`keep`, `open`) are what inference executes; the soft values beside them carry the gradient in
training (straight-through). All tensors are per sample, so that every sample of a batch takes its own path.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

__all__ = ["Decision", "Mask"]


def _straight_through(hard: Tensor, soft: Tensor | None) -> Tensor:
    """The hard bits as numbers, with the gradient of the soft value (Bengio et al., arXiv 1308.3432)."""
    if soft is None:
        return hard.to(torch.get_default_dtype())
    return hard.to(soft.dtype) + (soft - soft.detach())


@dataclass(frozen=True)
class Mask:
    """Open channel groups of one tensor.

    Args:
        open: bool[N, G], G = ceil(C / group_size); the last group may be short.
        group_size: channels a bit stands for.
        scale: float[N, G] factor on the open channels, or None. Not negative inside a block: training
            multiplies behind the ReLU, for a gradient in closed channels, and inference before it.
        kind: "list" (any subset) or "prefix" (the first groups are open).
        soft: float[N, G] differentiable value behind `open`, or None outside training.
    """

    open: Tensor
    group_size: int = 1
    scale: Tensor | None = None
    kind: str = "list"
    soft: Tensor | None = None

    def weights(self, channels: int) -> Tensor:
        """float[N, channels] to multiply activations by: straight-through bits times scale."""
        value = _straight_through(self.open, self.soft)
        if self.scale is not None:
            value = value * self.scale
        return value.repeat_interleave(self.group_size, dim=1)[:, :channels]

    @property
    def needs_grad(self) -> bool:
        """Whether a gradient has to reach the gates through this mask."""
        return any(value is not None and value.requires_grad for value in (self.soft, self.scale))

    def apply(self, x: Tensor) -> Tensor:
        """x: float[N, C, H, W] times the mask: the dense form of gating, differentiable in the gate.

        Where no gradient is wanted closed channels become 0 whatever they hold, NaN too.
        """
        y = x * self.weights(x.shape[1]).to(x.dtype)[:, :, None, None]
        if self.needs_grad:
            return y
        return torch.where(self.per_channel(x.shape[1]).open[:, :, None, None], y, 0)

    def per_channel(self, channels: int) -> Mask:
        """The same bits without scale, one for each of `channels`."""
        open = self.open.repeat_interleave(self.group_size, dim=1)[:, :channels]
        if self.soft is None:
            return Mask(open)
        return Mask(open, soft=self.soft.repeat_interleave(self.group_size, dim=1)[:, :channels])

    def open_channels(self, channels: int) -> Tensor:
        """float[N]: number of open channels, differentiable in training."""
        value = _straight_through(self.open, self.soft)
        groups = self.open.shape[1]
        last = channels - (groups - 1) * self.group_size
        return value[:, :-1].sum(1) * self.group_size + value[:, -1] * last

    def select(self, index: Tensor) -> Mask:
        """The mask of the samples in index: int64[K]."""
        return replace(
            self,
            open=self.open[index],
            scale=None if self.scale is None else self.scale[index],
            soft=None if self.soft is None else self.soft[index],
        )


@dataclass(frozen=True)
class Decision:
    """What one block does for each sample of the batch.

    Args:
        keep: bool[N], False where the block is skipped; None where it cannot be skipped.
        keep_scale: float[N] factor on the residual branch, or None.
        masks: one Mask for each tensor that the block gates: each interior one of a residual block, the new
            channels of a dense layer.
        keep_soft: float[N] differentiable value behind `keep`, or None outside training.
        in_mask: of the block's input, where earlier blocks closed channels of it (dense layers and what
            reads their concatenation); None: all are open.

    Example:
        >>> d = Decision(keep=torch.tensor([True, False]))
        >>> d.keep_weights()
        tensor([1., 0.])
    """

    keep: Tensor | None = None
    keep_scale: Tensor | None = None
    masks: tuple[Mask, ...] = ()
    keep_soft: Tensor | None = None
    in_mask: Mask | None = None

    @property
    def needs_grad(self) -> bool:
        """Whether a gradient has to reach the gates through this decision."""
        if any(mask is not None and mask.needs_grad for mask in (*self.masks, self.in_mask)):
            return True
        return any(value is not None and value.requires_grad for value in (self.keep_soft, self.keep_scale))

    def keep_weights(self) -> Tensor | None:
        """float[N]: 1 where the block runs, with the soft value's gradient; None if it always runs."""
        return None if self.keep is None else _straight_through(self.keep, self.keep_soft)

    def select(self, index: Tensor) -> Decision:
        """The decision of the samples in index: int64[K]."""
        return Decision(
            keep=None if self.keep is None else self.keep[index],
            keep_scale=None if self.keep_scale is None else self.keep_scale[index],
            masks=tuple(mask.select(index) for mask in self.masks),
            keep_soft=None if self.keep_soft is None else self.keep_soft[index],
            in_mask=None if self.in_mask is None else self.in_mask.select(index),
        )
