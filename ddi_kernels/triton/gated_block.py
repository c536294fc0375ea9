"""The gated residual blocks as a chain of convolution kernels, interiors compact, nothing read by the host.

With masks each convolution is that of gated_conv2d, one sample a tile: closed channels are written and read
nowhere, and tiles of skipped samples exit, or copy them in the last convolution. Where only samples are
skipped it is that of skip_conv2d_, whose tiles are packed over the kept samples. The last convolution adds
up its outputs tile by tile as it writes them, so that the next gate's means cost no second read of y; the
sums are added in a fixed order, and results do not move between runs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from ddi_kernels.checks import memory_format_of
from ddi_kernels.geometry import output_size
from ddi_kernels.ops.block_parts import Residual
from ddi_kernels.tiles.tiles import Tile, largest_chunk
from ddi_kernels.triton import gated_conv2d, skip_conv2d
from ddi_kernels.triton.gated_conv2d import ChunkList, Filter, gate_on, list_chunks
from ddi_kernels.triton.implicit_gemm import channels_last
from ddi_kernels.triton.skip_conv2d import SampleList, list_samples

_BLOCK = 128

Dense = Callable[[], tuple[Tensor, Tensor]]  # y and pooled of a call


class InteriorGate(NamedTuple):
    """What follows an inner convolution: mask and scale over its channel groups."""

    mask: Tensor | None
    scale: Tensor | None
    group_size: int


@triton.jit
def _pooled_means_kernel(
    sums_ptr, list_ptr, keep_ptr, x_pooled_ptr, pooled_ptr, P, CO, tiles, BM, BLOCK: tl.constexpr
):
    """Grid (N, ceil(CO / BLOCK)): pooled = the sums of a sample's tiles over P, or x_pooled if skipped.

    With a list, tiles are packed over its samples, and `tiles` is how many of them one meets.
    """
    i = tl.program_id(0)
    cols = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    real = cols < CO
    total = tl.zeros((BLOCK,), tl.float32)
    n = i
    if list_ptr is None:
        for tile in range(0, tiles):
            row = i.to(tl.int64) * tiles + tile
            total += tl.load(sums_ptr + row * CO + cols, mask=real, other=0.0)
    else:
        n = tl.load(list_ptr + i)
        for tile in range(i * P // BM, (i * P + P - 1) // BM + 1):
            row = i.to(tl.int64) + tile * tiles - tile * BM // P
            total += tl.load(sums_ptr + row * CO + cols, mask=real, other=0.0)
    mean = total / P
    if x_pooled_ptr is not None:
        passed_on = tl.load(x_pooled_ptr + n.to(tl.int64) * CO + cols, mask=real, other=0.0)
        mean = tl.where(tl.load(keep_ptr + n) != 0, mean, passed_on)
    tl.store(pooled_ptr + n.to(tl.int64) * CO + cols, mean, mask=real)


def launch_block(
    r: Residual, filters: Sequence[Filter], gates: Sequence[InteriorGate], dense: Dense
) -> tuple[Tensor, Tensor]:
    """A residual block of odd filters that keep the image's size but for strides.

    Args:
        r: all of the block outside its residual branch.
        filters: the branch's convolutions.
        gates: one behind each of them but the last.
        dense: runs the block in plain torch, whose convolutions are the faster ones where nothing is saved.

    Returns:
        y, pooled: as the blocks' operators return them.
    """
    if _nothing_to_save(r, gates):
        return dense()
    x = channels_last(r.x)
    y = _image(x, filters[-1].weight.shape[0], r.stride)
    pooled = torch.empty((y.shape[0], y.shape[1] if r.pool else 0), dtype=torch.float32, device=x.device)
    if x.shape[0] == 0:
        return y.contiguous(memory_format=memory_format_of(r.x)), pooled
    shortcut = x
    if r.shortcut_weight is not None:
        weight = channels_last(r.shortcut_weight)
        shortcut = channels_last(F.conv2d(x, weight, r.shortcut_bias, r.stride))
    _run(r, x, shortcut, filters, gates, y, pooled)
    return y.contiguous(memory_format=memory_format_of(r.x)), pooled


def launch_block_(
    r: Residual, filters: Sequence[Filter], gates: Sequence[InteriorGate], dense: Dense
) -> Tensor:
    """The same with y in the place of r.x, which is channels_last and keeps its shape; returns pooled.

    A tile of the last convolution reads its own pixels of x alone, and nothing else reads x any more.
    """
    if _nothing_to_save(r, gates):
        y, pooled = dense()
        r.x.copy_(y)
        return pooled
    n, channels = r.x.shape[:2]
    pooled = torch.empty((n, channels if r.pool else 0), dtype=torch.float32, device=r.x.device)
    if n > 0:
        _run(r, r.x, r.x, filters, gates, r.x, pooled)
    return pooled


def _nothing_to_save(r: Residual, gates: Sequence[InteriorGate]) -> bool:
    return r.keep is None and all(gate.mask is None for gate in gates)


def _run(
    r: Residual, x: Tensor, shortcut: Tensor, filters: Sequence[Filter], gates: Sequence[InteriorGate],
    y: Tensor, pooled: Tensor,
) -> None:  # fmt: skip
    with torch.cuda.device_of(x):
        if any(g.mask is not None or g.scale is not None for g in gates):
            _run_gated(r, x, shortcut, filters, gates, y, pooled)
        else:
            _run_skipping(r, x, shortcut, filters, y, pooled)


def _leaves_skipped(r: Residual, y: Tensor) -> bool:
    """Whether skipped samples already are where they belong, and their means are known or not asked for."""
    return y is r.x and r.keep is not None and not (r.pool and r.x_pooled is None)


def _image(x: Tensor, channels: int, stride: int) -> Tensor:
    """Unwritten output of a convolution of x, channels_last."""
    # A filter of 3x3 with padding 1 leaves the size that one of 1x1 does.
    shape = (len(x), channels, *output_size(x.shape[2:], (1, 1), (stride, stride)))
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


def _run_gated(
    r: Residual, x: Tensor, shortcut: Tensor, filters: Sequence[Filter], gates: Sequence[InteriorGate],
    y: Tensor, pooled: Tensor,
) -> None:  # fmt: skip
    *inner, last = filters
    listed = []
    for f, gate in zip(inner, gates, strict=True):
        channels = f.weight.shape[0]
        listed.append(gate_on(gate.mask, gate.group_size, channels, largest_chunk(x.dtype, channels)))
    lists = list_chunks(x, *listed, *[None] * (2 - len(listed)))
    h, before = x, None
    for f, gate, after in zip(inner, gates, lists, strict=False):
        out = _image(h, _width(f.weight.shape[0], after), f.stride[0])
        gated_conv2d.convolve(
            h, f, out, before, after, gated_conv2d.pick_tile_for(out, h, f.weight, before),
            relu=True, scale=gate.scale, scale_group_size=gate.group_size, keep=r.keep,
            in_compact=before is not None, out_compact=after is not None,
        )  # fmt: skip
        h, before = out, after
    tile = gated_conv2d.pick_tile_for(y, h, last.weight, before)
    sums = _sums(y, y.shape[0], triton.cdiv(y.shape[2] * y.shape[3], tile.bm)) if r.pool else None
    gated_conv2d.convolve(
        h, last, y, before, None, tile,
        relu=True, scale=None if r.keep_scale is None else r.keep_scale[:, None], scale_group_size=y.shape[1],
        residual=shortcut, keep=r.keep, leave=_leaves_skipped(r, y), sums=sums,
        in_compact=before is not None,
    )  # fmt: skip
    if sums is not None:
        _pool(r, y, sums, None, tile, pooled)


def _width(channels: int, chunks: ChunkList | None) -> int:
    """Channels that an interior has room for: compact, the last chunk may be short in any place."""
    return channels if chunks is None else triton.cdiv(channels, chunks.chunk) * chunks.chunk


def _run_skipping(
    r: Residual, x: Tensor, shortcut: Tensor, filters: Sequence[Filter], y: Tensor, pooled: Tensor
) -> None:
    *inner, last = filters
    samples = list_samples(r.keep)
    h = x
    for f in inner:
        out = _image(h, f.weight.shape[0], f.stride[0])
        tile = skip_conv2d.pick_tile_for(out, h, f.weight)
        skip_conv2d.convolve(h, f, out, samples, tile, relu=True)
        h = out
    tile = skip_conv2d.pick_tile_for(y, h, last.weight)
    pixels = y.shape[2] * y.shape[3]
    sums = None
    if r.pool:
        sums = _sums(y, triton.cdiv(y.shape[0] * pixels, tile.bm), triton.cdiv(tile.bm - 1, pixels) + 1)
    skip_conv2d.convolve(
        h, last, y, samples, tile,
        relu=True, scale=r.keep_scale, residual=shortcut, copy=not _leaves_skipped(r, y), sums=sums,
    )  # fmt: skip
    if sums is not None:
        _pool(r, y, sums, samples, tile, pooled)


def _sums(y: Tensor, rows: int, tiles: int) -> Tensor:
    return torch.empty((rows, tiles, y.shape[1]), dtype=torch.float32, device=y.device)


def _pool(
    r: Residual, y: Tensor, sums: Tensor, samples: SampleList | None, tile: Tile, pooled: Tensor
) -> None:
    pixels = y.shape[2] * y.shape[3]
    if r.keep is None or r.x_pooled is None:
        mean_of_sums(sums, pooled, pixels, samples, tile.bm)
    else:
        skipped = (r.keep.contiguous().view(torch.uint8), r.x_pooled.contiguous())
        mean_of_sums(sums, pooled, pixels, samples, tile.bm, *skipped)


def mean_of_sums(
    sums: Tensor, pooled: Tensor, pixels: int, samples: SampleList | None = None, bm: int = 1,
    keep: Tensor | None = None, x_pooled: Tensor | None = None,
) -> None:  # fmt: skip
    """Launches the kernel that makes means, float32[N, C], of tiles' sums.

    Args:
        sums: float32[N, tiles, C]; with `samples`, whose pixels tiles of bm rows are packed over,
            float32[row tiles, samples of a tile, C].
        pooled: float32[N, C]; written.
        pixels: of a sample.
        keep, x_pooled: uint8[N] and float32[N, C]: means that skipped samples get instead.
    """
    n, channels = pooled.shape
    _pooled_means_kernel[(n, triton.cdiv(channels, _BLOCK))](
        sums, None if samples is None else samples.order, keep, x_pooled, pooled,
        pixels, channels, sums.shape[1], bm, BLOCK=_BLOCK,
    )  # fmt: skip
