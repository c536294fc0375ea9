"""A stage of a CIFAR ResNet with its gates as one operator: blocks of one width, walked sample by sample.

For b = 0, 1, ...: means of x -> gates (`gate_plan`) -> keep_b, open_b; x = the block's output where kept
(`gated_basic_block`, stride 1, no shortcut convolution), else x. Before them may come the stage's entry
block, which halves the map and doubles the width, and is always kept. On a GPU one block of threads holds a
sample in its shared memory and walks the stage: a skipped block costs its gates and a branch, and a network
is a launch a stage however deep it is. Such small images are bound by launches, not by arithmetic.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ddi_kernels.backends import no_native_kernel, use_native
from ddi_kernels.checks import argument_error, check_at_least, check_like, check_tensor, describe
from ddi_kernels.ops.active_channels import group_count
from ddi_kernels.ops.block_parts import (
    Residual,
    check_image,
    interior,
    join,
    needs_gradient,
    pooled_dtype,
    pooled_means,
)
from ddi_kernels.ops.gate_plan import check_gate_lists, gate_logits
from ddi_kernels.ops.pack_stage import SHAPES, unpack
from ddi_kernels.registry import Op, register

_NAME = "resident_stage"
_MAX_GATE = 32


def resident_stage(
    x: Tensor,
    h: Tensor,
    c: Tensor,
    weights: Tensor,
    biases: Tensor,
    lstm: Sequence[Tensor] = (),
    layer: Sequence[Tensor] = (),
    channel: Sequence[Tensor] = (),
    group_size: int = 1,
    threshold: float = 0.0,
    entry: Sequence[Tensor] = (),
    entry_gates: Sequence[Tensor] = (),
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Blocks of one width, gates included, in one launch. Not differentiable.

    The kernel takes bfloat16 images of 16 channels and 32 x 32 pixels, 32 of 16 x 16 or 64 of 8 x 8, and
    gates at most 32 wide, on GPUs of compute capability 9.0; elsewhere plain torch runs block by block.

    Args:
        x: Tensor[N, C, H, W] of a floating dtype, C 16, 32 or 64; channels_last is fast. Before an entry
            block Tensor[N, C / 2, 2 H, 2 W], C 32 or 64.
        h, c: float32[N, hidden], the LSTM's state.
        weights: Tensor[B, 2, 9, C, C] of x's dtype, from `pack_stage`.
        biases: float32[B, 2, C], of both convolutions of each block.
        lstm: as in `gate_plan`, float32, the same for all blocks; empty: hidden = 0.
        layer: weight [B, hidden] and bias [B], float32; empty: every block is kept.
        channel: reduce [B, R, C + hidden], bias [B, R], expand [B, G, R], bias [B, G] with
            G = ceil(C / group_size), float32; empty: everything is open.
        group_size: interior channels per bit.
        threshold: a bit is set where its logit is above.
        entry: both of `pack_entry` and float32[2, C], the biases of its convolutions, the shortcut's added to
            the second; empty: no entry block.
        entry_gates: project [hidden, C / 2] and bias [hidden] if there is an `lstm`, then, if there is a
            `channel`, reduce [R, C / 2 + hidden], bias [R], expand [G, R], bias [G]; float32.

    Returns:
        y: Tensor[N, C, H, W], channels_last.
        keep: bool[N, B], the entry block, always kept, counted.
        open: bool[N, B, G], G = 0 without `channel`; of a skipped block, what its gate said.
        h, c: float32[N, hidden], the next state.

    Raises:
        ValueError: an argument has the wrong type, shape, dtype or range.
        RuntimeError: a gradient is needed, or the backend chosen by name cannot run this call.

    Example:
        >>> import torch
        >>> from ddi_kernels import pack_stage, resident_stage
        >>> zeros, none = torch.zeros(3, 16, 16, 3, 3), torch.empty(2, 0)
        >>> weights, biases = pack_stage(zeros, zeros), torch.ones(3, 2, 16)
        >>> y, keep, *_ = resident_stage(torch.zeros(2, 16, 4, 4), none, none, weights, biases)
        >>> y.unique().tolist(), keep.shape
        ([3.0], torch.Size([2, 3]))
    """
    check_tensor(_NAME, "x", x)
    args = (
        x, h, c, weights, biases, lstm, layer, channel, group_size, threshold, entry, entry_gates,
    )  # fmt: skip
    if needs_gradient((x, h, c, weights, biases, *lstm, *layer, *channel, *entry, *entry_gates)):
        raise RuntimeError(
            f"{_NAME}: an argument requires a gradient, which it does not have. "
            "Call under torch.inference_mode()"
        )
    check_args(*args)
    reduced = channel[0].shape[1] if channel else 0
    if not use_native(_NAME, resident_stage_unsupported(x, h.shape[1], reduced, len(entry) > 0)):
        return reference(*args)
    return _OP(*args)


def resident_stage_unsupported(x: Tensor, hidden: int, reduced: int, entered: bool = False) -> str | None:
    """Why no compiled `resident_stage` takes images like x and gates this wide, None where one does.

    Args:
        x: Tensor[N, C, H, W].
        hidden, reduced: widths of the LSTM and of the channel gate's hidden layer, 0 without them.
        entered: whether x is an entry block's.

    Example:
        >>> import torch
        >>> from ddi_kernels import resident_stage_unsupported
        >>> resident_stage_unsupported(torch.zeros(1, 16, 32, 32), 10, 16)
        'it has no kernel for cpu tensors'
    """
    reason = no_native_kernel(_NAME, x) if x.is_cuda else f"it has no kernel for {x.device.type} tensors"
    if reason is not None:
        return reason
    if x.dtype != torch.bfloat16:
        return f"it computes in bfloat16, not in {x.dtype}"
    channels, side = x.shape[1], SHAPES.get(x.shape[1])
    if tuple(x.shape[2:]) != (side, side) or (entered and 2 * channels not in SHAPES):
        return f"it has no kernel for {channels} channels of {x.shape[2]} x {x.shape[3]} pixels"
    if max(hidden, reduced) > _MAX_GATE:
        return f"its gates are at most {_MAX_GATE} wide, not {max(hidden, reduced)}"
    major, minor = torch.cuda.get_device_capability(x.device)
    return None if major >= 9 else f"it needs compute capability 9.0, this GPU has {major}.{minor}"


def check_args(
    x: Any, h: Any, c: Any, weights: Any, biases: Any, lstm: Any, layer: Any, channel: Any,
    group_size: Any, threshold: Any, entry: Any, entry_gates: Any,
) -> tuple[int, int, int]:  # fmt: skip
    """Raises ValueError for the first argument that is wrong; (blocks, hidden, groups) otherwise.

    The entry block is counted.
    """
    check_image(_NAME, "x", x)
    n, full = x.shape[0], torch.float32
    width = x.shape[1] * 2 if entry else x.shape[1]
    if all(width != known for known in SHAPES):  # a traced size cannot be looked up
        expected = f"one of {tuple(SHAPES)} channels, before an entry block 16 or 32"
        raise argument_error(_NAME, "x", describe(x), expected)
    check_tensor(_NAME, "weights", weights, dims=5)
    blocks = weights.shape[0]
    check_like(_NAME, "weights", weights, (blocks, 2, 9, width, width), x.dtype, like=x)
    check_like(_NAME, "biases", biases, (blocks, 2, width), full, like=x)
    check_at_least(_NAME, "group_size", group_size, 1)
    check_gate_lists(_NAME, lstm, layer, channel)
    hidden, groups, reduced = 0, 0, 0
    if lstm:
        check_tensor(_NAME, "lstm[0]", lstm[0], dims=2)
        hidden = lstm[0].shape[0]
    if channel:
        check_tensor(_NAME, "channel[0]", channel[0], dims=3)
        groups, reduced = group_count(width, group_size), channel[0].shape[1]
    square, wide = (4 * hidden, hidden), (4 * hidden,)
    shapes = {
        "lstm": [(hidden, width), (hidden,), square, square, wide, wide],
        "layer": [(blocks, hidden), (blocks,)],
        "channel": [
            (blocks, reduced, width + hidden),
            (blocks, reduced),
            (blocks, groups, reduced),
            (blocks, groups),
        ],
    }
    for name, values in (("lstm", lstm), ("layer", layer), ("channel", channel)):
        for i, (value, shape) in enumerate(zip(values, shapes[name], strict=False)):
            check_like(_NAME, f"{name}[{i}]", value, shape, full, like=x)
    check_like(_NAME, "h", h, (n, hidden), full, like=x)
    check_like(_NAME, "c", c, (n, hidden), full, like=x)
    if entry:
        _check_entry(x, entry, entry_gates, len(lstm) > 0, len(channel) > 0, hidden, groups, reduced)
    elif entry_gates:
        raise argument_error(_NAME, "entry_gates", describe(entry_gates), "none without an entry")
    return blocks + (1 if entry else 0), hidden, groups


def _check_entry(
    x: Any, entry: Any, gates: Any, lstm: bool, channel: bool, hidden: int, groups: int, reduced: int
) -> None:
    half, width, full = x.shape[1], 2 * x.shape[1], torch.float32
    if x.shape[2] % 2 or x.shape[3] % 2:
        raise argument_error(_NAME, "x", describe(x), "even height and width before an entry block")
    shapes = [(hidden, half), (hidden,)] * lstm
    shapes += [(reduced, half + hidden), (reduced,), (groups, reduced), (groups,)] * channel
    for name, values, count in (("entry", entry, 3), ("entry_gates", gates, len(shapes))):
        if len(values) != count:
            raise argument_error(_NAME, name, describe(values), f"{count} tensors")
    check_like(_NAME, "entry[0]", entry[0], (10, width, half), x.dtype, like=x)
    check_like(_NAME, "entry[1]", entry[1], (9, width, width), x.dtype, like=x)
    check_like(_NAME, "entry[2]", entry[2], (2, width), full, like=x)
    for i, (value, shape) in enumerate(zip(gates, shapes, strict=True)):
        check_like(_NAME, f"entry_gates[{i}]", value, shape, full, like=x)


def reference(
    x: Tensor, h: Tensor, c: Tensor, weights: Tensor, biases: Tensor, lstm: Any, layer: Any, channel: Any,
    group_size: int, threshold: float, entry: Any, entry_gates: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Plain torch `resident_stage`, the specification of all other implementations."""
    args = (
        x, h, c, weights, biases, lstm, layer, channel, group_size, threshold, entry, entry_gates,
    )  # fmt: skip
    blocks, _, groups = check_args(*args)
    shape = (x.shape[0], blocks)
    keeps = x.new_ones(shape, dtype=torch.bool)
    opens = x.new_ones((*shape, groups), dtype=torch.bool)
    y, pooled, done = x, pooled_means(x, True).float(), 0
    if entry:
        y, pooled, h, c = _enter(
            y, pooled, h, c, lstm, group_size, threshold, entry, entry_gates, opens[:, 0]
        )
        done = 1
    filters = unpack(weights)
    for b in range(blocks - done):
        keep, opened = keeps[:, done + b], opens[:, done + b]
        gates = [w[b : b + 1] for w in layer], [w[b] for w in channel]
        logit, logits, h, c = gate_logits(pooled, h, c, lstm, *gates)
        if logit is not None:
            keep.copy_(logit > threshold)
        if logits is not None:
            opened.copy_(logits > threshold)
        # A skipped sample's means are those that it came with.
        around = Residual(y, None, None, None, keep, None, 1, True, pooled.to(pooled_dtype(x)))
        bias1, bias2 = biases[b].to(x.dtype)
        inside = interior(
            F.conv2d(y, filters[b, 0], bias1, padding=1), opened if channel else None, None, group_size
        )
        y, pooled = join(around, F.conv2d(inside, filters[b, 1], bias2, padding=1))
        pooled = pooled.float()
    y = y.clone() if blocks == 0 else y
    # An operator may not return its arguments.
    state = (h, c) if lstm and blocks else (h.clone(), c.clone())
    return (y.contiguous(memory_format=torch.channels_last), keeps, opens, *state)


def _enter(
    x: Tensor, pooled: Tensor, h: Tensor, c: Tensor, lstm: Any, group_size: int, threshold: float, entry: Any,
    gates: Any, opened: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """The entry block's output, its means and the next state; writes its bits."""
    project = [*gates[:2], *lstm[2:]] if lstm else []
    _, logits, h, c = gate_logits(pooled, h, c, project, (), gates[2 if lstm else 0 :])
    if logits is not None:
        opened.copy_(logits > threshold)
    weight1, shortcut, weight2 = unpack(entry[0][:9]), unpack(entry[0][9:]), unpack(entry[1])
    bias1, bias2 = entry[2].to(x.dtype)
    inside = F.conv2d(x, weight1, bias1, stride=2, padding=1)
    inside = interior(inside, None if logits is None else opened, None, group_size)
    around = Residual(x, shortcut, None, None, None, None, 2, True, None)
    y, pooled = join(around, F.conv2d(inside, weight2, bias2, padding=1))
    return y, pooled.float(), h, c


def _fake(*args: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    blocks, hidden, groups = check_args(*args)
    x, entered = args[0], len(args[10]) > 0
    n, channels, height, width = x.shape
    shape = (n, 2 * channels, height // 2, width // 2) if entered else x.shape
    y = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    bits = [x.new_empty(size, dtype=torch.bool) for size in ((n, blocks), (n, blocks, groups))]
    return y, bits[0], bits[1], *(x.new_empty((n, hidden), dtype=torch.float32) for _ in range(2))


_OP = register(
    Op(
        name=_NAME,
        schema="(Tensor x, Tensor h, Tensor c, Tensor weights, Tensor biases, Tensor[] lstm, "
        "Tensor[] layer, Tensor[] channel, int group_size, float threshold, Tensor[] entry, "
        "Tensor[] entry_gates) -> "
        "(Tensor y, Tensor keep, Tensor open, Tensor h_next, Tensor c_next)",
        reference=reference,
        fake=_fake,
    )
)
