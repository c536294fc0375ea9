"""Gated blocks as nodes: their folded weights and the gates that belong to them."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn as nn

from ddi_kernels import fold_bn

from ..gates import gate_kind
from ..gates.ddi import DDIGates
from ..gates.dense_ddi import DenseDDIGates
from .ir import Conv, FreezeError, GateWeights, Node

__all__ = ["site_node"]


def site_node(model: Any, path: str, x: Node, shape: tuple[int, ...]) -> Node:
    """The node of a gated block of a model, which reads x."""
    block = model.get_submodule(path)
    gate = _gate(model.ddi_gates, block.site)
    if block.site.kind == "dense_layer":
        ones = torch.ones_like(block.norm1.running_var)
        attrs = {"prologue": fold_bn(ones[:, None], None, block.norm1), "gate": gate}
        return Node("dense_layer", path, [x], shape, attrs | {"convs": _dense_branch(block, path)})
    attrs = {"convs": _branch(block, path), "shortcut": _shortcut(block, path), "gate": gate}
    return Node("block", path, [x], shape, attrs)


def _conv(name: str, conv: nn.Conv2d, bn: nn.BatchNorm2d | None) -> Conv:
    if conv.padding_mode != "zeros" or isinstance(conv.padding, str):
        raise FreezeError(f"freeze: padding {conv.padding!r} with mode {conv.padding_mode!r}")
    weight, bias = (conv.weight, conv.bias) if bn is None else fold_bn(conv.weight, conv.bias, bn)
    geometry: Any = conv  # torch has these as tuples of any length
    return Conv(weight, bias, geometry.stride, geometry.padding, geometry.dilation, conv.groups, name)


def _branch(block: Any, path: str) -> list[Conv]:
    numbers = range(1, 4 if hasattr(block, "conv3") else 3)
    return [_conv(f"{path}.conv{i}", getattr(block, f"conv{i}"), getattr(block, f"bn{i}")) for i in numbers]


def _dense_branch(layer: Any, path: str) -> list[Conv]:
    return [_conv(f"{path}.conv1", layer.conv1, layer.norm2), _conv(f"{path}.conv2", layer.conv2, None)]


def _shortcut(block: Any, path: str) -> Conv | None:
    if block.downsample is None:
        return None
    named = list(block.downsample.named_children())
    parts = [part for _, part in named]
    if len(parts) != 2 or not isinstance(parts[0], nn.Conv2d) or not isinstance(parts[1], nn.BatchNorm2d):
        raise FreezeError(f"freeze: the shortcut of {path} is no convolution with a batch norm")
    return _conv(f"{path}.downsample.{named[0][0]}", *parts)


def _gate(gates: Any, site: Any) -> GateWeights:
    if isinstance(gates, DDIGates):
        weights = gates.weights(site)
    elif isinstance(gates, DenseDDIGates):
        weights = {"channel": list(gates.channel[site.name].parameters())}
    else:
        remedy = "DenseDDIConfig" if site.kind == "dense_layer" else "DDIConfig"
        raise FreezeError(
            f"freeze: the engine has no gates of kind {gate_kind(gates.config)!r}; it has those of "
            f"ddi.{remedy}: convert the network with that and train its gates"
        )
    size = gates.config.group_size
    channel = weights["channel"]
    return GateWeights(
        lstm=weights.get("lstm", []),
        layer=weights.get("layer", []),
        channel=channel,
        groups=tuple(-(-channels // size) for channels in site.interior) if channel else (),
        group_size=size,
        threshold=gates.threshold_logit,
    )
