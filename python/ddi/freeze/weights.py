"""Convolutions as words of a plan: geometry, weights and bias, and where they run in int8 also scales."""

from __future__ import annotations

import torch
from torch import Tensor

from ddi_kernels import quantize_weight

from .ir import Conv, FreezeError
from .plan import PlanWriter

__all__ = ["ConvWords"]

_MOST_PRODUCTS = 2**17 - 1  # of int8, whose sum surely fits in int32
_SMALLEST = 2.0**-126


class ConvWords:
    """Writes the convolutions of a plan.

    Args:
        plan: takes the weights.
        ranges: the largest absolute value that each convolution reads, by its path; in a plan of int8.
    """

    def __init__(self, plan: PlanWriter, ranges: dict[str, float]) -> None:
        self._plan = plan
        self._ranges = ranges

    def scale(self, conv: Conv) -> float | None:
        """What one step of a convolution's int8 input is worth; None: it stays floating-point."""
        if conv.name not in self._ranges or conv.groups != 1 or conv.weight[0].numel() > _MOST_PRODUCTS:
            return None
        scale = self._ranges[conv.name] / 127
        return scale if scale >= _SMALLEST else 1.0

    def block_scales(self, convs: list[Conv], shortcut: Conv | None) -> list[float] | None:
        """The scales of a block's branch; the shortcut reads what the first convolution does."""
        found = [self.scale(conv) for conv in [*convs, *([] if shortcut is None else [shortcut])]]
        scales = [scale for scale in found if scale is not None]
        return scales[: len(convs)] if len(scales) == len(found) else None

    def words(self, conv: Conv, scale: float | None = None) -> list[int]:
        """A convolution, of int8 if it has a scale."""
        co, _, kh, kw = conv.weight.shape
        words = [co, kh, kw, *conv.stride, *conv.padding, *conv.dilation, conv.groups]
        if scale is not None:
            weight, weight_scale = quantize_weight(conv.weight)
            words += [self._plan.constant(weight), self.floats(conv.bias)]
            x_scale = torch.tensor([scale])
            return [*words, self.floats(weight_scale * x_scale), self.floats(x_scale)]
        if self._plan.dtype == torch.bfloat16 and conv.groups > 1:
            raise FreezeError(f"freeze: {conv.name} has groups, which the engine does not run in bfloat16")
        dtype = torch.float32 if self._plan.dtype == torch.int8 else self._plan.dtype
        return [*words, self._plan.constant(conv.weight.to(dtype)), self.floats(conv.bias)]

    def floats(self, tensor: Tensor | None) -> int:
        """The number of a float32 constant."""
        return self._plan.constant(None if tensor is None else tensor.float())
