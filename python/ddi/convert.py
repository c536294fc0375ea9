"""Puts gates on an existing model, in place, and takes them off again.

Residual blocks (basic ones and bottlenecks) and the layers of dense blocks are swapped for gated ones that
share their layers, so every original state_dict key stays as it was; what is added lives under `ddi_gates.*`.
Gates start fully open: right after conversion the model computes what it computed before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor

from .backbones.densenet import DenseBlock, Transition
from .nn.gated_basic_block import GatedBasicBlock
from .nn.gated_block import GatedBlock
from .nn.gated_bottleneck import GatedBottleneck
from .nn.gated_dense_layer import GatedDenseLayer
from .nn.gated_residual_block import GatedResidualBlock
from .nn.gated_transition import GatedNorm, GatedTransition
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


def _dense_blocks(model: nn.Module) -> Iterator[tuple[list[str], str]]:
    """For each dense block the paths of its layers, and of the module that reads its concatenation."""
    for parent, container in model.named_modules():
        children = list(container.named_children())
        prefix = f"{parent}." if parent else ""
        for i, (name, block) in enumerate(children):
            if not isinstance(block, DenseBlock):
                continue
            reader = children[i + 1] if i + 1 < len(children) else ("nothing", None)
            if not isinstance(reader[1], (Transition, nn.BatchNorm2d)):
                raise ValueError(
                    f"convert_: {prefix}{name} is followed by {reader[0]}; a dense block can be gated if a "
                    "Transition or a BatchNorm2d comes next, which must leave out its closed channels too"
                )
            layers = [f"{prefix}{name}.{layer}" for layer, _ in block.named_children()]
            yield layers, f"{prefix}{reader[0]}"


def _gated_blocks(model: nn.Module, filter_fn: FilterFn | None) -> tuple[dict[str, Any], int]:
    """Gated forms by path, and how many blocks there were to choose from.

    A layer of a dense block that is not chosen is swapped all the same, without a gate, if another one of its
    block is: whatever reads closed channels must leave them out. The first layer never has a gate.
    """
    forms = {path: form for path, m in model.named_modules() if path and (form := gated_form(m))}
    dense = list(_dense_blocks(model))
    found = [*forms, *(path for layers, _ in dense for path in layers[1:])]
    chosen = {p for p in found if filter_fn is None or filter_fn(model.get_submodule(p), p)}
    blocks: dict[str, Any] = {p: forms[p](model.get_submodule(p), p) for p in forms if p in chosen}
    for layers, reader in dense:
        if chosen.intersection(layers):
            for path in layers:
                blocks[path] = GatedDenseLayer(model.get_submodule(path), path, gated=path in chosen)
            last = model.get_submodule(reader)
            gated: Any = GatedTransition if isinstance(last, Transition) else GatedNorm
            blocks[reader] = gated(last, reader)
    return blocks, len(found)


def _swap(model: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, module)


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
    blocks, found = _gated_blocks(model, filter_fn)
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
    gated = [(p, m) for p, m in model.named_modules() if isinstance(m, (GatedBlock, GatedNorm))]
    for path, block in gated:
        _swap(model, path, block.__dict__["original"].train(block.training))
    model.__dict__.pop("_ddi_hooks").remove()
    del model.ddi_gates
    return model
