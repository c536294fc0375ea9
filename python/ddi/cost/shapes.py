"""Which layers a network runs on an input, found on meta tensors, which hold no data.

Everybody who wants to know of a network without computing anything looks at a `plain_copy`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.nn as nn
from torch.utils.flop_counter import FlopCounterMode

from ..gating.stand_in import is_converted, revert_

__all__ = ["Ungated", "on_each_layer", "plain_copy", "ungated"]

Model = TypeVar("Model", bound=nn.Module)


@dataclass(frozen=True)
class Ungated:
    """One sample's run through a model with its gates taken off.

    Args:
        macs: all multiply-adds.
        layers: path and input shape (1, ...) of every convolution and linear layer, in order of execution.
    """

    macs: int
    layers: tuple[tuple[str, tuple[int, ...]], ...]


def ungated(model: nn.Module, input_shape: Sequence[int]) -> Ungated:
    """What a model runs on inputs of shape (N, C, H, W) without gates; found once for each input size."""
    cache: dict[tuple[int, ...], Ungated] = model.__dict__.setdefault("_ddi_ungated", {})
    key = tuple(input_shape[1:])
    if key not in cache:
        cache[key] = _run(model, key)
    return cache[key]


def plain_copy(model: Model) -> Model:
    """A copy without gates and without data, in eval mode: it runs on meta tensors and computes nothing."""
    plain = copy.deepcopy(model).to("meta").eval()
    if is_converted(plain):
        revert_(plain)
    return plain


def on_each_layer(plain: nn.Module, see: Callable[[str, nn.Module, torch.Size], None]) -> None:
    """Calls `see` with the path of each convolution or linear layer, itself and its input's shape."""
    for path, module in plain.named_modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.register_forward_pre_hook(lambda layer, args, path=path: see(path, layer, args[0].shape))


def _run(model: nn.Module, shape: tuple[int, ...]) -> Ungated:
    plain = plain_copy(model).float()
    layers: list[tuple[str, tuple[int, ...]]] = []
    on_each_layer(plain, lambda path, _, size: layers.append((path, tuple(size))))
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        plain(torch.empty(1, *shape, device="meta"))
    return Ungated(counter.get_total_flops() // 2, tuple(layers))
