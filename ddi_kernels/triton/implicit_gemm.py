"""The inner loop of the convolution kernels: an implicit GEMM over channels_last images.

A tile is BM output pixels by BN output channels; a step multiplies BK input channels of one tap of
the filter. x is [N, H, W, CI] and the weight [CO, KH, KW, CI] in memory (what torch calls
channels_last), so that both operands are read along their contiguous channels in whole 16-byte
vectors. Gated, the loop walks the sample's list of open chunks: closed channels are never read.
Where x is *compact*, as between the convolutions of a block, its open chunks lie side by side in the
order of the list, and only the weight is read where the list says.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ddi_kernels.tiles.tiles import Gpu

# triton.jit decides when it decorates: with this set, kernels run on the CPU, step by step.
INTERPRET = bool(triton.knobs.runtime.interpret)


def channels_last(t: Tensor) -> Tensor:
    """t itself if it is dense in this format, else a copy that is."""
    return t.contiguous(memory_format=torch.channels_last)


def gpu_of(x: Tensor) -> Gpu:
    """The GPU that x is on; for the interpreter, one like an H100."""
    if not x.is_cuda:
        return Gpu(90, 227 * 1024)
    properties: Any = torch.cuda.get_device_properties(x.device)
    capability = 10 * properties.major + properties.minor
    return Gpu(capability, properties.shared_memory_per_block_optin, properties.name)


@triton.jit
def accumulate(
    x_ptrs, rows_ok, h0, w0,  # [BM]: the row's sample, whether the row exists, where its window starts
    w_ptr, cols, cols_ok,  # [BN]: output channels of the tile
    list_ptr, chunks,  # the chunks of input channels to walk, and how many
    H, W, CI, X_WIDTH,  # X_WIDTH: channels that x has room for, CI unless it is compact
    KH: tl.constexpr, KW: tl.constexpr, DH: tl.constexpr, DW: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    COMPACT: tl.constexpr, EXACT: tl.constexpr, UP: tl.constexpr,
):  # fmt: skip
    """float32[BM, BN]: the convolution's sums over the listed chunks, or over the first `chunks`."""
    TAPS: tl.constexpr = KH * KW
    k = tl.arange(0, BK)
    w_ptrs = w_ptr + cols * (TAPS * CI)
    # A row that does not exist has all its window above the image: one test less in the loop.
    h0 = tl.where(rows_ok, h0, -0x40000000)
    acc = tl.zeros((BM, BN), tl.float32)
    chunk = 0
    if list_ptr is not None:
        chunk = tl.load(list_ptr)
    for step in range(0, chunks * TAPS):
        if list_ptr is None:
            chunk = step // TAPS
        tap = step % TAPS
        c = chunk * BK + k
        at = c
        if COMPACT:
            at = step // TAPS * BK + k
        h = h0 + tap // KW * DH
        w = w0 + tap % KW * DW
        # Negative numbers are large ones without a sign.
        inside = (h.to(tl.uint32) < H) & (w.to(tl.uint32) < W)
        real = c < CI
        a = tl.load(
            x_ptrs[:, None] + ((h * W + w) * X_WIDTH)[:, None] + at[None, :],
            mask=inside[:, None] & real[None, :],
            other=0.0,
        )
        b = tl.load(
            w_ptrs[None, :] + (tap * CI + c)[:, None], mask=real[:, None] & cols_ok[None, :], other=0.0
        )
        if UP:  # the interpreter would multiply bfloat16 as if it were integers
            a = a.to(tl.float32)
            b = b.to(tl.float32)
        acc = tl.dot(a, b, acc, input_precision="ieee" if EXACT else "tf32")
        if list_ptr is not None:
            # Carried from here to the next step: loaded where it is used, the indirection would
            # halve the depth of the prefetch. The list has one entry more than is walked.
            chunk = tl.load(list_ptr + (step + 1) // TAPS)
    return acc


@triton.jit
def relu(x):
    """max(x, 0) that keeps NaN, as torch's does."""
    return tl.where(x < 0, 0.0, x)
