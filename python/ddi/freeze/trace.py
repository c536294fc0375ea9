"""A model as a graph of the engine's operations, by torch.export.

Gated blocks are taken as they are: in a copy of the model, its gates off, an opaque operator stands in each
one's place, so that the export sees the network between them. Everything else arrives as ATen operators,
each translated by one function of the table at the end of aten.py.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor

from ..gating.stand_in import is_converted, revert_
from .aten import TRANSLATIONS, Source
from .ir import FreezeError, Network, Node
from .sites import site_node

__all__ = ["AllExits", "trace"]


@torch.library.custom_op("frozen::site", mutates_args=())
def _site(x: Tensor, index: int, shape: list[int]) -> Tensor:
    """Stands for a gated block in an exported graph; is never run."""
    raise NotImplementedError


@_site.register_fake
def _(x: Tensor, index: int, shape: list[int]) -> Tensor:
    return x.new_empty([x.shape[0], *shape])


class _Site(nn.Module):
    def __init__(self, block: nn.Module, index: int) -> None:
        super().__init__()
        self.block, self.index = block, index

    def forward(self, x: Tensor) -> Tensor:
        # What the block computes itself is dead code of the graph, only its shape is wanted.
        return _site(x, self.index, list(self.block(x).shape[1:]))


class AllExits(nn.Module):
    """The logits of every exit of a model."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        if getattr(self.model, "exits", None):
            return self.model.forward_exits(x)
        return (self.model(x),)


def _ungated(model: nn.Module) -> tuple[nn.Module, list[str]]:
    """A copy without gates, sites in the place of its gated blocks, and the paths of those."""
    plain = copy.deepcopy(model).eval()
    if not is_converted(model):
        return plain, []
    # Others, such as the transition behind gated layers, only leave out what those have closed: the engine
    # knows by itself which channels of an image are.
    sites = [(path, getattr(module, "site", None)) for path, module in model.named_modules()]
    paths = [path for path, site in sites if site is not None and site.interior]
    revert_(plain)
    for index, path in enumerate(paths):
        plain.set_submodule(path, _Site(plain.get_submodule(path), index))
    return plain, paths


def _export(plain: nn.Module, example: Tensor) -> torch.export.ExportedProgram:
    try:
        program = torch.export.export(AllExits(plain), (example,))
    except Exception as error:
        raise FreezeError(f"freeze: torch.export cannot trace {type(plain).__name__}: {error}") from error
    program.graph.eliminate_dead_code()
    return program


def _module_path(node: torch.fx.Node) -> str:
    stack = node.meta.get("nn_module_stack") or {}
    path = list(stack.values())[-1][0] if stack else ""
    return path.removeprefix("model").lstrip(".") or str(node.target)


def trace(model: nn.Module, example: Tensor) -> Network:
    """The operations of a model in eval mode, gated blocks as `block` nodes.

    Args:
        model: gated or plain.
        example: float32[N, C, H, W]; its image size is the network's.

    Raises:
        FreezeError: names what cannot be translated, and where it stands.
    """
    plain, paths = _ungated(model)
    program = _export(plain, example)
    weights: dict[str, Tensor] = {**program.state_dict, **program.constants}
    signature = program.graph_signature
    sources = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    sources |= signature.inputs_to_lifted_tensor_constants
    image = Node("input", "input", [], tuple(example.shape[1:]))
    values: dict[torch.fx.Node, Any] = {}
    *nodes, last = program.graph.nodes
    for node in nodes:
        if node.op == "placeholder":
            values[node] = weights[sources[node.name]] if node.name in sources else image
        else:
            values[node] = _translate(node, values, model, paths)
    return Network(image, [values[node] for node in last.args[0]])


def _translate(node: torch.fx.Node, values: dict[Any, Any], model: nn.Module, paths: list[str]) -> Node:
    args: Any = torch.fx.node.map_arg(node.args, lambda a: values[a])
    name = _module_path(node)
    if node.target is torch.ops.frozen.site.default:
        return site_node(model, paths[args[1]], args[0], tuple(node.meta["val"].shape[1:]))
    translate = TRANSLATIONS.get(node.target)
    if translate is None:
        raise FreezeError(
            f"freeze: the engine has no {node.target} ({name}); see docs/engine.md for what it has"
        )
    kwargs: Any = torch.fx.node.map_arg(node.kwargs, lambda a: values[a])
    source = Source(name, tuple(node.meta["val"].shape[1:]))
    try:
        return translate(source, *args, **kwargs)
    except FreezeError as error:
        raise FreezeError(f"freeze: {name} ({node.target}): {error}") from None
