"""The decisions of one block's gates for a batch: pooled input -> linear -> LSTM step -> bits.

The gates of Dual Dynamic Inference (arXiv 1907.04523) cost some thousand multiply-adds a sample, less than
the dispatch of the thirty torch operators they are made of; the native kernel does them in one call, in any
layout of x. Without an LSTM the channel gate reads the pooled input alone. Where the producer of x already
pooled it, its means are taken in place of x, and x is not read.
`gate_logits` is the same computation before the threshold, differentiable, for training.

The result is bits, not lists: how a mask becomes a list depends on its consumer (the width of the tensor, its
group size, the pad entry), and the CPU drivers list the open channels of a sample while they run it, in their
own workspace. Whoever needs a list in memory makes it with `active_channels`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ddi_kernels.backends import choose
from ddi_kernels.checks import argument_error, check_like, check_tensor, describe
from ddi_kernels.ops.block_parts import unsupported_image
from ddi_kernels.registry import Op, register, register_triton
from ddi_kernels.tiles.tiles import gate_plan_unsupported

_NAME = "gate_plan"


def gate_logits(
    x: Tensor,
    h: Tensor,
    c: Tensor,
    lstm: Sequence[Tensor] = (),
    layer: Sequence[Tensor] = (),
    channel: Sequence[Tensor] = (),
) -> tuple[Tensor | None, Tensor | None, Tensor, Tensor]:
    """What `gate_plan` compares with its threshold; plain torch, differentiable in everything.

    Args:
        x, h, c, lstm, layer, channel: as for `gate_plan`.

    Returns:
        keep: float[N] logits, or None without `layer`.
        open: float[N, G] logits, or None without `channel`.
        h, c: float[N, hidden], the LSTM's next state.

    Example:
        >>> import torch
        >>> from ddi_kernels import gate_logits
        >>> cell, project = torch.nn.LSTMCell(2, 2), torch.nn.Linear(3, 2)
        >>> state = torch.zeros(4, 2)
        >>> lstm = [*project.parameters(), *cell.parameters()]
        >>> keep, open, h, c = gate_logits(torch.rand(4, 3, 8, 8), state, state, lstm)
        >>> keep is None, open is None, h.requires_grad
        (True, True, True)
    """
    pooled = _as_image(x).mean((2, 3))
    if lstm:
        h, c = torch.lstm_cell(F.linear(pooled, lstm[0], lstm[1]), (h, c), *lstm[2:])
    keep = F.linear(h, layer[0], layer[1]).squeeze(1) if layer else None
    if not channel:
        return keep, None, h, c
    reduced = F.linear(torch.cat((pooled, h), dim=1), channel[0], channel[1]).relu()
    return keep, F.linear(reduced, channel[2], channel[3]), h, c


def gate_plan(
    x: Tensor,
    h: Tensor,
    c: Tensor,
    lstm: Sequence[Tensor] = (),
    layer: Sequence[Tensor] = (),
    channel: Sequence[Tensor] = (),
    threshold: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Which samples keep a block and which channel groups they open.

    Args:
        x: Tensor[N, C, H, W], the block's input, or Tensor[N, C], its means over the pixels (what the
            gated blocks return with pool=True); of any strides.
        h, c: Tensor[N, hidden], the LSTM's state, of x's dtype like all weights.
        lstm: project [hidden, C] and its bias [hidden], then the LSTM cell's w_ih and w_hh
            [4 hidden, hidden], b_ih and b_hh [4 hidden], as torch.nn.LSTMCell keeps them; empty:
            hidden = 0, and the channel gate reads the means alone.
        layer: weight [1, hidden] and bias [1] of the layer gate; empty, as it must be without lstm:
            every sample is kept.
        channel: reduce [R, C + hidden], bias [R], expand [G, R], bias [G] of the channel gate;
            empty: G = 0.
        threshold: a bit is set where its logit is above.

    Returns:
        keep: bool[N].
        open: bool[N, G].
        h, c: Tensor[N, hidden], the next state.

    Raises:
        ValueError: an argument has the wrong type, shape or dtype.
        RuntimeError: the backend chosen by name cannot run this call.

    Example:
        >>> import torch
        >>> from ddi_kernels import gate_plan
        >>> cell, project = torch.nn.LSTMCell(2, 2), torch.nn.Linear(3, 2)
        >>> state = torch.zeros(4, 2)
        >>> lstm = [*project.parameters(), *cell.parameters()]
        >>> keep, open, h, c = gate_plan(torch.rand(4, 3, 8, 8), state, state, lstm)
        >>> keep.tolist(), tuple(open.shape)
        ([True, True, True, True], (4, 0))
    """
    check_tensor(_NAME, "x", x)
    x = _as_image(x)
    choice = choose(_NAME, unsupported_image(x), gate_plan_unsupported, (x,), x.is_cuda)
    if choice == "reference":
        return reference(x, h, c, lstm, layer, channel, threshold)
    try:
        return (_OP if choice == "native" else _OP_TRITON)(x, h, c, lstm, layer, channel, threshold)
    except RuntimeError:
        check_args(x, h, c, lstm, layer, channel)
        raise


def _as_image(x: Tensor) -> Tensor:
    """Means [N, C] as an image of one pixel, which is its own mean; anything else as it is."""
    return x[:, :, None, None] if x.dim() == 2 else x


def _check_list(name: str, values: Any, shapes: Sequence[tuple[int, ...]], x: Tensor) -> None:
    for i, (value, shape) in enumerate(zip(values, shapes, strict=True)):
        check_like(_NAME, f"{name}[{i}]", value, shape, x.dtype, like=x)


def check_gate_lists(op: str, lstm: Any, layer: Any, channel: Any) -> None:
    """Raises ValueError unless each gate has all of its tensors or none, and its state if it reads one."""
    for name, values, counts in (
        ("lstm", lstm, (0, 6)),
        ("layer", layer, (0, 2)),
        ("channel", channel, (0, 4)),
    ):
        if len(values) not in counts:
            raise argument_error(op, name, f"{len(values)} tensors", f"one of {counts} tensors")
    if layer and not lstm:
        expected = "none without lstm, whose state it reads"
        raise argument_error(op, "layer", f"{len(layer)} tensors", expected)


def check_args(x: Any, h: Any, c: Any, lstm: Any, layer: Any, channel: Any) -> tuple[int, int]:
    """Raises ValueError for the first argument that is wrong; (hidden, groups) otherwise."""
    if x.dim() != 4 or not x.dtype.is_floating_point or min(x.shape[1:]) < 1:
        expected = "a floating dtype and shape [N, C, H, W] or [N, C], no zero but N"
        raise argument_error(_NAME, "x", describe(x), expected)
    check_gate_lists(_NAME, lstm, layer, channel)
    channels, hidden = x.shape[1], 0
    if lstm:
        check_tensor(_NAME, "lstm[0]", lstm[0], dims=2)
        hidden = lstm[0].shape[0]
        if hidden == 0:
            raise argument_error(_NAME, "lstm[0]", describe(lstm[0]), "at least one row")
        square, wide = (4 * hidden, hidden), (4 * hidden,)
        _check_list("lstm", lstm, [(hidden, channels), (hidden,), square, square, wide, wide], x)
    check_like(_NAME, "h", h, (x.shape[0], hidden), x.dtype, like=x)
    check_like(_NAME, "c", c, (x.shape[0], hidden), x.dtype, like=x)
    if layer:
        _check_list("layer", layer, [(1, hidden), (1,)], x)
    if not channel:
        return hidden, 0
    check_tensor(_NAME, "channel[0]", channel[0], dims=2)
    check_tensor(_NAME, "channel[2]", channel[2], dims=2)
    reduced, groups = channel[0].shape[0], channel[2].shape[0]
    shapes = [(reduced, channels + hidden), (reduced,), (groups, reduced), (groups,)]
    _check_list("channel", channel, shapes, x)
    return hidden, groups


def reference(
    x: Tensor, h: Tensor, c: Tensor, lstm: Any, layer: Any, channel: Any, threshold: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Plain torch `gate_plan`, the specification of all other implementations."""
    check_args(x, h, c, lstm, layer, channel)
    keep, open, h_next, c_next = gate_logits(x, h, c, lstm, layer, channel)
    n = x.shape[0]
    return (
        x.new_ones(n, dtype=torch.bool) if keep is None else keep > threshold,
        x.new_empty((n, 0), dtype=torch.bool) if open is None else open > threshold,
        # An operator may not return its arguments.
        h_next if lstm else h.clone(),
        c_next if lstm else c.clone(),
    )


def _fake(
    x: Tensor, h: Tensor, c: Tensor, lstm: Any, layer: Any, channel: Any, threshold: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    hidden, groups = check_args(x, h, c, lstm, layer, channel)
    n = x.shape[0]
    bits = [x.new_empty(shape, dtype=torch.bool) for shape in ((n,), (n, groups))]
    return bits[0], bits[1], x.new_empty((n, hidden)), x.new_empty((n, hidden))


def _flops(x: Tensor, h: Tensor, c: Tensor, lstm: Any, layer: Any, channel: Any, *_: Any, **__: Any) -> int:
    weights = [w for w in (*lstm, *layer, *channel) if w.dim() == 2]
    return 2 * x.shape[0] * sum(w.numel() for w in weights)


_SPEC = Op(
    name=_NAME,
    schema="(Tensor x, Tensor h, Tensor c, Tensor[] lstm, Tensor[] layer, Tensor[] channel, "
    "float threshold) -> (Tensor keep, Tensor open, Tensor h_next, Tensor c_next)",
    reference=reference,
    fake=_fake,
    flops=_flops,
)
_OP = register(_SPEC)
_OP_TRITON = register_triton(_SPEC)
