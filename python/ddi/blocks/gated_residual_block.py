"""What the gated residual blocks share: y = keep ? relu(keep_scale * F(x; masks) + shortcut(x)) : x.

F is a chain of convolution and BatchNorm with relu and a mask between two of them. One mask saves on both
sides: closed channels are outputs that are never computed, and inputs that are never read. The usual block is
one operator; other shapes of block are one for each convolution, for which the kept samples of a batch are
gathered and scattered back on a CPU. Elsewhere all samples run: only the device knows how many are kept, and
asking it would stop the queue.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from ddi_kernels import gather_samples, scatter_samples

from ..gating.decision import Decision, Mask
from ..gating.gate_pass import current_pass
from ..gating.site import GateSite
from ..nn.layer_skip import mix_kept
from ..nn.prepared import PreparedConv, runs_sparse
from .gated_block import GatedBlock, GatedConv

__all__ = ["GatedResidualBlock", "PreparedResidual"]


@dataclass(frozen=True)
class PreparedResidual:
    """The folded and packed layers of a residual block."""

    convs: tuple[PreparedConv, ...]
    shortcut: PreparedConv | None
    stride: int
    fused: bool  # one operator can run the block


def _is_plain(conv: nn.Conv2d, kernel: int, stride: tuple[int, ...]) -> bool:
    """Whether a convolution is as the operator of a block has it."""
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


def _hands_on_means(x: Tensor) -> bool:
    """Whether a block pools what it writes for the next one's gates: on a CPU they pool it from the cache."""
    return not x.is_cpu


class GatedResidualBlock(GatedBlock):
    """Base of the two kinds of residual block. Subclasses name their convolutions and their operator."""

    kernels: ClassVar[tuple[int, ...]]  # of the convolutions, as the operator has them
    strided: ClassVar[int]  # the index of the one that takes the block's stride
    mask_names: ClassVar[tuple[tuple[str, str, str], ...]]  # in the operator: mask, scale, group size
    downsample: nn.Module | None

    def __init__(self, block: Any, name: str = "block") -> None:
        interior = [getattr(block, f"conv{i}").out_channels for i in range(1, len(self.kernels))]
        site = GateSite(
            name=name.replace(".", "_"),
            in_channels=block.conv1.in_channels,
            interior=tuple(interior),
            skippable=block.downsample is None,
        )
        super().__init__(block, site)

    def _conv_bns(self) -> list[tuple[nn.Conv2d, nn.BatchNorm2d]]:
        numbers = range(1, len(self.kernels) + 1)
        return [(getattr(self, f"conv{i}"), getattr(self, f"bn{i}")) for i in numbers]

    def chain(self, decision: Decision) -> list[GatedConv]:
        convs = [conv for conv, _ in self._conv_bns()]
        masks: tuple[Mask | None, ...] = decision.masks or (None,) * (len(convs) - 1)
        return list(zip(convs, (None, *masks), (*masks, None), strict=True))

    def shortcut_convs(self) -> list[nn.Conv2d]:
        modules = () if self.downsample is None else self.downsample.modules()
        return [module for module in modules if isinstance(module, nn.Conv2d)]

    def _sources(self) -> tuple[Tensor | None, ...]:
        layers = self._conv_bns()
        return tuple(t for conv, bn in layers for t in (conv.weight, bn.weight, bn.running_var))

    def _prepare(self) -> PreparedResidual:
        layers, projection = self._conv_bns(), _conv_bn(self.downsample)
        stride = layers[self.strided][0].stride
        fused = stride[0] == stride[1]
        for i, (conv, _) in enumerate(layers):
            fused = fused and _is_plain(conv, self.kernels[i], stride if i == self.strided else (1, 1))
        if projection is not None:
            fused = fused and _is_plain(projection[0], 1, stride)
        else:
            fused = fused and self.downsample is None
        return PreparedResidual(
            tuple(PreparedConv.of(conv, bn) for conv, bn in layers),
            None if projection is None else PreparedConv.of(*projection),
            stride[0],
            fused,
        )

    def forward(self, x: Tensor, decision: Decision | None = None) -> Tensor:
        """x: float[N, C_in, H, W] -> float[N, C, H', W']; decision None asks the model's gates."""
        gate_pass = None
        if decision is None:
            gate_pass = current_pass(self.site.name)
            decision = gate_pass.decide(self, x)
        elif len(decision.masks) not in (0, len(self.site.interior)):
            expected = f"none or one for each interior tensor ({len(self.site.interior)})"
            raise ValueError(f"{type(self).__name__}: got {len(decision.masks)} masks, expected {expected}")
        elif decision.in_mask is not None:
            raise ValueError(
                f"{type(self).__name__}: got in_mask, expected None: its shortcut reads all of x"
            )
        if not runs_sparse(x, self, decision):
            return self._forward_dense(x, decision)
        if gate_pass is None or not _hands_on_means(x) or not self.prepared().fused:
            return self._forward_sparse(x, decision)
        autocast = not x.is_meta and torch.is_autocast_enabled(x.device.type)
        over_x = gate_pass.spare is x and self.downsample is None and not autocast
        y, means = self._run_fused(x, decision, self.prepared(), True, gate_pass.means_of(x), over_x)
        gate_pass.pooled, gate_pass.spare = (y, means), None
        return y

    def _forward_dense(self, x: Tensor, decision: Decision) -> Tensor:
        *inner, (last_conv, last_bn) = self._conv_bns()
        y = x
        for i, (conv, bn) in enumerate(inner):
            y = F.relu(bn(conv(y)))
            if decision.masks:
                y = decision.masks[i].apply(y)
        y = last_bn(last_conv(y))
        if decision.keep_scale is not None:
            y = y * decision.keep_scale[:, None, None, None]
        shortcut = x if self.downsample is None else self.downsample(x)
        return mix_kept(F.relu(y + shortcut), x, decision)

    def _forward_sparse(self, x: Tensor, decision: Decision) -> Tensor:
        if x.is_cpu and x.shape[0] == 1 and decision.keep is not None and not decision.keep.item():
            return x  # what an operator would have to copy
        prepared: PreparedResidual = self.prepared()
        if prepared.fused:
            return self._run_fused(x, decision, prepared)[0]
        if decision.keep is None:
            return self._run(x, decision, prepared)
        if not x.is_cpu:
            return torch.where(decision.keep[:, None, None, None], self._run(x, decision, prepared), x)
        index = decision.keep.nonzero().flatten()
        if index.numel() == 0:
            return x
        if index.numel() == x.shape[0]:
            return self._run(x, decision, prepared)
        rows = self._run(gather_samples(x, index), decision.select(index), prepared)
        return scatter_samples(x, rows, index)

    def _run_fused(
        self, x: Tensor, decision: Decision, prepared: PreparedResidual, pool: bool = False,
        x_pooled: Tensor | None = None, over_x: bool = False,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """All samples through one operator, which copies the skipped ones, and pools y if asked to.

        `over_x`: y takes the place of x, where skipped samples already are.
        """
        arguments: dict[str, Any] = {"keep": decision.keep, "keep_scale": decision.keep_scale}
        for (open_, scale, size), mask in zip(self.mask_names, decision.masks, strict=False):
            if mask is not None:
                arguments |= {open_: mask.open, scale: mask.scale, size: mask.group_size}
        arguments |= {"pool": pool, "x_pooled": x_pooled}
        weights = [t for conv in prepared.convs for t in (conv.weight, conv.bias)]
        operator, operator_in_place = self._operators()
        if over_x:
            return x, operator_in_place(x, *weights, **arguments)
        for i, conv in enumerate(prepared.convs, 1):
            arguments[f"packed{i}"] = conv.packed
        if prepared.shortcut is not None:
            shortcut = prepared.shortcut
            arguments |= {"shortcut_weight": shortcut.weight, "shortcut_bias": shortcut.bias}
            arguments["shortcut_packed"] = shortcut.packed
        return operator(x, *weights, stride=prepared.stride, **arguments)

    def _operators(self) -> tuple[Callable[..., tuple[Tensor, Tensor]], Callable[..., Tensor]]:
        """The block as one operator, and the form of it that writes over its input."""
        raise NotImplementedError

    def _run(self, x: Tensor, decision: Decision, prepared: PreparedResidual) -> Tensor:
        """The kept samples through one convolution after the other, closed channels skipped."""
        masks: tuple[Mask | None, ...] = decision.masks or (None,) * (len(prepared.convs) - 1)
        *inner, last = prepared.convs
        h, before = x, None
        for conv, mask in zip(inner, masks, strict=True):
            h = conv(h, activation="relu", **_input_gating(before), **_output_gating(mask))
            before = mask
        if prepared.shortcut is not None:
            shortcut = prepared.shortcut(x)
        else:
            shortcut = x if self.downsample is None else self.downsample(x)
        keep_scale = decision.keep_scale
        return last(
            h,
            **_input_gating(before),
            scale=None if keep_scale is None else keep_scale[:, None],
            out_group_size=1 if keep_scale is None else last.weight.shape[0],
            residual=shortcut,
            activation="relu",
        )


def _input_gating(mask: Mask | None) -> dict[str, Any]:
    return {} if mask is None else {"in_mask": mask.open, "in_group_size": mask.group_size}


def _output_gating(mask: Mask | None) -> dict[str, Any]:
    if mask is None:
        return {}
    return {"out_mask": mask.open, "scale": mask.scale, "out_group_size": mask.group_size}
