"""gate_plan on a GPU: all gates of a block in one launch, one program a sample.

Everything is a matrix times a vector: weights are row-major [outputs, inputs], vectors stay in registers,
and only the longest one, the means of x, is walked in pieces. All samples read the same weights, which the
L2 cache keeps. Decisions stay on the device, as bits that the convolutions' own plans turn into lists.
An image is pooled by torch first; the blocks' operators pool what they write (pool=True).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ddi_kernels.ops.gate_plan import check_args
from ddi_kernels.tiles.tiles import gate_plan_unsupported

_PIECE = 64


@triton.jit
def _sigmoid(x):
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def _tanh(x):
    return 1.0 - 2.0 / (1.0 + tl.exp(2.0 * x))


@triton.jit
def _times_means(w_ptr, width, rows, rows_ok, means_ptr, C, ROWS: tl.constexpr, PIECE: tl.constexpr):
    """The first C columns of a matrix, times the means of a sample."""
    total = tl.zeros((ROWS,), tl.float32)
    for start in range(0, C, PIECE):
        j = start + tl.arange(0, PIECE)
        means = tl.load(means_ptr + j, mask=j < C, other=0.0)
        ok = rows_ok[:, None] & (j < C)[None, :]
        w = tl.load(w_ptr + rows[:, None] * width + j[None, :], mask=ok, other=0.0)
        total += tl.sum(w * means[None, :], 1)
    return total


@triton.jit
def _times(w_ptr, width, rows, rows_ok, v, WIDTH: tl.constexpr):
    """A matrix of at most WIDTH columns, times a vector in registers."""
    j = tl.arange(0, WIDTH)
    ok = rows_ok[:, None] & (j < width)[None, :]
    return tl.sum(tl.load(w_ptr + rows[:, None] * width + j[None, :], mask=ok, other=0.0) * v[None, :], 1)


@triton.jit
def _cell_gate(number, w_ih, w_hh, b_ih, b_hh, x, h, hidden, k, real, HIDDEN: tl.constexpr):
    """What one of the LSTM's four gates is given, before its sigmoid or tanh."""
    rows = number * hidden + k
    z = _times(w_ih, hidden, rows, real, x, HIDDEN) + _times(w_hh, hidden, rows, real, h, HIDDEN)
    return z + tl.load(b_ih + rows, mask=real, other=0.0) + tl.load(b_hh + rows, mask=real, other=0.0)


@triton.jit
def _gate_plan_kernel(
    means_ptr, h_ptr, c_ptr, project, project_bias, w_ih, w_hh, b_ih, b_hh, layer, layer_bias,
    reduce, reduce_bias, expand, expand_bias, keep_ptr, open_ptr, h_next_ptr, c_next_ptr,
    C, hidden, reduced, groups, threshold,
    HIDDEN: tl.constexpr, REDUCED: tl.constexpr, PIECE: tl.constexpr,
):  # fmt: skip
    """Grid (N,); weights of a gate that is not there are None."""
    n = tl.program_id(0).to(tl.int64)
    means_ptr += n * C
    k = tl.arange(0, HIDDEN)
    real = k < hidden
    state = n * hidden + k
    kept = True
    if w_ih is not None:
        x = _times_means(project, C, k, real, means_ptr, C, HIDDEN, PIECE)
        x += tl.load(project_bias + k, mask=real, other=0.0)
        h = tl.load(h_ptr + state, mask=real, other=0.0)
        c = tl.load(c_ptr + state, mask=real, other=0.0)
        add = _sigmoid(_cell_gate(0, w_ih, w_hh, b_ih, b_hh, x, h, hidden, k, real, HIDDEN))
        forget = _sigmoid(_cell_gate(1, w_ih, w_hh, b_ih, b_hh, x, h, hidden, k, real, HIDDEN))
        new = _tanh(_cell_gate(2, w_ih, w_hh, b_ih, b_hh, x, h, hidden, k, real, HIDDEN))
        show = _sigmoid(_cell_gate(3, w_ih, w_hh, b_ih, b_hh, x, h, hidden, k, real, HIDDEN))
        c = tl.where(real, forget * c + add * new, 0.0)
        h = tl.where(real, show * _tanh(c), 0.0)
        tl.store(h_next_ptr + state, h, mask=real)
        tl.store(c_next_ptr + state, c, mask=real)
        if layer is not None:
            logit = tl.sum(tl.load(layer + k, mask=real, other=0.0) * h, 0) + tl.load(layer_bias)
            kept = logit > threshold
    tl.store(keep_ptr + n, kept)
    if reduce is not None:
        r = tl.arange(0, REDUCED)
        r_ok = r < reduced
        z = _times_means(reduce, C + hidden, r, r_ok, means_ptr, C, REDUCED, PIECE)
        if w_ih is not None:
            ok = r_ok[:, None] & real[None, :]
            columns = tl.load(reduce + r[:, None] * (C + hidden) + (C + k)[None, :], mask=ok, other=0.0)
            z += tl.sum(columns * h[None, :], 1)
        z += tl.load(reduce_bias + r, mask=r_ok, other=0.0)
        z = tl.where(z < 0, 0.0, z)
        for start in range(0, groups, PIECE):
            g = start + tl.arange(0, PIECE)
            g_ok = g < groups
            logits = _times(expand, reduced, g, g_ok, z, REDUCED)
            logits += tl.load(expand_bias + g, mask=g_ok, other=0.0)
            tl.store(open_ptr + n * groups + g, logits > threshold, mask=g_ok)


def launch(
    x: Tensor, h: Tensor, c: Tensor, lstm: Sequence[Tensor], layer: Sequence[Tensor],
    channel: Sequence[Tensor], threshold: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """`gate_plan` on x's device, to the schema.

    Raises:
        RuntimeError: there is no kernel for these arguments.
    """
    hidden, groups = check_args(x, h, c, lstm, layer, channel)
    reason = gate_plan_unsupported(x)
    if reason is not None:
        raise RuntimeError(f"gate_plan: no Triton kernel for this call: {reason}")
    n, channels = x.shape[:2]
    keep = torch.empty((n,), dtype=torch.bool, device=x.device)
    opened = torch.empty((n, groups), dtype=torch.bool, device=x.device)
    h_next, c_next = (torch.empty(h.shape, dtype=h.dtype, device=h.device) for _ in range(2))
    if n == 0:
        return keep, opened, h_next, c_next
    means = x[:, :, 0, 0] if x.shape[2] * x.shape[3] == 1 else x.mean((2, 3))
    weights: list[Any] = []
    for given, places in ((lstm, 6), (layer, 2), (channel, 4)):
        weights += [w.contiguous() for w in given] or [None] * places
    reduced = channel[0].shape[0] if channel else 1
    with torch.cuda.device_of(x):
        _gate_plan_kernel[(n,)](
            means.contiguous(), h.contiguous(), c.contiguous(), *weights,
            keep.view(torch.uint8), opened.view(torch.uint8), h_next, c_next,
            channels, hidden, reduced, groups, threshold,
            HIDDEN=triton.next_power_of_2(max(hidden, 1)), REDUCED=triton.next_power_of_2(reduced),
            PIECE=_PIECE,
        )  # fmt: skip
    return keep, opened, h_next, c_next
