"""The table of backbones: `create_model(name)` and `list_models(pattern)`, as users know them from timm."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from fnmatch import fnmatch
from typing import Any

import torch.nn as nn

from ..convert import convert_

__all__ = ["create_model", "list_models", "register_model"]

Builder = Callable[..., nn.Module]
_MODELS: dict[str, Builder] = {}


def register_model(name: str) -> Callable[[Builder], Builder]:
    """Decorator: makes a builder known under a name."""

    def add(builder: Builder) -> Builder:
        if name in _MODELS:
            raise ValueError(f"register_model: {name!r} is taken")
        _MODELS[name] = builder
        return builder

    return add


def list_models(pattern: str = "*") -> list[str]:
    """Names of the backbones that match a shell pattern, sorted.

    Example:
        >>> ddi.list_models("cifar_resnet3*")
        ['cifar_resnet32', 'cifar_resnet38']
    """
    return sorted(name for name in _MODELS if fnmatch(name, pattern))


def create_model(name: str, gates: Any | None = None, **kwargs: Any) -> nn.Module:
    """A freshly initialised backbone.

    Args:
        name: one of `list_models()`.
        gates: a gate config; the backbone is then converted by `convert_`.
        **kwargs: for the backbone: num_classes, and exits, its branch classifiers `exits.*`, whose logits
            `model.forward_exits(x)` gives (`model(x)` does not run them). None: none. "default": six that
            cut a ResNet's MACs evenly; of a DenseNet one in the middle of the first dense block and two, at
            1/4 and 3/4, in each other one. A number: so many, evenly spread in MACs. Rising numbers: how
            many blocks (of a DenseNet: layers) run before each. A cifar_resnet also takes `width`, the
            channels of its first stage (16), and `depths`, the blocks of each stage: for networks that are
            narrower or shallower at all times, to compare a gated one with; every ResNet also
            `zero_init_residual`, whether its blocks begin as the identity (False).

    Raises:
        ValueError: unknown name or argument, with the nearest known ones.

    Example:
        >>> model = ddi.create_model("cifar_resnet38", gates=ddi.DDIConfig(), num_classes=10, exits="default")
        >>> *early, last = model.forward_exits(torch.randn(1, 3, 32, 32))
    """
    if name not in _MODELS:
        near = difflib.get_close_matches(str(name), _MODELS, n=3)
        raise ValueError(f"create_model: unknown model {name!r}; nearest: {near}, all: {list_models()}")
    try:
        model = _MODELS[name](**kwargs)
    except TypeError as error:
        raise ValueError(f"create_model: {name!r} does not take these arguments: {error}") from error
    if gates is not None:
        convert_(model, gates)
    return model
