"""skip_conv2d_ as an implicit GEMM over the pixels of the kept samples alone.

x and out are [N, H, W, C] in memory (channels_last). A first kernel lists the kept samples on the
device; the rows of the GEMM are their pixels, packed without gaps, since all samples share the
weights. The grid is that of a full batch, and blocks past the last kept pixel exit at once: a
skipped sample moves no byte, and calls can be captured in a CUDA graph. Inside a block
(triton/gated_block.py) the output is a tensor of its own, into which blocks past the kept pixels copy
those of the skipped samples.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ddi_kernels.ops.skip_conv2d import check_args
from ddi_kernels.tiles.tiles import Tile, is_exact, largest_chunk, pick_tile, skip_conv2d_unsupported
from ddi_kernels.tiles.tuned_tiles import shape_key, tuned_tile
from ddi_kernels.triton.gated_conv2d import Filter
from ddi_kernels.triton.implicit_gemm import INTERPRET, accumulate, channels_last, gpu_of, relu


@triton.jit
def _skip_conv2d_plan_kernel(keep_ptr, list_ptr, count_ptr, N, BLOCK: tl.constexpr):
    """One block: list = the kept samples ascending, behind them the skipped ones; count = the kept."""
    count = 0
    for start in range(0, N, BLOCK):
        n = start + tl.arange(0, BLOCK)
        real = n < N
        kept = (tl.load(keep_ptr + n, mask=real, other=0) != 0).to(tl.int32)
        before = count + tl.cumsum(kept, 0) - kept
        # Skipped ones from the end, in one pass: the number of kept ones is not known yet.
        tl.store(list_ptr + tl.where(kept != 0, before, N - 1 - (n - before)), n, mask=real)
        count += tl.sum(kept, 0)
    tl.store(count_ptr, count)


@triton.jit
def _skip_conv2d_fwd_kernel(
    x_ptr, w_ptr, bias_ptr, scale_ptr, residual_ptr, y_ptr, list_ptr, count_ptr, sums_ptr,
    N, H, W, OH, OW, CI, CO, col_tiles, segments,
    KH: tl.constexpr, KW: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr,
    PH: tl.constexpr, PW: tl.constexpr, DH: tl.constexpr, DW: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    COPY: tl.constexpr, RELU: tl.constexpr, EXACT: tl.constexpr, UP: tl.constexpr,
):  # fmt: skip
    """Grid ceil(N * OH * OW / BM) * col_tiles, the column tiles of the same rows side by side.

    With COPY a skipped sample is its residual. sums[row tiles, segments, CO] are the sums of y over the
    rows of a tile that belong to one sample: segment s is the s-th sample that the tile meets.
    """
    P = OH * OW
    pid = tl.program_id(0)
    start = pid // col_tiles * BM
    rows = tl.load(count_ptr) * P
    last = rows
    if COPY:
        last = N * P
    else:
        if start >= rows:
            return
    row = start + tl.arange(0, BM)
    rows_ok = row < last
    kept = row < rows
    n = tl.load(list_ptr + row // P, mask=rows_ok, other=0).to(tl.int64)
    p = row % P
    cols = pid % col_tiles * BN + tl.arange(0, BN)
    cols_ok = cols < CO
    acc = accumulate(
        x_ptr + n * H * W * CI, kept, p // OW * SH - PH, p % OW * SW - PW, w_ptr, cols, cols_ok,
        None, tl.where(start < rows, tl.cdiv(CI, BK), 0), H, W, CI, CI,
        KH, KW, DH, DW, BM, BN, BK, False, EXACT, UP,
    )  # fmt: skip
    if bias_ptr is not None:
        acc += tl.load(bias_ptr + cols, mask=cols_ok, other=0.0).to(tl.float32)[None, :]
    if scale_ptr is not None:
        acc = acc * tl.load(scale_ptr + n, mask=kept, other=0.0).to(tl.float32)[:, None]
    offsets = (n * P + p)[:, None] * CO + cols[None, :]
    ok = rows_ok[:, None] & cols_ok[None, :]
    if residual_ptr is not None:
        residual = tl.load(residual_ptr + offsets, mask=ok, other=0.0)
        acc += residual.to(tl.float32)
    if RELU:
        acc = relu(acc)
    y = acc.to(y_ptr.dtype.element_ty)
    if COPY:
        y = tl.where(kept[:, None], y, residual)
    tl.store(y_ptr + offsets, y, mask=ok)
    if sums_ptr is not None:
        sample = row // P - start // P
        sums_ptrs = sums_ptr + (pid // col_tiles).to(tl.int64) * segments * CO + cols
        for s in range(0, segments):
            mine = (sample == s) & rows_ok
            sums = tl.sum(tl.where(mine[:, None], y.to(tl.float32), 0.0), 0)
            tl.store(sums_ptrs + s * CO, sums, mask=cols_ok)


def launch_(
    out: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, keep: Tensor, scale: Tensor | None,
    stride: Any, padding: Any, dilation: Any, accumulate: bool, relu: bool,
) -> None:  # fmt: skip
    """`skip_conv2d_` on x's device, to the schema.

    Raises:
        RuntimeError: there is no kernel for these arguments.
    """
    args = (out, x, weight, bias, keep, scale, stride, padding, dilation, accumulate, relu)
    n = check_args(*args)[0]
    reason = skip_conv2d_unsupported(*args)
    if reason is not None:
        raise RuntimeError(f"skip_conv2d_: no Triton kernel for this call: {reason}")
    if n == 0:
        return
    with torch.cuda.device_of(x):
        convolve(
            channels_last(x), Filter(weight, bias, stride, padding, dilation), out, list_samples(keep),
            pick_tile_for(out, x, weight), relu=relu, scale=scale, residual=out if accumulate else None,
        )  # fmt: skip


class SampleList(NamedTuple):
    """The samples of a batch, kept ones first."""

    order: Tensor  # int32[N]
    kept: Tensor  # int32[1]: how many are


def list_samples(keep: Tensor) -> SampleList:
    """The list of bool[N], without waiting for the device."""
    order = torch.empty(keep.shape, dtype=torch.int32, device=keep.device)
    count = torch.empty((1,), dtype=torch.int32, device=keep.device)
    n = keep.shape[0]
    block = min(1024, triton.next_power_of_2(n))
    _skip_conv2d_plan_kernel[(1,)](keep.contiguous().view(torch.uint8), order, count, n, BLOCK=block)
    return SampleList(order, count)


def pick_tile_for(y: Tensor, x: Tensor, weight: Tensor) -> Tile:
    """The tile of a convolution of x into y."""
    rows, step, gpu = y.shape[0] * y.shape[2] * y.shape[3], largest_chunk(x.dtype, x.shape[1]), gpu_of(x)
    tuned = tuned_tile(shape_key("skip_conv2d", rows, y.shape[1], step, weight[0, 0].numel(), x.dtype), gpu)
    return pick_tile(rows, y.shape[1], step, x.dtype, gpu) if tuned is None else tuned


def convolve(
    x: Tensor, f: Filter, y: Tensor, samples: SampleList, tile: Tile, *, relu: bool,
    scale: Tensor | None = None, residual: Tensor | None = None, copy: bool = False,
    sums: Tensor | None = None,
) -> None:  # fmt: skip
    """Launches the kernel into y; all images are channels_last.

    Args:
        x, f, y: the operands.
        samples: which are computed.
        tile: from `pick_tile_for`.
        relu, scale: as in `skip_conv2d_`.
        residual: added; y itself to accumulate.
        copy: skipped samples of y become the residual's; else they are not written.
        sums: float32[row tiles, segments, Co], gets the sums of y over each tile, sample by sample.
    """
    n, co, oh, ow = y.shape
    col_tiles = triton.cdiv(co, tile.bn)
    _skip_conv2d_fwd_kernel[(triton.cdiv(n * oh * ow, tile.bm) * col_tiles,)](
        x, channels_last(f.weight),
        None if f.bias is None else f.bias.contiguous(),
        None if scale is None else scale.contiguous(),
        residual, y, *samples, sums,
        n, *x.shape[2:], oh, ow, x.shape[1], co, col_tiles, 1 if sums is None else sums.shape[1],
        *f.weight.shape[2:], *f.stride, *f.padding, *f.dilation, tile.bm, tile.bn, tile.bk,
        COPY=copy, RELU=relu, EXACT=is_exact(x.dtype), UP=INTERPRET,
        num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
