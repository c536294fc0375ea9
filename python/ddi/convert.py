"""Puts gates on an existing model, in place, and takes them off again.

Residual blocks, basic ones and bottlenecks, are swapped for gated ones that share their layers, so every
original state_dict key stays as it was; what is added lives under `ddi_gates.*`. Gates start fully open:
right after conversion the model computes what it computed before.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor

from .nn.gated_basic_block import GatedBasicBlock
from .nn.gated_block import GatedBlock
from .nn.gated_bottleneck import GatedBottleneck
from .nn.gated_residual_block import GatedResidualBlock
from .record import PassHooks

__all__ = ["convert_", "gated_form", "is_converted", "revert_"]

FilterFn = Callable[[nn.Module, str], bool]


def is_converted(model: nn.Module) -> bool:
    """Whether `convert_` has put gates on this very module."""
    return "_ddi_hooks" in model.__dict__


def gated_form(module: nn.Module) -> type[GatedResidualBlock] | None:
    """The gated form of a module that looks like a post-activation residual block; None for any other."""
    if isinstance(module, GatedBlock) or not hasattr(module, "downsample"):
        return None
    form = GatedBottleneck if hasattr(module, "conv3") else GatedBasicBlock
    numbers = range(1, len(form.kernels) + 1)
    convs = [getattr(module, f"conv{i}", None) for i in numbers]
    norms = [getattr(module, f"bn{i}", None) for i in numbers]
    if all(isinstance(c, nn.Conv2d) and not isinstance(c.padding, str) for c in convs) and all(
        isinstance(n, nn.BatchNorm2d) and n.track_running_stats for n in norms
    ):
        return form
    return None


def _swap(model: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, module)


def convert_(
    model: nn.Module,
    config: Any,
    example_input: Tensor | None = None,
    filter_fn: FilterFn | None = None,
) -> nn.Module:
    """Gates the residual blocks of a model in place.

    Args:
        model: holds blocks with conv1, bn1, conv2, bn2, downsample, and conv3, bn3 if they are bottlenecks
            (those of torchvision's ResNets and ours).
        config: a gate config, e.g. `ddi.DDIConfig(group_size=4)`.
        example_input: float[N, C, H, W]. If given, the converted model is run on it with its gates open and
            must give the model's own output, else the conversion is undone.
        filter_fn: (module, path) -> bool chooses among the blocks found; None takes all.

    Returns:
        model itself.

    Raises:
        TypeError: config is no gate config.
        ValueError: already converted, no block found, or the output changed.

    Example:
        >>> model = ddi.convert_(my_resnet, ddi.DDIConfig(), torch.randn(1, 3, 32, 32))
    """
    if not hasattr(config, "build"):
        raise TypeError(
            f"convert_: config must be a gate config such as ddi.DDIConfig(), got {type(config).__name__}"
        )
    if is_converted(model) or hasattr(model, "ddi_gates"):
        raise ValueError("convert_: the model is converted already; call ddi.revert_(model) first")
    found = {path: form for path, m in model.named_modules() if path and (form := gated_form(m))}
    blocks = {}
    for path, form in found.items():
        block = model.get_submodule(path)
        if filter_fn is None or filter_fn(block, path):
            blocks[path] = form(block, path)
    if not blocks:
        kinds = sorted({type(m).__name__ for m in model.modules()})
        raise ValueError(
            f"convert_: no block to gate in {type(model).__name__} ({len(found)} found, {len(found)} refused "
            "by filter_fn); a residual block needs conv1, bn1, conv2, bn2 and downsample, a bottleneck conv3 "
            f"and bn3 too. Modules seen: {kinds[:12]}"
        )
    expected = None if example_input is None else _eval_output(model, example_input)
    reference = next(model.parameters())
    gates = config.build([block.site for block in blocks.values()])
    gates.to(device=reference.device, dtype=torch.float32)
    for path, block in blocks.items():
        _swap(model, path, block)
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


def revert_(model: nn.Module) -> nn.Module:
    """Takes the gates off a converted model; its weights stay as they are now.

    Raises:
        ValueError: the model is not converted.
    """
    if not is_converted(model):
        raise ValueError(f"revert_: {type(model).__name__} has no gates to take off")
    gated = [(p, m) for p, m in model.named_modules() if isinstance(m, GatedBlock)]
    for path, block in gated:
        _swap(model, path, block.__dict__["original"].train(block.training))
    model.__dict__.pop("_ddi_hooks").remove()
    del model.ddi_gates
    return model
