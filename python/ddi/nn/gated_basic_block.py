"""The basic residual block (two convolutions), gated by layer and by interior channel.

y = keep ? act(keep_scale * F(x; mask) + shortcut(x)) : x, with F = bn2(conv2(mask * act(bn1(conv1(x))))). One
mask saves on both sides: the closed channels are conv1's outputs, never computed, and conv2's inputs, never
read. On a CPU the usual block is one operator; elsewhere, and for other shapes of block, it is two, for which
the kept samples of a batch are gathered and scattered back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from ddi_kernels import gated_basic_block, gather_samples, scatter_samples

from ..cost import conv_macs, conv_output_size
from ..decision import Decision
from ..gates import GateSite
from ..record import current_pass
from .layer_skip import mix_kept
from .prepared import PreparedConv, PreparedModule, runs_sparse

__all__ = ["GatedBasicBlock"]


@dataclass(frozen=True)
class _Prepared:
    conv1: PreparedConv
    conv2: PreparedConv
    shortcut: PreparedConv | None
    fused: bool  # one operator can run the block


def _is_plain(conv: nn.Conv2d, kernel: int, stride: Any) -> bool:
    """Whether a convolution is as gated_basic_block has it."""
    size, pad = (kernel, kernel), (kernel // 2, kernel // 2)
    geometry = (conv.kernel_size, conv.padding, conv.dilation, conv.groups, conv.stride)
    return geometry == (size, pad, (1, 1), 1, stride) and conv.padding_mode == "zeros"


def _conv_bn(shortcut: nn.Module | None) -> tuple[nn.Conv2d, nn.BatchNorm2d] | None:
    """The projection shortcut's two layers, if it is the usual Sequential(conv, bn)."""
    if isinstance(shortcut, nn.Sequential) and len(shortcut) == 2:
        conv, bn = shortcut
        if isinstance(conv, nn.Conv2d) and isinstance(bn, nn.BatchNorm2d):
            return conv, bn
    return None


class GatedBasicBlock(PreparedModule):
    """Drop-in for a ResNet basic block; shares its layers, so state_dict keys do not change.

    Args:
        block: a module with conv1, bn1, conv2, bn2, downsample (None or a module), ReLU in between
            (torchvision's BasicBlock, or this package's).
        name: module path of the block, for records.

    Inside a converted model the gates decide. Elsewhere pass the decision:
        >>> block = GatedBasicBlock(BasicBlock(16, 16)).eval()
        >>> y = block(torch.randn(2, 16, 8, 8), ddi.Decision(keep=torch.tensor([True, False])))
    """

    conv1: nn.Conv2d
    bn1: nn.BatchNorm2d
    conv2: nn.Conv2d
    bn2: nn.BatchNorm2d
    downsample: nn.Module | None

    def __init__(self, block: Any, name: str = "block") -> None:
        super().__init__()
        self.conv1, self.bn1 = block.conv1, block.bn1
        self.conv2, self.bn2 = block.conv2, block.bn2
        self.downsample = block.downsample
        self.site = GateSite(
            name=name.replace(".", "_"),
            in_channels=self.conv1.in_channels,
            interior=(self.conv1.out_channels,),
            skippable=self.downsample is None,
        )
        # For revert_, outside the module tree: its layers are this block's own.
        self.__dict__["original"] = block
        self.train(block.training)

    def _sources(self) -> tuple[Tensor | None, ...]:
        convs = (self.conv1.weight, self.conv2.weight)
        return (
            *convs,
            self.bn1.weight,
            self.bn2.weight,
            self.bn1.running_var,
            self.bn2.running_var,
        )

    def _prepare(self) -> _Prepared:
        projection = _conv_bn(self.downsample)
        stride = self.conv1.stride
        fused = _is_plain(self.conv1, 3, stride) and stride[0] == stride[1]
        fused = fused and _is_plain(self.conv2, 3, (1, 1))
        if projection is not None:
            fused = fused and _is_plain(projection[0], 1, stride)
        else:
            fused = fused and self.downsample is None
        return _Prepared(
            PreparedConv.of(self.conv1, self.bn1),
            PreparedConv.of(self.conv2, self.bn2),
            None if projection is None else PreparedConv.of(*projection),
            fused,
        )

    def forward(self, x: Tensor, decision: Decision | None = None) -> Tensor:
        """x: float[N, C_in, H, W] -> float[N, C, H', W']; decision None asks the model's gates."""
        if decision is None:
            decision = current_pass(self.site.name).decide(self, x)
        if runs_sparse(x, self, decision):
            return self._forward_sparse(x, decision)
        return self._forward_dense(x, decision)

    def _forward_dense(self, x: Tensor, decision: Decision) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        for mask in decision.masks:
            y = y * mask.weights(y.shape[1]).to(y.dtype)[:, :, None, None]
        y = self.bn2(self.conv2(y))
        if decision.keep_scale is not None:
            y = y * decision.keep_scale[:, None, None, None]
        shortcut = x if self.downsample is None else self.downsample(x)
        return mix_kept(F.relu(y + shortcut), x, decision)

    def _forward_sparse(self, x: Tensor, decision: Decision) -> Tensor:
        if x.is_cpu and x.shape[0] == 1 and decision.keep is not None and not decision.keep.item():
            return x  # what an operator would have to copy
        if x.is_cpu and self.prepared().fused:
            return self._run_fused(x, decision)
        if decision.keep is None:
            return self._run(x, decision)
        index = decision.keep.nonzero().flatten()
        if index.numel() == 0:
            return x
        if index.numel() == x.shape[0]:
            return self._run(x, decision)
        rows = self._run(gather_samples(x, index), decision.select(index))
        return scatter_samples(x, rows, index)

    def _run_fused(self, x: Tensor, decision: Decision) -> Tensor:
        """All samples through one operator, which copies the skipped ones."""
        prepared = self.prepared()
        conv1, conv2, shortcut = prepared.conv1, prepared.conv2, prepared.shortcut
        mask = decision.masks[0] if decision.masks else None
        y, _ = gated_basic_block(
            x,
            conv1.weight,
            conv1.bias,
            conv2.weight,
            conv2.bias,
            packed1=conv1.packed,
            packed2=conv2.packed,
            shortcut_weight=None if shortcut is None else shortcut.weight,
            shortcut_bias=None if shortcut is None else shortcut.bias,
            shortcut_packed=None if shortcut is None else shortcut.packed,
            keep=decision.keep,
            keep_scale=decision.keep_scale,
            mask=None if mask is None else mask.open,
            mask_scale=None if mask is None else mask.scale,
            group_size=1 if mask is None else mask.group_size,
            stride=self.conv1.stride[0],
        )
        return y

    def _run(self, x: Tensor, decision: Decision) -> Tensor:
        """The kept samples through both convolutions, closed channels skipped."""
        prepared = self.prepared()
        mask = decision.masks[0] if decision.masks else None
        open, group_size = (None, 1) if mask is None else (mask.open, mask.group_size)
        h = prepared.conv1(
            x,
            out_mask=open,
            scale=None if mask is None else mask.scale,
            out_group_size=group_size,
            activation="relu",
        )
        if prepared.shortcut is not None:
            shortcut = prepared.shortcut(x)
        else:
            shortcut = x if self.downsample is None else self.downsample(x)
        keep_scale = decision.keep_scale
        return prepared.conv2(
            h,
            in_mask=open,
            in_group_size=group_size,
            scale=None if keep_scale is None else keep_scale[:, None],
            out_group_size=1 if keep_scale is None else self.conv2.out_channels,
            residual=shortcut,
            activation="relu",
        )

    def _conv_macs(self, shape: torch.Size) -> tuple[int, int]:
        """MACs per sample of the two gated convolutions, and of the shortcut."""
        size = conv_output_size(self.conv1, shape[2:])
        gated = conv_macs(self.conv1, shape[2:]) + conv_macs(self.conv2, size)
        projection = _conv_bn(self.downsample)
        return gated, 0 if projection is None else conv_macs(projection[0], shape[2:])

    def dense_macs(self, shape: torch.Size) -> int:
        return sum(self._conv_macs(shape))

    def macs(self, shape: torch.Size, decision: Decision) -> Tensor:
        gated, shortcut = self._conv_macs(shape)
        channels = self.conv1.out_channels
        if decision.masks:
            cost = decision.masks[0].open_channels(channels) * (gated / channels)
        else:
            cost = self.conv1.weight.new_full((shape[0],), gated)
        keep = decision.keep_weights()
        return (cost if keep is None else cost * keep) + shortcut
