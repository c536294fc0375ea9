"""Which blocks of a model can be gated, by what they are made of."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch.nn as nn

from ..blocks.dense_block import DenseBlock, Transition
from ..blocks.gated_basic_block import GatedBasicBlock
from ..blocks.gated_block import GatedBlock
from ..blocks.gated_bottleneck import GatedBottleneck
from ..blocks.gated_dense_layer import GatedDenseLayer
from ..blocks.gated_residual_block import GatedResidualBlock
from ..blocks.gated_transition import GatedNorm, GatedTransition

__all__ = ["FilterFn", "gated_blocks", "gated_form"]

FilterFn = Callable[[nn.Module, str], bool]


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


def gated_blocks(model: nn.Module, filter_fn: FilterFn | None) -> tuple[dict[str, Any], int]:
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
