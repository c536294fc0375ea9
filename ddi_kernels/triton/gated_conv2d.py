"""gated_conv2d as an implicit GEMM whose K loop and N tiles follow the open chunks of each sample.

x, residual and y are [N, H, W, C] in memory (channels_last). A first small kernel sorts the chunks
of each sample, open ones first; nothing of it reaches the host, so that calls can be captured in a
CUDA graph and replayed with other masks. Every tile belongs to one sample, loops over its open
input chunks only, and writes its output once: a tile of closed chunks is written without a loop.
Inside a block (triton/gated_block.py) outputs are compact: a sample's open chunks side by side, the
closed ones nowhere.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ddi_kernels.checks import Geometry, memory_format_of
from ddi_kernels.ops.gated_conv2d import check_args
from ddi_kernels.tiles.tiles import (
    Tile,
    gate_chunk,
    gated_conv2d_unsupported,
    is_exact,
    largest_chunk,
    pick_tile,
)
from ddi_kernels.tiles.tuned_tiles import shape_key, tuned_tile
from ddi_kernels.triton.implicit_gemm import INTERPRET, accumulate, channels_last, gpu_of, relu


@triton.jit
def _sort_chunks(
    mask_ptr, list_ptr, count_ptr, n, stride, chunks, PER_GROUP: tl.constexpr, BLOCK: tl.constexpr
):
    """list[n] = the open chunks ascending, the closed ones, one pad entry; count[n] = the open ones."""
    c = tl.arange(0, BLOCK)
    real = c < chunks
    bits = tl.load(mask_ptr + n * stride + c // PER_GROUP, mask=real, other=0)
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
    in_mask_ptr, in_list_ptr, in_count_ptr, in_stride, in_chunks,
    out_mask_ptr, out_list_ptr, out_count_ptr, out_stride, out_chunks,
    IN_PER_GROUP: tl.constexpr, IN_BLOCK: tl.constexpr,
    OUT_PER_GROUP: tl.constexpr, OUT_BLOCK: tl.constexpr,
):  # fmt: skip
    """Grid (N, 2): the input list of a sample, then its output list."""
    n = tl.program_id(0)
    if tl.program_id(1) == 0:
        if in_mask_ptr is not None:
            _sort_chunks(
                in_mask_ptr, in_list_ptr, in_count_ptr, n, in_stride, in_chunks, IN_PER_GROUP, IN_BLOCK
            )
    else:
        if out_mask_ptr is not None:
            _sort_chunks(
                out_mask_ptr, out_list_ptr, out_count_ptr, n, out_stride, out_chunks, OUT_PER_GROUP, OUT_BLOCK
            )


@triton.jit
def _gated_conv2d_fwd_kernel(
    x_ptr, w_ptr, bias_ptr, scale_ptr, residual_ptr, y_ptr,
    in_list_ptr, in_count_ptr, out_list_ptr, out_count_ptr, keep_ptr, sums_ptr,
    N, H, W, OH, OW, CI, CO, X_WIDTH, Y_WIDTH, in_chunks, out_chunks, tiles, scale_groups, scale_group_size,
    KH: tl.constexpr, KW: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr,
    PH: tl.constexpr, PW: tl.constexpr, DH: tl.constexpr, DW: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, CHUNK: tl.constexpr,
    IN_COMPACT: tl.constexpr, OUT_COMPACT: tl.constexpr, LEAVE: tl.constexpr,
    RELU: tl.constexpr, EXACT: tl.constexpr, UP: tl.constexpr,
):  # fmt: skip
    """Grid N * tiles * ceil(out_chunks * CHUNK / BN), output tiles slowest: open ones start first.

    A skipped sample (keep) is its residual; with LEAVE, or without a residual, it is not written.
    sums[N, tiles, CO] are the sums of y over the pixels of a tile.
    """
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
    if keep_ptr is not None:
        kept = tl.load(keep_ptr + n) != 0
        if LEAVE or residual_ptr is None:
            out_count = tl.where(kept, out_count, 0)
    if OUT_COMPACT or (keep_ptr is not None and (LEAVE or residual_ptr is None)):
        if first >= out_count:
            return
    cols = tl.max_contiguous(tl.multiple_of(chunk * CHUNK, CHUNK) + j % CHUNK, CHUNK)
    real = (slot < out_chunks) & (cols < CO)
    is_open = real & (slot < out_count)

    steps = in_chunks
    in_list = in_list_ptr
    if in_list_ptr is not None:
        steps = tl.load(in_count_ptr + n)
        in_list = in_list_ptr + n * (in_chunks + 1)
    steps = tl.where(first < out_count, steps, 0)
    if keep_ptr is not None and not LEAVE:  # else only kept ones are still here
        steps = tl.where(kept, steps, 0)

    p = tile * BM + tl.arange(0, BM)
    rows_ok = p < OH * OW
    x_ptrs = x_ptr + n.to(tl.int64) * H * W * X_WIDTH + tl.zeros((BM,), tl.int32)
    acc = accumulate(
        x_ptrs, rows_ok, p // OW * SH - PH, p % OW * SW - PW, w_ptr, cols, is_open, in_list, steps,
        H, W, CI, X_WIDTH, KH, KW, DH, DW, BM, BN, BK, IN_COMPACT, EXACT, UP,
    )  # fmt: skip
    if bias_ptr is not None:
        acc += tl.load(bias_ptr + cols, mask=is_open, other=0.0).to(tl.float32)[None, :]
    if scale_ptr is not None:
        scale = tl.load(scale_ptr + n * scale_groups + cols // scale_group_size, mask=is_open, other=0.0)
        acc = acc * scale.to(tl.float32)[None, :]
    # By selection: a closed column may have met NaN or infinity in an open input.
    acc = tl.where(is_open[None, :], acc, 0.0)
    at = cols
    stored = real
    if OUT_COMPACT:
        at = slot * CHUNK + j % CHUNK
        stored = is_open
    offsets = (n.to(tl.int64) * OH * OW + p)[:, None] * Y_WIDTH + at[None, :]
    ok = rows_ok[:, None] & stored[None, :]
    if residual_ptr is not None:
        residual = tl.load(residual_ptr + offsets, mask=ok, other=0.0)
        acc += residual.to(tl.float32)
    if RELU:
        acc = relu(acc)
    y = acc.to(y_ptr.dtype.element_ty)
    if keep_ptr is not None and not LEAVE:
        if residual_ptr is not None:
            y = tl.where(kept, y, residual)
    tl.store(y_ptr + offsets, y, mask=ok)
    if sums_ptr is not None:
        sums = tl.sum(tl.where(rows_ok[:, None], y.to(tl.float32), 0.0), 0)
        tl.store(sums_ptr + (n.to(tl.int64) * tiles + tile) * CO + cols, sums, mask=real)


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
        ci = x.shape[1]
        gates = (
            gate_on(in_mask, g.in_group_size, ci, largest_chunk(x.dtype, ci)),
            gate_on(out_mask, g.out_group_size, co, 64),
        )
        with torch.cuda.device_of(x):
            before, after = list_chunks(x, *gates)
            convolve(
                channels_last(x), Filter(weight, bias, g.stride, g.padding, g.dilation), y, before, after,
                pick_tile_for(y, x, weight, before),
                relu=bool(g.relu), scale=scale, scale_group_size=g.out_group_size,
                residual=None if residual is None else channels_last(residual),
            )  # fmt: skip
    return y.contiguous(memory_format=memory_format_of(x))


class Gate(NamedTuple):
    """A mask over channel groups, and the channels of a chunk, which it never splits."""

    mask: Tensor
    group_size: int
    channels: int
    chunk: int


class ChunkList(NamedTuple):
    """A gate's chunks as the kernels walk them, open ones first."""

    order: Tensor  # int32[N, chunks + 1]
    opened: Tensor  # int32[N]: how many are open
    chunk: int  # channels of each


class Filter(NamedTuple):
    """A convolution's own part."""

    weight: Tensor
    bias: Tensor | None
    stride: Any
    padding: Any
    dilation: Any = (1, 1)


def gate_on(mask: Tensor | None, group_size: int, channels: int, largest: int) -> Gate | None:
    """The gate with the largest chunk up to `largest`, None without a mask."""
    if mask is None:
        return None
    return Gate(mask, group_size, channels, gate_chunk(group_size, channels, largest))


def list_chunks(x: Tensor, *gates: Gate | None) -> list[ChunkList | None]:
    """The lists of two gates, one launch for both."""
    lists: list[ChunkList | None] = []
    arguments: list[Any] = []
    sizes: list[int] = []
    for gate in gates:
        if gate is None:
            lists.append(None)
            arguments += [None, None, None, 1, 1]
            sizes += [1, 1]
            continue
        chunks = triton.cdiv(gate.channels, gate.chunk)
        order = torch.empty((x.shape[0], chunks + 1), dtype=torch.int32, device=x.device)
        count = torch.empty((x.shape[0],), dtype=torch.int32, device=x.device)
        lists.append(ChunkList(order, count, gate.chunk))
        groups = gate.mask.shape[1]
        # One of a block's masks is a part of its gate's bits; a copy would be one more launch.
        mask = gate.mask if gate.mask.stride(1) == 1 else gate.mask.contiguous()
        arguments += [mask.view(torch.uint8), order, count, mask.stride(0), chunks]
        # A single gate opens all chunks, also where its group size is no multiple of the chunk.
        sizes += [chunks if groups == 1 else gate.group_size // gate.chunk, triton.next_power_of_2(chunks)]
    if any(gates):
        _gated_conv2d_plan_kernel[(x.shape[0], 2)](*arguments, *sizes)
    return lists


def pick_tile_for(y: Tensor, x: Tensor, weight: Tensor, before: ChunkList | None) -> Tile:
    """The tile of a convolution into y that walks these chunks of x."""
    step = largest_chunk(x.dtype, x.shape[1]) if before is None else before.chunk
    rows, co, gpu = y.shape[2] * y.shape[3], weight.shape[0], gpu_of(x)
    tuned = tuned_tile(shape_key("gated_conv2d", rows, co, step, weight[0, 0].numel(), x.dtype), gpu)
    return pick_tile(rows, co, step, x.dtype, gpu) if tuned is None else tuned


def convolve(
    x: Tensor, f: Filter, y: Tensor, before: ChunkList | None, after: ChunkList | None, tile: Tile, *,
    relu: bool, scale: Tensor | None, scale_group_size: int, residual: Tensor | None = None,
    keep: Tensor | None = None, leave: bool = False, sums: Tensor | None = None,
    in_compact: bool = False, out_compact: bool = False,
) -> None:  # fmt: skip
    """Launches the kernel into y; all images are channels_last, a compact one as wide as all its chunks.

    Args:
        x, f, y: the operands; f.weight has the channels of both sides.
        before, after: the open chunks of x and of y; None: all.
        tile: its step is the chunk of `before`.
        relu, scale, scale_group_size, residual: as in `gated_conv2d`.
        keep: bool[N]; a skipped sample is its residual, without one it is not written.
        leave: skipped samples are not written, although there is a residual.
        sums: float32[N, pixel tiles, Co], gets the sums of y over each tile.
        in_compact, out_compact: whether x and y are.
    """
    n, _, oh, ow = y.shape
    co, ci = f.weight.shape[:2]
    tiles = triton.cdiv(oh * ow, tile.bm)
    out_chunk = tile.bn if after is None else after.chunk
    out_chunks = triton.cdiv(co, out_chunk)
    lists = [t for c in (before, after) for t in ((None, None) if c is None else c[:2])]
    _gated_conv2d_fwd_kernel[(n * tiles * triton.cdiv(out_chunks * out_chunk, tile.bn),)](
        x, channels_last(f.weight),
        None if f.bias is None else f.bias.contiguous(),
        None if scale is None else scale.contiguous(),
        residual, y, *lists, None if keep is None else keep.contiguous().view(torch.uint8), sums,
        n, *x.shape[2:], oh, ow, ci, co, x.shape[1], y.shape[1],
        triton.cdiv(ci, tile.bk), out_chunks, tiles,
        1 if scale is None else scale.shape[1], scale_group_size,
        *f.weight.shape[2:], *f.stride, *f.padding, *f.dilation,
        tile.bm, tile.bn, tile.bk, out_chunk, in_compact, out_compact, leave,
        RELU=relu, EXACT=is_exact(x.dtype), UP=INTERPRET,
        num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
