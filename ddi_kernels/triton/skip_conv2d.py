"""skip_conv2d_ as an implicit GEMM over the pixels of the kept samples alone.

x and out are [N, H, W, C] in memory (channels_last). A first kernel lists the kept samples on the
device; the rows of the GEMM are their pixels, packed without gaps, since all samples share the
weights. The grid is that of a full batch, and blocks past the last kept pixel exit at once: a
skipped sample moves no byte, and calls can be captured in a CUDA graph.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ddi_kernels.skip_conv2d import check_args
from ddi_kernels.triton.implicit_gemm import (
    INTERPRET,
    accumulate,
    channels_last,
    gpu_of,
    relu,
)
from ddi_kernels.triton.tiles import is_exact, largest_chunk, pick_tile, skip_conv2d_unsupported


@triton.jit
def _skip_conv2d_plan_kernel(keep_ptr, list_ptr, count_ptr, N, BLOCK: tl.constexpr):
    """One block: list = the kept samples ascending, count = how many."""
    count = 0
    for start in range(0, N, BLOCK):
        n = start + tl.arange(0, BLOCK)
        kept = (tl.load(keep_ptr + n, mask=n < N, other=0) != 0).to(tl.int32)
        tl.store(list_ptr + count + tl.cumsum(kept, 0) - kept, n, mask=kept != 0)
        count += tl.sum(kept, 0)
    tl.store(count_ptr, count)


@triton.jit
def _skip_conv2d_fwd_kernel(
    x_ptr, w_ptr, bias_ptr, scale_ptr, out_ptr, list_ptr, count_ptr,
    H, W, OH, OW, CI, CO, col_tiles,
    KH: tl.constexpr, KW: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr,
    PH: tl.constexpr, PW: tl.constexpr, DH: tl.constexpr, DW: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    ACCUMULATE: tl.constexpr, RELU: tl.constexpr, EXACT: tl.constexpr, UP: tl.constexpr,
):  # fmt: skip
    """Grid ceil(N * OH * OW / BM) * col_tiles, the column tiles of the same rows side by side."""
    pid = tl.program_id(0)
    start = pid // col_tiles * BM
    rows = tl.load(count_ptr) * (OH * OW)
    if start >= rows:
        return
    row = start + tl.arange(0, BM)
    rows_ok = row < rows
    n = tl.load(list_ptr + row // (OH * OW), mask=rows_ok, other=0).to(tl.int64)
    p = row % (OH * OW)
    cols = pid % col_tiles * BN + tl.arange(0, BN)
    cols_ok = cols < CO
    acc = accumulate(
        x_ptr + n * H * W * CI, rows_ok, p // OW * SH - PH, p % OW * SW - PW, w_ptr, cols, cols_ok,
        None, tl.cdiv(CI, BK), H, W, CI, KH, KW, DH, DW, BM, BN, BK, EXACT, UP,
    )  # fmt: skip
    if bias_ptr is not None:
        acc += tl.load(bias_ptr + cols, mask=cols_ok, other=0.0).to(tl.float32)[None, :]
    if scale_ptr is not None:
        acc = acc * tl.load(scale_ptr + n, mask=rows_ok, other=0.0).to(tl.float32)[:, None]
    out_ptrs = out_ptr + (n * OH * OW + p)[:, None] * CO + cols[None, :]
    ok = rows_ok[:, None] & cols_ok[None, :]
    if ACCUMULATE:
        acc += tl.load(out_ptrs, mask=ok, other=0.0).to(tl.float32)
    if RELU:
        acc = relu(acc)
    tl.store(out_ptrs, acc.to(out_ptr.dtype.element_ty), mask=ok)


def launch(
    out: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, keep: Tensor, scale: Tensor | None,
    stride: Any, padding: Any, dilation: Any, accumulate: bool, relu: bool,
) -> None:  # fmt: skip
    """`skip_conv2d_` on x's device, to the schema.

    Raises:
        RuntimeError: there is no kernel for these arguments.
    """
    args = (out, x, weight, bias, keep, scale, stride, padding, dilation, accumulate, relu)
    n, co, oh, ow = check_args(*args)
    reason = skip_conv2d_unsupported(*args)
    if reason is not None:
        raise RuntimeError(f"skip_conv2d_: no Triton kernel for this call: {reason}")
    if n == 0:
        return
    ci, h, w = x.shape[1:]
    tile = pick_tile(n * oh * ow, co, largest_chunk(x.dtype, ci), x.dtype, gpu_of(x))
    col_tiles = triton.cdiv(co, tile.bn)
    with torch.cuda.device_of(x):
        kept = torch.empty((n,), dtype=torch.int32, device=x.device)
        count = torch.empty((1,), dtype=torch.int32, device=x.device)
        block = min(1024, triton.next_power_of_2(n))
        _skip_conv2d_plan_kernel[(1,)](keep.contiguous().view(torch.uint8), kept, count, n, BLOCK=block)
        _skip_conv2d_fwd_kernel[(triton.cdiv(n * oh * ow, tile.bm) * col_tiles,)](
            channels_last(x), channels_last(weight),
            None if bias is None else bias.contiguous(),
            None if scale is None else scale.contiguous(),
            out, kept, count, h, w, oh, ow, ci, co, col_tiles,
            *weight.shape[2:], *stride, *padding, *dilation, tile.bm, tile.bn, tile.bk,
            ACCUMULATE=accumulate, RELU=relu, EXACT=is_exact(x.dtype), UP=INTERPRET,
            num_warps=tile.warps, num_stages=tile.stages,
        )  # fmt: skip
