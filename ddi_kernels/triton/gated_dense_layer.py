"""gated_dense_layer on a GPU: a 1x1 convolution over the open chunks of the concatenation, then a 3x3 one.

x is read where it lies, [N, H, W, C_total] with the first Ci channels of each pixel, so that a dense block
can keep one buffer and write new channels behind the old ones. A chunk of inputs is walked if any of its
channels is open; BatchNorm, ReLU and mask are applied to each piece of x in registers, on its way to the
multiplication. A sample whose new channels are all closed costs two exits. Nothing is read by the host.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ddi_kernels.checks import memory_format_of
from ddi_kernels.ops.gated_dense_layer import check_args, check_args_inplace
from ddi_kernels.tiles.tiles import (
    dense_layer_chunk,
    gated_dense_layer_inplace_unsupported,
    gated_dense_layer_unsupported,
    is_exact,
    largest_chunk,
    pick_narrow_tile,
    pick_tile,
    pixel_width,
)
from ddi_kernels.triton.gated_block import mean_of_sums
from ddi_kernels.triton.implicit_gemm import INTERPRET, accumulate, channels_last, gpu_of, relu


@triton.jit
def _input_plan_kernel(
    bits_ptr, list_ptr, words_ptr, count_ptr, C, chunks, CHUNK: tl.constexpr, BLOCK: tl.constexpr
):
    """Grid (N,): the chunks with an open channel, ascending, then a pad entry, and how many they are.

    Beside each of them a word: bit k is set where channel k of the chunk is open.
    """
    n = tl.program_id(0)
    c = tl.arange(0, BLOCK)
    k = tl.arange(0, CHUNK)
    channels = (c * CHUNK)[:, None] + k[None, :]
    bits = tl.load(bits_ptr + n.to(tl.int64) * C + channels, mask=channels < C, other=0)
    words = tl.sum((bits != 0).to(tl.int64) << k[None, :].to(tl.int64), 1)
    is_open = (words != 0).to(tl.int32)
    place = n * (chunks + 1) + tl.cumsum(is_open, 0) - is_open
    count = tl.sum(is_open, 0)
    tl.store(list_ptr + place, c, mask=is_open != 0)
    tl.store(words_ptr + place, words, mask=is_open != 0)
    tl.store(list_ptr + n * (chunks + 1) + count, 0)
    tl.store(words_ptr + n * (chunks + 1) + count, 0)
    tl.store(count_ptr + n, count)


@triton.jit
def _any_open(mask_ptr, n, groups, GROUPS: tl.constexpr):
    g = tl.arange(0, GROUPS)
    return tl.max(tl.load(mask_ptr + n * groups + g, mask=g < groups, other=0).to(tl.int32), 0) != 0


@triton.jit
def _middle_kernel(
    x_ptr, scale_ptr, shift_ptr, w_ptr, bias_ptr, h_ptr, list_ptr, words_ptr, count_ptr, out_mask_ptr,
    N, P, CI, CO, X_WIDTH, chunks, groups, tiles,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUPS: tl.constexpr,
    EXACT: tl.constexpr, UP: tl.constexpr,
):  # fmt: skip
    """h = relu(conv1(in_mask * relu(scale * x + shift)) + bias); grid N * tiles * ceil(CO / BN)."""
    pid = tl.program_id(0)
    tile = pid % tiles
    n = (pid // tiles % N).to(tl.int64)
    if out_mask_ptr is not None:
        if not _any_open(out_mask_ptr, n, groups, GROUPS):
            return
    cols = pid // (tiles * N) * BN + tl.arange(0, BN)
    cols_ok = cols < CO
    p = tile * BM + tl.arange(0, BM)
    rows_ok = p < P
    k = tl.arange(0, BK)
    x_ptrs = x_ptr + (n * P + p) * X_WIDTH
    steps = chunks
    chunk = 0
    if list_ptr is not None:
        steps = tl.load(count_ptr + n)
        list_ptr += n * (chunks + 1)
        words_ptr += n * (chunks + 1)
        chunk = tl.load(list_ptr)
        word = tl.load(words_ptr)
    acc = tl.zeros((BM, BN), tl.float32)
    for step in range(0, steps):
        if list_ptr is None:
            chunk = step
        c = chunk * BK + k
        c_ok = c < CI
        a = tl.load(x_ptrs[:, None] + c[None, :], mask=rows_ok[:, None] & c_ok[None, :], other=0.0)
        scale = tl.load(scale_ptr + c, mask=c_ok, other=0.0).to(tl.float32)
        shift = tl.load(shift_ptr + c, mask=c_ok, other=0.0).to(tl.float32)
        b = tl.load(w_ptr + cols[None, :] * CI + c[:, None], mask=c_ok[:, None] & cols_ok[None, :], other=0.0)
        # As `relu`, but in one instruction, since it is done for every piece of x and every tile.
        a = tl.maximum(
            a.to(tl.float32) * scale[None, :] + shift[None, :], 0.0, propagate_nan=tl.PropagateNan.ALL
        )
        if list_ptr is not None:
            # By selection: closed channels may hold NaN. Bits of a word cost less than loading them.
            a = tl.where((((word >> k.to(tl.int64)) & 1) != 0)[None, :], a, 0.0)
        a = a.to(h_ptr.dtype.element_ty)
        if UP:  # the interpreter would multiply bfloat16 as if it were integers
            a = a.to(tl.float32)
            b = b.to(tl.float32)
        acc = tl.dot(a, b, acc, input_precision="ieee" if EXACT else "tf32")
        if list_ptr is not None:
            chunk = tl.load(list_ptr + step + 1)
            word = tl.load(words_ptr + step + 1)
    if bias_ptr is not None:
        acc += tl.load(bias_ptr + cols, mask=cols_ok, other=0.0).to(tl.float32)[None, :]
    h_ptrs = h_ptr + (n * P + p)[:, None] * CO + cols[None, :]
    tl.store(h_ptrs, relu(acc).to(h_ptr.dtype.element_ty), mask=rows_ok[:, None] & cols_ok[None, :])


@triton.jit
def _new_channels_kernel(
    h_ptr, w_ptr, bias_ptr, y_ptr, out_mask_ptr, sums_ptr,
    H, W, CI, CO, Y_WIDTH, groups, group_size, tiles,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUPS: tl.constexpr,
    LEAVE: tl.constexpr, EXACT: tl.constexpr, UP: tl.constexpr,
):  # fmt: skip
    """y = out_mask * (conv2(h) + bias), or closed channels as they are (LEAVE); grid N * tiles."""
    pid = tl.program_id(0)
    tile = pid % tiles
    n = (pid // tiles).to(tl.int64)
    cols = tl.arange(0, BN)
    real = cols < CO
    is_open = real
    steps = tl.cdiv(CI, BK)
    if out_mask_ptr is not None:
        is_open = tl.load(out_mask_ptr + n * groups + cols // group_size, mask=real, other=0) != 0
        steps = tl.where(_any_open(out_mask_ptr, n, groups, GROUPS), steps, 0)
    p = tile * BM + tl.arange(0, BM)
    rows_ok = p < H * W
    x_ptrs = h_ptr + n * H * W * CI + tl.zeros((BM,), tl.int32)
    acc = accumulate(
        x_ptrs, rows_ok, p // W - 1, p % W - 1, w_ptr, cols, is_open, None, steps,
        H, W, CI, CI, 3, 3, 1, 1, BM, BN, BK, False, EXACT, UP,
    )  # fmt: skip
    if bias_ptr is not None:
        acc += tl.load(bias_ptr + cols, mask=is_open, other=0.0).to(tl.float32)[None, :]
    y = tl.where(is_open[None, :], acc, 0.0).to(y_ptr.dtype.element_ty)
    stored = is_open if LEAVE else real
    tl.store(
        y_ptr + (n * H * W + p)[:, None] * Y_WIDTH + cols[None, :], y, mask=rows_ok[:, None] & stored[None, :]
    )
    if sums_ptr is not None:
        sums = tl.sum(tl.where(rows_ok[:, None], y.to(tl.float32), 0.0), 0)
        tl.store(sums_ptr + (n * tiles + tile) * CO + cols, sums, mask=real)


def launch(*args: Any) -> tuple[Tensor, Tensor]:
    """`gated_dense_layer` on x's device, to the schema; panels are an order of the CPU's, not used here.

    Raises:
        RuntimeError: there is no kernel for these arguments.
    """
    n, growth, h, w = check_args(*args)
    x = args[0]
    _require(gated_dense_layer_unsupported(*args), "gated_dense_layer")
    shape = (n, growth, h, w)
    y = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    pooled = _run(y, False, *args)
    return y.contiguous(memory_format=memory_format_of(x)), pooled


def launch_(*args: Any) -> Tensor:
    """`gated_dense_layer_` on the buffer's device, to the schema.

    Raises:
        RuntimeError: there is no kernel for these arguments.
    """
    ci, growth = check_args_inplace(*args)
    buffer = args[0]
    _require(gated_dense_layer_inplace_unsupported(*args), "gated_dense_layer_")
    return _run(buffer[:, ci : ci + growth], True, buffer[:, :ci], *args[1:])


def _require(reason: str | None, op: str) -> None:
    if reason is not None:
        raise RuntimeError(f"{op}: no Triton kernel for this call: {reason}")


def _run(
    y: Tensor, leave: bool, x: Tensor, scale1: Tensor, shift1: Tensor, weight1: Tensor,
    bias1: Tensor | None, packed1: Any,
    weight2: Tensor, bias2: Tensor | None, packed2: Any, in_mask: Tensor | None, out_mask: Tensor | None,
    group_size: int, pool: bool,
) -> Tensor:  # fmt: skip
    """Writes all of y, or what is open (leave), and returns its means; pixels of x and y may lie apart."""
    n, growth, height, width = y.shape
    pixels = height * width
    pooled = torch.empty((n, growth if pool else 0), dtype=torch.float32, device=x.device)
    if n == 0:
        return pooled
    if pixel_width(x) is None:
        x = channels_last(x)
    middle = weight1.shape[0]
    h = torch.empty((n, pixels, middle), dtype=x.dtype, device=x.device)
    mask = None if out_mask is None else out_mask.contiguous().view(torch.uint8)
    groups = 1 if mask is None else mask.shape[1]
    shared: dict[str, Any] = {"GROUPS": triton.next_power_of_2(groups), "EXACT": is_exact(x.dtype)}
    shared["UP"] = INTERPRET
    gpu = gpu_of(x)
    tile = pick_tile(
        pixels, middle, dense_layer_chunk(x, growth, in_mask), x.dtype, gpu, through_registers=True
    )
    narrow = pick_narrow_tile(pixels, growth, largest_chunk(x.dtype, middle), x.dtype, gpu)
    tiles = triton.cdiv(pixels, narrow.bm)
    sums = None
    if pool:
        sums = torch.empty((n, tiles, growth), dtype=torch.float32, device=x.device)
    with torch.cuda.device_of(x):
        lists = (None, None, None) if in_mask is None else _list_chunks(in_mask, tile.bk)
        rows = triton.cdiv(pixels, tile.bm)
        _middle_kernel[(n * rows * triton.cdiv(middle, tile.bn),)](
            x, scale1.contiguous(), shift1.contiguous(), weight1.contiguous(),
            None if bias1 is None else bias1.contiguous(), h, *lists, mask,
            n, pixels, x.shape[1], middle, pixel_width(x), triton.cdiv(x.shape[1], tile.bk), groups, rows,
            tile.bm, tile.bn, tile.bk, **shared, num_warps=tile.warps, num_stages=tile.stages,
        )  # fmt: skip
        _new_channels_kernel[(n * tiles,)](
            h, channels_last(weight2), None if bias2 is None else bias2.contiguous(), y, mask, sums,
            height, width, middle, growth, pixel_width(y), groups, group_size, tiles,
            narrow.bm, narrow.bn, narrow.bk, **shared, LEAVE=leave,
            num_warps=narrow.warps, num_stages=narrow.stages,
        )  # fmt: skip
        if sums is not None:
            mean_of_sums(sums, pooled, pixels)
    return pooled


def _list_chunks(in_mask: Tensor, chunk: int) -> tuple[Tensor, Tensor, Tensor]:
    """List, words and count of the chunks in which bool[N, C] opens a channel."""
    n, channels = in_mask.shape
    chunks = triton.cdiv(channels, chunk)
    order, words = (
        torch.empty((n, chunks + 1), dtype=dtype, device=in_mask.device)
        for dtype in (torch.int32, torch.int64)
    )
    count = torch.empty((n,), dtype=torch.int32, device=in_mask.device)
    _input_plan_kernel[(n,)](
        in_mask.contiguous().view(torch.uint8), order, words, count, channels, chunks,
        CHUNK=chunk, BLOCK=triton.next_power_of_2(chunks),
    )  # fmt: skip
    return order, words, count
