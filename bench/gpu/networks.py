"""Whole networks in bfloat16: gated, gates included, against the dense one with its batch norms folded.

Gate networks run in full. Their bits are drawn, as untrained gates would all decide alike; where a stage runs
as one operator, gates and all, every second block is closed by its gate's bias instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor
from torch.nn.utils.fusion import fuse_conv_bn_eval

import ddi

from ..networks import seeded
from . import graphs
from .graphs import DTYPE, Masks, choices, realised, relative_error, replayed, row, times_of

KEEPS = (1.0, 0.5)
CALLS = 2

# Backbone, side of its images, batch, gates.
NETWORKS: list[tuple[str, int, int, Any]] = [
    ("resnet18", 224, 64, ddi.DDIConfig(group_size=32)),
    ("resnet50", 224, 64, ddi.DDIConfig(group_size=32)),
    ("densenet121", 224, 64, ddi.DenseDDIConfig(group_size=16)),
    ("cifar_resnet110", 32, 128, ddi.DDIConfig(channels=False)),
    ("cifar_resnet110", 32, 1, ddi.DDIConfig(channels=False)),
]


@contextmanager
def forced(model: Any, bits: list[Tensor]) -> Iterator[None]:
    """Inside, gates run and decide, pass after pass, what `bits` says: a tensor for each keep and mask."""
    gates, decide, at = model.ddi_gates, type(model.ddi_gates).decide, 0

    def next_bits() -> Tensor:
        nonlocal at
        at += 1
        return bits[(at - 1) % len(bits)]

    def forced_decide(site: Any, x: Tensor, state: Any) -> tuple[ddi.Decision, Any]:
        decision, state = decide(gates, site, x, state)
        keep = None if decision.keep is None else next_bits()
        masks = tuple(replace(mask, open=next_bits()) for mask in decision.masks)
        return replace(decision, keep=keep, masks=masks), state

    gates.decide = forced_decide
    try:
        yield
    finally:
        del gates.decide


def decided(model: Any, x: Tensor) -> list[Tensor]:
    """What the gates decide in one pass: a tensor for each keep and mask."""
    gates, decide, seen = model.ddi_gates, type(model.ddi_gates).decide, []

    def watching(site: Any, x: Tensor, state: Any) -> tuple[ddi.Decision, Any]:
        decision, state = decide(gates, site, x, state)
        seen.extend([] if decision.keep is None else [decision.keep])
        seen.extend(mask.open for mask in decision.masks)
        return decision, state

    gates.decide = watching
    try:
        model(x)
    finally:
        del gates.decide
    return seen


def folded(model: Any) -> Any:
    """The model with each batch norm that directly follows a convolution folded into it, in place."""
    follows = {"conv0": "norm0", "conv1": "bn1", "conv2": "bn2", "conv3": "bn3"}
    for module in list(model.modules()):
        pairs = [*follows.items(), ("conv1", "norm2")]
        if isinstance(module, nn.Sequential):
            names = list(module._modules)
            pairs = list(zip(names, names[1:], strict=False))
        for conv_name, norm_name in pairs:
            conv, norm = module._modules.get(conv_name), module._modules.get(norm_name)
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(module, conv_name, fuse_conv_bn_eval(conv, norm))
                setattr(module, norm_name, nn.Identity())
    return model


def _half(model: Any) -> Any:
    return model.to(graphs.DEVICE, DTYPE, memory_format=torch.channels_last)


def close_blocks_(model: Any, keep: float) -> None:
    """Layer gates that keep this share of the blocks, whatever they see."""
    heads = list(model.ddi_gates.layer.values())
    for i, head in enumerate(heads):
        head.weight.data.zero_()
        head.bias.data.fill_(10.0 if int((i + 1) * keep) > int(i * keep) else -10.0)


def network_rows(name: str, size: int, n: int, gates: Any, compiled: bool) -> Iterator[dict[str, Any]]:
    """One network at one batch size."""
    gated, plain = seeded(ddi.create_model(name, gates=gates)), seeded(ddi.create_model(name))
    state = {key: value for key, value in gated.state_dict().items() if not key.startswith("ddi_gates.")}
    plain.load_state_dict(state)
    gated, plain = _half(gated), _half(folded(plain))
    xs = [
        torch.randn(n, 3, size, size, device=graphs.DEVICE, dtype=DTYPE).contiguous(
            memory_format=torch.channels_last
        )
        for _ in range(CALLS)
    ]
    runs: dict[str, Callable[[int], Tensor]] = {"cudnn_graph": lambda i: plain(xs[i])}
    if compiled:
        faster = torch.compile(plain, dynamic=False)
        runs["compile_graph"] = lambda i: faster(xs[i])
    dense = times_of(runs, CALLS)
    shapes = [bits.shape for bits in decided(gated, xs[0])]
    for keep in KEEPS:
        pools = [
            choices(1, shape[0], keep)[:, 0] if len(shape) == 1 else choices(*shape, keep) for shape in shapes
        ]
        masks, resident = Masks(pools), name.startswith("cifar_resnet")
        if resident:
            close_blocks_(gated, keep)
        with nullcontext() if resident else forced(gated, masks.now[0]):
            timed = replayed(lambda i: gated(xs[i]), masks.refresh, CALLS)
            with ddi.record(gated) as rec:
                logits = gated(xs[0])
        result = row(f"{name} {size}", "auto", n, timed, dense) | {
            "keep": f"{keep}",
            "keep_channels": 1.0 if resident else keep,
            "keep_layers": keep,
            "group_size": gates.group_size,
            **realised(timed, dense, rec.mac_ratio),
        }
        if keep == 1.0:  # nothing is closed: the dense network's answer
            result["max_rel_err"] = relative_error(logits, plain(xs[0]).float())
        yield result
