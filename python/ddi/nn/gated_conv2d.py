"""nn.Conv2d whose input and output channels are gated per sample. See :func:`ddi_kernels.gated_conv2d`."""

from __future__ import annotations

from typing import Any, Literal

import torch.nn as nn
from torch import Tensor

from ddi_kernels import gated_conv2d

from ..gating.decision import Decision, Mask
from .prepared import PreparedConv, PreparedModule, conv_geometry, runs_sparse

__all__ = ["GatedConv2d"]


class GatedConv2d(nn.Conv2d, PreparedModule):
    """Drop-in for nn.Conv2d (same arguments and state_dict) that takes masks.

    Without masks it is the plain convolution. At inference closed channels are neither read nor computed;
    in training it computes densely and multiplies, so that every gate gets a gradient.

    Example:
        >>> conv = GatedConv2d(16, 32, 3, padding=1).eval()
        >>> open = torch.rand(4, 32) > 0.5
        >>> y = conv(torch.randn(4, 16, 8, 8), out_mask=ddi.Mask(open))
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.padding_mode != "zeros" or isinstance(self.padding, str):
            raise ValueError(
                "GatedConv2d: only zero padding given as numbers is supported, got "
                f"padding={self.padding!r}, padding_mode={self.padding_mode!r}"
            )
        self._forget()

    @classmethod
    def from_conv(cls, conv: nn.Conv2d) -> GatedConv2d:
        """A GatedConv2d that shares the parameters of conv."""
        gated = cls(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,
            conv.stride,
            conv.padding,
            conv.dilation,
            conv.groups,
            conv.bias is not None,
            conv.padding_mode,
            device="meta",
        )
        gated.weight, gated.bias = conv.weight, conv.bias
        return gated.train(conv.training)

    def _prepare(self) -> PreparedConv:
        return PreparedConv.of(self)

    def _sources(self) -> tuple[Tensor | None, ...]:
        return self.weight, self.bias

    def forward(
        self,
        x: Tensor,
        in_mask: Mask | None = None,
        out_mask: Mask | None = None,
        residual: Tensor | None = None,
        activation: Literal["relu"] | None = None,
    ) -> Tensor:
        """x: float[N, C_in, H, W] -> float[N, C_out, H', W'].

        Args:
            in_mask: open input channels; its scale multiplies them.
            out_mask: open output channels; its scale multiplies them.
            residual: float[N, C_out, H', W'] added before the activation.
            activation: None or "relu".
        """
        masks = tuple(mask for mask in (in_mask, out_mask) if mask is not None)
        if not runs_sparse(x, self, Decision(masks=masks)):
            return self._forward_dense(x, in_mask, out_mask, residual, activation)
        if in_mask is not None and in_mask.scale is not None:
            x = in_mask.apply(x)
        return self.prepared()(
            x,
            in_mask=None if in_mask is None else in_mask.open,
            out_mask=None if out_mask is None else out_mask.open,
            scale=None if out_mask is None else out_mask.scale,
            residual=residual,
            activation=activation,
            in_group_size=1 if in_mask is None else in_mask.group_size,
            out_group_size=1 if out_mask is None else out_mask.group_size,
        )

    def _forward_dense(
        self,
        x: Tensor,
        in_mask: Mask | None,
        out_mask: Mask | None,
        residual: Tensor | None,
        activation: Literal["relu"] | None,
    ) -> Tensor:
        if in_mask is not None:
            x = in_mask.apply(x)
        # The straight-through bits go in as per-channel scale: no mask, so closed channels get a gradient.
        return gated_conv2d(
            x,
            self.weight,
            self.bias,
            scale=None if out_mask is None else out_mask.weights(self.out_channels),
            residual=residual,
            activation=activation,
            **conv_geometry(self),
        )
