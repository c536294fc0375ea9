"""Gated blocks as nodes: their folded weights and the gates that belong to them."""

from __future__ import annotations

from typing import Any

import torch.nn as nn

from ddi_kernels import fold_bn

from ..gates.ddi import DDIGates
from .ir import Conv, FreezeError, GateWeights, Node

__all__ = ["site_node"]


def site_node(model: Any, path: str, x: Node, shape: tuple[int, ...]) -> Node:
    """The node of a gated block of a model, which reads x."""
    block = model.get_submodule(path)
    if not isinstance(model.ddi_gates, DDIGates):
        raise FreezeError(f"freeze: the engine has no gates of type {type(model.ddi_gates).__name__}")
    attrs = {"convs": _branch(block), "shortcut": _shortcut(block, path)}
    return Node("block", path, [x], shape, {**attrs, "gate": _gate(model.ddi_gates, block.site)})


def _conv(conv: nn.Conv2d, bn: nn.BatchNorm2d) -> Conv:
    if conv.padding_mode != "zeros" or isinstance(conv.padding, str):
        raise FreezeError(f"freeze: padding {conv.padding!r} with mode {conv.padding_mode!r}")
    weight, bias = fold_bn(conv.weight, conv.bias, bn)
    geometry: Any = conv  # torch has these as tuples of any length
    return Conv(weight, bias, geometry.stride, geometry.padding, geometry.dilation, conv.groups)


def _branch(block: Any) -> list[Conv]:
    count = 3 if hasattr(block, "conv3") else 2
    return [_conv(getattr(block, f"conv{i}"), getattr(block, f"bn{i}")) for i in range(1, count + 1)]


def _shortcut(block: Any, path: str) -> Conv | None:
    if block.downsample is None:
        return None
    parts = list(block.downsample.children())
    if len(parts) != 2 or not isinstance(parts[0], nn.Conv2d) or not isinstance(parts[1], nn.BatchNorm2d):
        raise FreezeError(f"freeze: the shortcut of {path} is no convolution with a batch norm")
    return _conv(*parts)


def _gate(gates: DDIGates, site: Any) -> GateWeights:
    weights = gates.weights(site)
    groups = tuple(-(-channels // gates.config.group_size) for channels in site.interior)
    return GateWeights(
        lstm=weights["lstm"],
        layer=weights["layer"],
        channel=weights["channel"],
        groups=groups if gates.config.channels else (),
        group_size=gates.config.group_size,
        threshold=gates.threshold_logit,
    )
