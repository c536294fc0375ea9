"""Multiply-adds and milliseconds of dense and gated networks, per sample and per block.

1 MAC = one multiply and one add = 2 FLOPs. Gates, stem, shortcuts and heads count; normalisation, activations
and pooling do not (the convention of torch.utils.flop_counter, which does the counting). Milliseconds are
those of a measured table (ddi_kernels/latency.py), and of convolutions only.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn as nn
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ddi_kernels.latency import ConvShape, Estimate, LatencyTable
from ddi_kernels.tables import current_table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .decision import Decision, Mask

__all__ = [
    "Latency",
    "MacCount",
    "block_ms",
    "conv_macs",
    "conv_output_size",
    "count_macs",
    "dense_macs",
    "latency",
    "open_share",
]


@dataclass(frozen=True)
class MacCount:
    """MACs per sample. `gated` and the values of `blocks` are means over the samples of the input.

    Args:
        dense: of the ungated backbone.
        gated: at the model's hard decisions; equals `dense` for a model without gates.
        blocks: mean gated MACs of each gated block, its gate included.
        per_sample: float64[N] gated MACs of each sample.
    """

    dense: int
    gated: float
    blocks: dict[str, float]
    per_sample: Tensor

    @property
    def mac_ratio(self) -> float:
        return self.dense / self.gated


def conv_output_size(conv: nn.Conv2d, size: Sequence[int]) -> tuple[int, int]:
    """(height, width) of a convolution's output for an input of (height, width)."""
    pads = conv.padding if isinstance(conv.padding, tuple) else (0, 0)
    out = [
        (n + 2 * int(p) - d * (k - 1) - 1) // s + 1
        for n, p, d, k, s in zip(size, pads, conv.dilation, conv.kernel_size, conv.stride, strict=True)
    ]
    return out[0], out[1]


def conv_macs(conv: nn.Conv2d, size: Sequence[int]) -> int:
    """MACs per sample of a convolution on an input of (height, width), everything open."""
    height, width = conv_output_size(conv, size)
    return conv.weight.numel() * height * width


def dense_macs(model: nn.Module, input_shape: Sequence[int]) -> int:
    """MACs per sample of a model with its gates taken off, for inputs of shape (N, C, H, W).

    Counted once per input size on a copy that holds no data (meta tensors), so it costs no arithmetic.
    """
    cache: dict[tuple[int, ...], int] = model.__dict__.setdefault("_ddi_dense_macs", {})
    key = tuple(input_shape[1:])
    if key not in cache:
        from .convert import is_converted, revert_

        dense = copy.deepcopy(model).to("meta").eval()
        if is_converted(dense):
            revert_(dense)
        counter = FlopCounterMode(display=False)
        with torch.no_grad(), counter:
            dense(torch.empty(1, *key, device="meta"))
        cache[key] = counter.get_total_flops() // 2
    return cache[key]


@torch.no_grad()
def count_macs(model: nn.Module, x: Tensor) -> MacCount:
    """MACs of a model on a batch, dense and at its gates' hard decisions.

    Those of `model(x)`, which runs no branch classifier: what one costs comes on top where it is run.

    Args:
        model: gated or plain; run once in its current mode if gated.
        x: float[N, C, H, W].

    Example:
        >>> ddi.count_macs(ddi.create_model("cifar_resnet20"), torch.randn(1, 3, 32, 32)).dense
        40813184
    """
    from .convert import is_converted
    from .record import record

    dense = dense_macs(model, x.shape)
    if not is_converted(model):
        return MacCount(dense, float(dense), {}, torch.full((x.shape[0],), dense).double())
    with record(model) as rec:
        model(x)
    per_sample = rec.macs.double()
    blocks: dict[str, Any] = {b.name: b.macs.double().mean().item() for b in rec.passes[0]}
    return MacCount(dense, per_sample.mean().item(), blocks, per_sample)


@dataclass(frozen=True)
class Latency:
    """Milliseconds that the convolutions of one call take by a latency table.

    Args:
        dense: of the ungated network.
        gated: at the model's hard decisions; equals `dense` for a model without gates.
        blocks: of each gated block; its gate is not among them.
        per_sample: float32[N], each sample's part of `gated`.
    """

    dense: float
    gated: float
    blocks: dict[str, float]
    per_sample: Tensor


def _estimate(conv: nn.Conv2d, shape: Sequence[int], table: LatencyTable) -> tuple[Estimate, float]:
    """What the table says of a convolution on inputs of `shape`, and the factor from there to one sample."""
    height, width = conv_output_size(conv, shape[2:])
    dtype = str(conv.weight.dtype).removeprefix("torch.")
    like = ConvShape(
        conv.kernel_size[0],
        conv.stride[0],
        conv.in_channels,
        conv.out_channels,
        height * width,
        shape[0],
        torch.get_num_threads(),
        dtype,
    )
    estimate = table.estimate(like)
    if estimate is None:
        raise ValueError(
            f"latency: the table of {table.device} ({table.isa}) has no row for {dtype} weights; "
            "measure one with: ddi profile"
        )
    # Convolution groups and oblong kernels, which tables do not know, count by their multiply-adds.
    return estimate, conv_macs(conv, shape[2:]) / like.macs


def open_share(mask: Mask | None, channels: int) -> Any:
    """float[N]: share of `channels` that a mask opens, differentiable in training; 1.0 without a mask."""
    return 1.0 if mask is None else mask.open_channels(channels) / channels


def block_ms(
    block: Any, shape: Sequence[int], decision: Decision, table: LatencyTable | None = None
) -> Tensor:
    """Milliseconds of a gated block under a decision, differentiable in training.

    To train for time instead of MACs: the gradient reaches the gates through the straight-through bits, each
    weighted by the time it decides over. Times are the gated kernel's, also where `auto` would take the dense
    one, whose time does not depend on the gates.

    Args:
        block: a gated block, e.g. `ddi.GatedBasicBlock`.
        shape: of its input, (N, C, H, W).
        decision: of its gate.
        table: default: the one in force here.

    Returns:
        float32[N], each sample's part of a call with N samples.

    Raises:
        ValueError: the table has no row of the weights' dtype.

    Example:
        >>> with ddi.record(model) as rec:
        ...     logits = model(images)
        >>> ms = block_ms(block, shape, rec.passes[0][0].decision).mean()
    """
    table = current_table() if table is None else table
    total: Any = 0.0
    size = shape
    chain = block.chain(decision)
    for conv, before, after in chain:
        estimate, factor = _estimate(conv, size, table)
        if before is None and after is None:
            total = total + estimate.plain_ms * factor
        else:
            group_size = math.gcd(*(mask.group_size for mask in (before, after) if mask is not None))
            shares = open_share(before, conv.in_channels), open_share(after, conv.out_channels)
            total = total + estimate.gated_ms(*shares, group_size) * factor
        size = (shape[0], conv.out_channels, *conv_output_size(conv, size[2:]))
    keep = block.kept(decision)
    total = total if keep is None else total * keep
    for conv in block.shortcut_convs():
        estimate, factor = _estimate(conv, shape, table)
        total = total + estimate.plain_ms * factor
    return torch.zeros(shape[0], device=chain[0][0].weight.device) + total


def _conv_inputs(model: nn.Module, x: Tensor) -> list[tuple[str, nn.Conv2d, tuple[int, ...]]]:
    """Path, layer and input shape of every convolution of the ungated model, from a run on meta tensors."""
    from .convert import is_converted, revert_

    plain = copy.deepcopy(model).to("meta").eval()
    if is_converted(plain):
        revert_(plain)
    seen: list[tuple[str, nn.Conv2d, tuple[int, ...]]] = []
    for path, module in plain.named_modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_pre_hook(
                lambda conv, args, path=path: seen.append((path, conv, tuple(args[0].shape)))
            )
    plain(torch.empty(x.shape, device="meta"))
    return seen


def _first_shape(inputs: dict[str, Any], path: str) -> tuple[int, ...]:
    """The input shape of a block: its first convolution's, in the order of execution."""
    return next(shape for name, shape in inputs.items() if name.startswith(f"{path}."))


@torch.no_grad()
def latency(model: nn.Module, x: Tensor, table: LatencyTable | None = None) -> Latency:
    """Milliseconds of a model on a batch by a latency table, dense and at its gates' hard decisions.

    Args:
        model: gated or plain; run once in its current mode if gated.
        x: float[N, C, H, W].
        table: default: the one in force here, which `ddi profile` measures.

    Raises:
        ValueError: the table has no row of the weights' dtype.

    Example:
        >>> model = ddi.create_model("cifar_resnet20", gates=ddi.DDIConfig())
        >>> ddi.latency(model, torch.randn(1, 3, 32, 32)).dense
    """
    from .convert import is_converted
    from .record import record

    table = current_table() if table is None else table
    n = x.shape[0]
    dense, inputs = {}, {}
    for path, conv, shape in _conv_inputs(model, x):
        estimate, factor = _estimate(conv, shape, table)
        dense[path] = estimate.dense_ms * factor * n
        inputs[path] = shape
    total = sum(dense.values())
    if not is_converted(model):
        return Latency(total, total, {}, torch.full((n,), total / n))
    gated = {path: module for path, module in model.named_modules() if hasattr(module, "site")}
    ungated = sum(ms for path, ms in dense.items() if not path.startswith(tuple(f"{p}." for p in gated)))
    shapes = {module.site.name: (module, _first_shape(inputs, path)) for path, module in gated.items()}
    with record(model) as rec:
        model(x)
    parts = {b.name: block_ms(*shapes[b.name], b.decision, table) for b in rec.passes[0]}
    per_sample = ungated / n + torch.stack(list(parts.values())).sum(0)
    blocks = {name: part.sum().item() for name, part in parts.items()}
    return Latency(total, per_sample.sum().item(), blocks, per_sample)
