"""gated_conv2d as an implicit GEMM whose K loop and N tiles follow the open chunks of each sample.

x, residual and y are [N, H, W, C] in memory (channels_last). A first small kernel sorts the chunks
of each sample, open ones first; nothing of it reaches the host, so that calls can be captured in a
CUDA graph and replayed with other masks. Every tile belongs to one sample, loops over its open
input chunks only, and writes its output once: a tile of closed chunks is written without a loop.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ddi_kernels.checks import Geometry, memory_format_of
from ddi_kernels.gated_conv2d import check_args
from ddi_kernels.triton.implicit_gemm import (
    INTERPRET,
    accumulate,
    channels_last,
    gpu_of,
    relu,
)
from ddi_kernels.triton.tiles import (
    Tile,
    gate_chunk,
    gated_conv2d_unsupported,
    is_exact,
    largest_chunk,
    pick_tile,
)


@triton.jit
def _sort_chunks(
    mask_ptr, list_ptr, count_ptr, n, groups, chunks, PER_GROUP: tl.constexpr, BLOCK: tl.constexpr
):
    """list[n] = the open chunks ascending, the closed ones, one pad entry; count[n] = the open ones."""
    c = tl.arange(0, BLOCK)
    real = c < chunks
    bits = tl.load(mask_ptr + n * groups + c // PER_GROUP, mask=real, other=0)
    is_open = (bits != 0).to(tl.int32)
    before = tl.cumsum(is_open, 0) - is_open
    count = tl.sum(is_open, 0)
    place = tl.where(is_open != 0, before, count + c - before)
    row = list_ptr + n * (chunks + 1)
    tl.store(row + place, c, mask=real)
    tl.store(row + chunks, 0)
    tl.store(count_ptr + n, count)


@triton.jit
def _gated_conv2d_plan_kernel(
    in_mask_ptr, in_list_ptr, in_count_ptr, in_groups, in_chunks,
    out_mask_ptr, out_list_ptr, out_count_ptr, out_groups, out_chunks,
    IN_PER_GROUP: tl.constexpr, IN_BLOCK: tl.constexpr,
    OUT_PER_GROUP: tl.constexpr, OUT_BLOCK: tl.constexpr,
):  # fmt: skip
    """Grid (N, 2): the input list of a sample, then its output list."""
    n = tl.program_id(0)
    if tl.program_id(1) == 0:
        if in_mask_ptr is not None:
            _sort_chunks(
                in_mask_ptr, in_list_ptr, in_count_ptr, n, in_groups, in_chunks, IN_PER_GROUP, IN_BLOCK
            )
    else:
        if out_mask_ptr is not None:
            _sort_chunks(
                out_mask_ptr, out_list_ptr, out_count_ptr, n, out_groups, out_chunks, OUT_PER_GROUP, OUT_BLOCK
            )


@triton.jit
def _gated_conv2d_fwd_kernel(
    x_ptr, w_ptr, bias_ptr, scale_ptr, residual_ptr, y_ptr,
    in_list_ptr, in_count_ptr, out_list_ptr, out_count_ptr,
    N, H, W, OH, OW, CI, CO, in_chunks, out_chunks, tiles, scale_groups, scale_group_size,
    KH: tl.constexpr, KW: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr,
    PH: tl.constexpr, PW: tl.constexpr, DH: tl.constexpr, DW: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, CHUNK: tl.constexpr,
    RELU: tl.constexpr, EXACT: tl.constexpr, UP: tl.constexpr,
):  # fmt: skip
    """Grid N * tiles * ceil(out_chunks * CHUNK / BN), output tiles slowest: open ones start first."""
    PER_TILE: tl.constexpr = BN // CHUNK
    pid = tl.program_id(0)
    tile = pid % tiles
    n = pid // tiles % N
    first = pid // (tiles * N) * PER_TILE

    j = tl.arange(0, BN)
    slot = first + j // CHUNK
    chunk = slot
    out_count = out_chunks
    if out_list_ptr is not None:
        chunk = tl.load(out_list_ptr + n * (out_chunks + 1) + slot, mask=slot < out_chunks, other=0)
        out_count = tl.load(out_count_ptr + n)
    cols = tl.max_contiguous(tl.multiple_of(chunk * CHUNK, CHUNK) + j % CHUNK, CHUNK)
    real = (slot < out_chunks) & (cols < CO)
    is_open = real & (slot < out_count)

    steps = in_chunks
    in_list = in_list_ptr
    if in_list_ptr is not None:
        steps = tl.load(in_count_ptr + n)
        in_list = in_list_ptr + n * (in_chunks + 1)
    steps = tl.where(first < out_count, steps, 0)

    p = tile * BM + tl.arange(0, BM)
    rows_ok = p < OH * OW
    x_ptrs = x_ptr + n.to(tl.int64) * H * W * CI + tl.zeros((BM,), tl.int32)
    acc = accumulate(
        x_ptrs, rows_ok, p // OW * SH - PH, p % OW * SW - PW, w_ptr, cols, is_open, in_list, steps,
        H, W, CI, KH, KW, DH, DW, BM, BN, BK, EXACT, UP,
    )  # fmt: skip
    if bias_ptr is not None:
        acc += tl.load(bias_ptr + cols, mask=is_open, other=0.0).to(tl.float32)[None, :]
    if scale_ptr is not None:
        scale = tl.load(scale_ptr + n * scale_groups + cols // scale_group_size, mask=is_open, other=0.0)
        acc = acc * scale.to(tl.float32)[None, :]
    # By selection: a closed column may have met NaN or infinity in an open input.
    acc = tl.where(is_open[None, :], acc, 0.0)
    offsets = (n.to(tl.int64) * OH * OW + p)[:, None] * CO + cols[None, :]
    ok = rows_ok[:, None] & real[None, :]
    if residual_ptr is not None:
        acc += tl.load(residual_ptr + offsets, mask=ok, other=0.0).to(tl.float32)
    if RELU:
        acc = relu(acc)
    tl.store(y_ptr + offsets, acc.to(y_ptr.dtype.element_ty), mask=ok)


def launch(
    x: Tensor, weight: Tensor, bias: Tensor | None, packed: Tensor | None, in_mask: Tensor | None,
    out_mask: Tensor | None, scale: Tensor | None, residual: Tensor | None, geometry: Any,
) -> Tensor:  # fmt: skip
    """`gated_conv2d` on x's device, to the schema; `packed` is an order of the CPU's, not used here.

    Raises:
        RuntimeError: there is no kernel for these arguments.
    """
    args = (x, weight, bias, packed, in_mask, out_mask, scale, residual, geometry)
    g = Geometry(*geometry)
    n, co, oh, ow = check_args(*args)
    reason = gated_conv2d_unsupported(*args)
    if reason is not None:
        raise RuntimeError(f"gated_conv2d: no Triton kernel for this call: {reason}")
    y = torch.empty((n, co, oh, ow), dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    if n > 0:
        in_chunk = largest_chunk(x.dtype, x.shape[1])
        if in_mask is not None:
            in_chunk = gate_chunk(g.in_group_size, x.shape[1], in_chunk)
        tile = pick_tile(oh * ow, co, in_chunk, x.dtype, gpu_of(x))
        out_chunk = tile.bn if out_mask is None else gate_chunk(g.out_group_size, co, 64)
        with torch.cuda.device_of(x):
            lists = _plan(x, in_mask, g.in_group_size, in_chunk, co, out_mask, g.out_group_size, out_chunk)
            _convolve(args, y, tile, out_chunk, lists)
    return y.contiguous(memory_format=memory_format_of(x))


_Lists = tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]


def _plan(
    x: Tensor, in_mask: Tensor | None, in_group_size: int, in_chunk: int,
    co: int, out_mask: Tensor | None, out_group_size: int, out_chunk: int,
) -> _Lists:  # fmt: skip
    """Sorted chunks and their count, of the inputs and of the outputs; None where there is no mask."""
    lists: list[Tensor | None] = []
    arguments: list[Any] = []
    sizes: list[int] = []
    for mask, channels, group_size, chunk in (
        (in_mask, x.shape[1], in_group_size, in_chunk),
        (out_mask, co, out_group_size, out_chunk),
    ):
        if mask is None:
            lists += [None, None]
            arguments += [None, None, None, 1, 1]
            sizes += [1, 1]
            continue
        chunks = triton.cdiv(channels, chunk)
        order = torch.empty((x.shape[0], chunks + 1), dtype=torch.int32, device=x.device)
        count = torch.empty((x.shape[0],), dtype=torch.int32, device=x.device)
        lists += [order, count]
        arguments += [mask.contiguous().view(torch.uint8), order, count, mask.shape[1], chunks]
        # A single gate opens all chunks, also where its group size is no multiple of the chunk.
        sizes += [chunks if mask.shape[1] == 1 else group_size // chunk, triton.next_power_of_2(chunks)]
    if in_mask is not None or out_mask is not None:
        _gated_conv2d_plan_kernel[(x.shape[0], 2)](*arguments, *sizes)
    return tuple(lists)  # type: ignore[return-value]


def _convolve(args: tuple[Any, ...], y: Tensor, tile: Tile, out_chunk: int, lists: _Lists) -> None:
    x, weight, bias, _, _, _, scale, residual, geometry = args
    g = Geometry(*geometry)
    n, co, oh, ow = y.shape
    ci, h, w = x.shape[1:]
    tiles = triton.cdiv(oh * ow, tile.bm)
    out_chunks = triton.cdiv(co, out_chunk)
    _gated_conv2d_fwd_kernel[(n * tiles * triton.cdiv(out_chunks * out_chunk, tile.bn),)](
        channels_last(x), channels_last(weight),
        None if bias is None else bias.contiguous(),
        None if scale is None else scale.contiguous(),
        None if residual is None else channels_last(residual),
        y, *lists,
        n, h, w, oh, ow, ci, co, triton.cdiv(ci, tile.bk), out_chunks, tiles,
        1 if scale is None else scale.shape[1], g.out_group_size,
        *weight.shape[2:], *g.stride, *g.padding, *g.dilation,
        tile.bm, tile.bn, tile.bk, out_chunk,
        RELU=bool(g.relu), EXACT=is_exact(x.dtype), UP=INTERPRET,
        num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
