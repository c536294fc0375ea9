"""Gated convolutions, residual blocks and dense layers against dense cuDNN, in bfloat16 and channels_last."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ddi_kernels import (
    current_backend,
    gated_basic_block,
    gated_bottleneck,
    gated_conv2d,
    gated_dense_layer_,
    skip_conv2d_,
)

from . import graphs
from .graphs import (
    DTYPE,
    Filter,
    Masks,
    Step,
    choices,
    dense_chain,
    images,
    new_filter,
    realised,
    relative_error,
    replayed,
    row,
    times_of,
)

KEEPS = (1.0, 0.75, 0.5, 0.25)
GROWTH, MIDDLE = 32, 128  # of DenseNet-121


def _group(channels: int) -> int:
    return 32 if channels > 64 else 16  # four groups at least, so that every share exists


def _opened(mask: Tensor, group: int) -> Tensor:
    return mask.repeat_interleave(group, 1)[:, :, None, None]


def _exact_block(x: Tensor, filters: list[Filter], masks: list[Tensor], group: int) -> Tensor:
    """relu(F(x) + x) in float32, with what the masks close left out of the interiors."""
    h = x.float()
    for i, (weight, bias) in enumerate(filters):
        h = F.conv2d(h, weight.float(), bias.float(), padding=weight.shape[2] // 2)
        if i < len(filters) - 1:
            h = h.relu() * (_opened(masks[i], group) if masks else 1)
    return (h + x.float()).relu()


def block_filters(kind: str, channels: int) -> list[Filter]:
    """A basic block on this many channels, or a bottleneck four times as wide outside."""
    if kind == "basic":
        return [new_filter(channels, channels, 3) for _ in range(2)]
    wide = 4 * channels
    return [new_filter(channels, wide, 1), new_filter(channels, channels, 3), new_filter(wide, channels, 1)]


def conv_rows(channels: int, side: int, n: int) -> Iterator[dict[str, Any]]:
    """relu(conv3x3 + bias), channels gated on both sides."""
    xs, (weight, bias) = images(n, channels, side), new_filter(channels, channels, 3)
    dense, group = times_of(dense_chain(xs, [(weight, bias)])), _group(channels)
    for keep in KEEPS:
        masks = Masks([choices(n, channels // group, keep) for _ in range(2)])

        def run(i: int, masks: Masks = masks) -> Tensor:
            return gated_conv2d(
                xs[i], weight, bias, in_mask=masks.now[i][0], out_mask=masks.now[i][1], padding=1,
                in_group_size=group, out_group_size=group, activation="relu",
            )  # fmt: skip

        timed = replayed(run, masks.refresh)
        gates = [_opened(mask, group) for mask in masks.now[0]]
        exact = F.conv2d(xs[0].float() * gates[0], weight.float(), bias.float(), padding=1).relu() * gates[1]
        yield row(f"conv3x3 C{channels} H{side}", current_backend(), n, timed, dense) | {
            "keep": f"{keep}x{keep}",
            "keep_channels": keep,
            "keep_layers": 1.0,
            "group_size": group,
            "max_rel_err": relative_error(run(0), exact),
            **realised(timed, dense, 1 / (masks.share(0) * masks.share(1))),
        }


def gated_block_rows(kind: str, channels: int, side: int, n: int) -> Iterator[dict[str, Any]]:
    """A residual block whose interiors are gated, as one operator."""
    filters = block_filters(kind, channels)
    xs, group = images(n, filters[0][0].shape[1], side), _group(channels)
    dense = times_of(dense_chain(xs, filters))
    convs = [t for f in filters for t in f]
    macs = [weight.numel() for weight, _ in filters]
    for keep in KEEPS:
        masks = Masks([choices(n, channels // group, keep) for _ in filters[1:]])

        def run(i: int, masks: Masks = masks) -> Tensor:
            now = masks.now[i]
            if kind == "basic":
                return gated_basic_block(xs[i], *convs, mask=now[0], group_size=group)[0]
            return gated_bottleneck(
                xs[i], *convs, mask1=now[0], mask2=now[1], group_size1=group, group_size2=group
            )[0]

        timed = replayed(run, masks.refresh)
        share = masks.share(0)
        costs = (1, 1) if kind == "basic" else (1, share, 1)
        gated = share * sum(m * cost for m, cost in zip(macs, costs, strict=True))
        yield row(f"{kind} block C{channels} H{side}, channels", "triton", n, timed, dense) | {
            "keep": f"{keep}",
            "keep_channels": keep,
            "keep_layers": 1.0,
            "group_size": group,
            "max_rel_err": relative_error(run(0), _exact_block(xs[0], filters, masks.now[0], group)),
            **realised(timed, dense, sum(macs) / gated),
        }


def skip_rows(kind: str, channels: int, side: int, n: int) -> Iterator[dict[str, Any]]:
    """A residual block that samples skip, in place."""
    filters = block_filters(kind, channels)
    xs = images(n, filters[0][0].shape[1], side)
    fresh = xs[0].clone()
    scratch = [images(n, weight.shape[0], side)[0] for weight, _ in filters[:-1]]
    dense = times_of(dense_chain(xs, filters))
    for keep in KEEPS:
        if round(keep * n) < 1 and keep < 1:
            continue
        masks = Masks([choices(1, n, keep)[:, 0]])

        def refresh(replay: int, masks: Masks = masks) -> None:
            masks.refresh(replay)
            for x in xs:
                x.copy_(fresh)  # in place, so values would grow from replay to replay

        def run(i: int, masks: Masks = masks) -> None:
            h, kept = xs[i], masks.now[i][0]
            for out, f in zip((*scratch, xs[i]), filters, strict=True):
                skip_conv2d_(
                    out,
                    h,
                    *f,
                    keep=kept,
                    padding=f[0].shape[2] // 2,
                    accumulate=out is xs[i],
                    activation="relu",
                )
                h = out

        timed = replayed(run, refresh)
        refresh(0)
        run(0)
        kept = masks.now[0][0][:, None, None, None]
        exact = torch.where(kept, _exact_block(fresh, filters, [], 1), fresh.float())
        yield row(f"{kind} block C{channels} H{side}, samples", "triton", n, timed, dense) | {
            "keep": f"{keep}",
            "keep_channels": 1.0,
            "keep_layers": keep,
            "max_rel_err": relative_error(xs[0], exact),
            **realised(timed, dense, 1 / masks.share(0)),
        }


def dense_layer_rows(inputs: int, side: int, n: int) -> Iterator[dict[str, Any]]:
    """A DenseNet layer into its block's buffer; its inputs come in layers of GROWTH, open or closed."""
    buffers = images(n, inputs + GROWTH, side)
    first, second = new_filter(MIDDLE, inputs, 1), new_filter(GROWTH, MIDDLE, 3)
    scale, shift = (torch.randn(inputs, device=graphs.DEVICE).to(DTYPE) for _ in range(2))

    def prologue(x: Tensor) -> Tensor:
        return torch.addcmul(shift[:, None, None], x, scale[:, None, None]).relu()

    def layer(prologue: Callable[[Tensor], Tensor]) -> Step:
        def run(i: int) -> None:
            h = F.conv2d(prologue(buffers[i][:, :inputs]), *first).relu_()
            buffers[i][:, inputs:] = F.conv2d(h, *second, padding=1)

        return run

    dense = times_of({"cudnn_graph": layer(prologue), "cudnn_graph_fused": layer(torch.compile(prologue))})
    for keep in KEEPS:
        masks = Masks([choices(n, inputs // GROWTH, keep).repeat_interleave(GROWTH, 2)])

        def run(i: int, masks: Masks = masks) -> None:
            gated_dense_layer_(buffers[i], scale, shift, *first, *second, in_mask=masks.now[i][0])

        timed = replayed(run, masks.refresh)
        run(0)
        x = (
            buffers[0][:, :inputs].float() * scale.float()[:, None, None] + shift.float()[:, None, None]
        ).relu()
        h = F.conv2d(x * _opened(masks.now[0][0], 1), *(t.float() for t in first)).relu()
        exact = F.conv2d(h, *(t.float() for t in second), padding=1)
        macs = MIDDLE * inputs, 9 * MIDDLE * GROWTH
        yield row(f"dense layer C{inputs} H{side}", "triton", n, timed, dense) | {
            "keep": f"{keep}x1",
            "keep_channels": keep,
            "keep_layers": 1.0,
            "group_size": GROWTH,
            "max_rel_err": relative_error(buffers[0][:, inputs:], exact),
            **realised(timed, dense, sum(macs) / (macs[0] * masks.share(0) + macs[1])),
        }
