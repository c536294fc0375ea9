"""Puts gates on an existing model, in place, and takes them off again.

Residual blocks (basic ones and bottlenecks) and the layers of dense blocks are swapped for gated ones that
share their layers, so every original state_dict key stays as it was; what is added lives under `ddi_gates.*`.
Gates start fully open: right after conversion the model computes what it computed before.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn as nn
from torch import Tensor

from ..blocks.gated_block import GatedBlock
from ..gating.gate_pass import PassHooks
from ..gating.stand_in import is_converted, revert_, swap
from .find import FilterFn, gated_blocks

__all__ = ["convert_"]


def convert_(
    model: nn.Module,
    config: Any,
    example_input: Tensor | None = None,
    filter_fn: FilterFn | None = None,
) -> nn.Module:
    """Gates the residual blocks, or the layers of the dense blocks, of a model in place.

    Args:
        model: holds residual blocks with conv1, bn1, conv2, bn2, downsample, and conv3, bn3 if they are
            bottlenecks (those of torchvision's ResNets and ours); or is a DenseNet of `ddi.create_model`,
            into which torchvision's state_dict loads.
        config: a gate config: `ddi.DDIConfig(group_size=4)` for residual blocks, `ddi.DenseDDIConfig()` for
            a DenseNet.
        example_input: float[N, C, H, W]. If given, the converted model is run on it with its gates open and
            must give the model's own output, else the conversion is undone.
        filter_fn: (module, path) -> bool chooses among the blocks found; None takes all.

    Returns:
        model itself.

    Raises:
        TypeError: config is no gate config.
        ValueError: already converted, no block found, a config for other blocks, or the output changed.

    Example:
        >>> model = ddi.convert_(my_resnet, ddi.DDIConfig(), torch.randn(1, 3, 32, 32))
    """
    if not hasattr(config, "build"):
        raise TypeError(
            f"convert_: config must be a gate config such as ddi.DDIConfig(), got {type(config).__name__}"
        )
    if is_converted(model) or hasattr(model, "ddi_gates"):
        raise ValueError("convert_: the model is converted already; call ddi.revert_(model) first")
    blocks, found = gated_blocks(model, filter_fn)
    if not blocks:
        kinds = sorted({type(m).__name__ for m in model.modules()})
        raise ValueError(
            f"convert_: no block to gate in {type(model).__name__} ({found} found, {found} refused by "
            "filter_fn); a residual block needs conv1, bn1, conv2, bn2, downsample, a bottleneck conv3, bn3 "
            "too; a DenseNet must come from ddi.create_model, into which torchvision's state_dict loads. "
            f"Modules seen: {kinds[:12]}"
        )
    expected = None if example_input is None else _eval_output(model, example_input)
    reference = next(model.parameters())
    gates = config.build([block.site for block in blocks.values() if isinstance(block, GatedBlock)])
    gates.to(device=reference.device, dtype=torch.float32)
    for path, block in blocks.items():
        swap(model, path, block)
    model.ddi_gates = gates.train(model.training)
    model.__dict__["_ddi_hooks"] = PassHooks(model, gates)
    if example_input is not None and expected is not None:
        _check_unchanged(model, example_input, expected)
    return model


def _eval_output(model: nn.Module, x: Tensor) -> Tensor:
    training = model.training
    try:
        with torch.no_grad():
            return model.eval()(x)
    finally:
        model.train(training)


def _check_unchanged(model: nn.Module, x: Tensor, expected: Tensor) -> None:
    try:
        got = _eval_output(model, x)
        torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-4)
    except Exception as error:
        revert_(model)
        raise ValueError(
            "convert_: the converted model's output differs from the model's own on example_input, so its "
            "blocks do not compute relu(bn2(conv2(relu(bn1(conv1(x))))) + shortcut), or what bottlenecks do; "
            f"leave them out with filter_fn. The conversion was undone. {error}"
        ) from error
