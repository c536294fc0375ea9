"""The dense convolution that `gated_conv2d` takes where gating would not pay, and the choice between them.

Same call, same result as the reference: closed inputs and outputs are masked by selection, here not at all
where every bit is open, and the multiplying is left to oneDNN with weights prepacked for it. Packed once per
weight and input shape, they stay with the tensor that `prepack_conv2d` made of the weight, and go with it.

The choice is by the measured table (../prices), for channels_last float32 calls with prepacked weights; the
others stay with the gated kernel, which reorders weights or pixels no more slowly than oneDNN does. For most
shapes gating never loses whatever the masks, and a call costs one dictionary look-up. Where it can lose,
masks are counted, since a call with everything open and one with a quarter open deserve different kernels: a
few microseconds that only the shapes concerned pay. The verdict of each pair of counts is kept.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ddi_kernels import backends
from ddi_kernels.checks import Geometry, memory_format_of
from ddi_kernels.geometry import output_size
from ddi_kernels.ops.active_channels import expand_groups
from ddi_kernels.prices import tables
from ddi_kernels.prices.latency import ALIGNED, FINE, ConvShape, Estimate

# Verdicts and packed weights that are kept; past it they are made anew: some callers' shapes never repeat.
_KEPT_MAX = 4096
_PACKED_MAX = 8

_NEVER = object()
_choices: dict[Any, Any] = {}
tables.on_change(_choices.clear)


class _Choice:
    """Dense or gated for the calls of one shape."""

    def __init__(self, estimate: Estimate) -> None:
        self.estimate = estimate
        self.verdicts: dict[Any, bool] = {}

    def dense_wins(self, open_in: int, open_out: int, form: tuple[Any, ...]) -> bool:
        key = (open_in, open_out, form)
        verdict = self.verdicts.get(key)
        if verdict is None:
            bits_in, bits_out, passes, group_size = form
            verdict = self.estimate.dense_wins(
                open_in / bits_in if bits_in else None,
                open_out / bits_out if bits_out else None,
                passes,
                group_size,
            )
            if len(self.verdicts) >= _KEPT_MAX:
                self.verdicts.clear()
            self.verdicts[key] = verdict
        return verdict


def prefers_dense(
    x: Tensor, weight: Any, bias: Any, packed: Any, in_mask: Any, out_mask: Any, scale: Any,
    residual: Any, geometry: Any,
) -> tuple[bool, bool] | None:  # fmt: skip
    """Whether `auto` takes the dense kernel for a call that the native one supports and needs no gradient.

    Takes the arguments of the operator's schema, correct or not: None where they are wrong, so that the
    operator itself says so.

    Returns:
        None for the gated kernel. For the dense one, whether any input and any output channel is closed.
    """
    if (
        packed is None
        or backends._choice() != "auto"
        or torch.compiler.is_compiling()
        or type(x) is not Tensor
    ):
        return None
    try:
        key = (x.shape, weight.shape, geometry, x.dtype, torch.get_num_threads())
        choice = _choices.get(key)
        if choice is None:
            choice = _make_choice(key)
        if choice is _NEVER or not x.is_contiguous(memory_format=torch.channels_last):
            return None
        *_, in_group_size, out_group_size, relu = geometry
        fine = (in_mask is not None and in_group_size % ALIGNED != 0) or (
            out_mask is not None and out_group_size % ALIGNED != 0
        )
        bits_in, bits_out = _bits(in_mask), _bits(out_mask)
        open_in, open_out = _open(in_mask), _open(out_mask)
        passes = (scale is not None) + (residual is not None) + relu
        if choice.dense_wins(open_in, open_out, (bits_in, bits_out, passes, FINE if fine else ALIGNED)):
            return open_in < bits_in, open_out < bits_out
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError):
        pass  # wrong arguments
    return None


def _bits(mask: Tensor | None) -> int:
    return 0 if mask is None else mask.numel()


def _open(mask: Tensor | None) -> int:
    return 0 if mask is None else int(np.count_nonzero(mask.numpy()))


def _make_choice(key: tuple[Any, ...]) -> Any:
    if len(_choices) >= _KEPT_MAX:
        _choices.clear()
    shape = _shape_of(*key)
    estimate = None if shape is None else tables.current_table().estimate(shape)
    can_win = estimate is not None and estimate.dense_can_win
    _choices[key] = choice = _Choice(estimate) if estimate is not None and can_win else _NEVER
    return choice


def _shape_of(x: Any, weight: Any, geometry: Any, dtype: torch.dtype, threads: int) -> ConvShape | None:
    """What the table knows of a call; None for a wrong call, or one that no table speaks of."""
    if len(x) != 4 or len(weight) != 4 or min(*x, *weight) < 1 or x[1] != weight[1]:
        return None
    g = Geometry(*geometry)
    stride, padding = g.stride, g.padding
    if dtype != torch.float32 or g.dilation != (1, 1) or weight[2] != weight[3]:
        return None
    if stride[0] != stride[1] or stride[0] < 1 or min(padding) < 0:
        return None
    height, width = output_size(x[2:], weight[2:], stride, padding)
    if min(height, width) < 1:
        return None
    return ConvShape(weight[2], stride[0], x[1], weight[0], height * width, x[0], threads)


def _bit_masks(mask: Tensor, channels: int, group_size: int) -> Tensor:
    """int32[N, channels, 1, 1], all ones where open: `and` selects ten times as fast as torch.where."""
    return -expand_groups(mask, channels, group_size)[:, :, None, None].int()


class _DenseWeights(dict[Any, Tensor]):
    """Weights in oneDNN's own form, by the shape of the input. Copies and pickles start empty."""

    def __deepcopy__(self, memo: Any) -> _DenseWeights:
        return _DenseWeights()

    def __reduce__(self) -> Any:
        return _DenseWeights, ()


def _conv2d(x: Tensor, weight: Tensor, bias: Any, packed: Tensor, stride: Any, padding: Any) -> Tensor:
    if not torch.backends.mkldnn.is_available() or not torch.backends.mkldnn.enabled:
        return F.conv2d(x, weight, bias, stride, padding)
    stride, padding = list(stride), list(padding)
    kept = packed.__dict__.get("_ddi_dense_weights")
    if kept is None:
        kept = packed.__dict__["_ddi_dense_weights"] = _DenseWeights()
    dense = kept.get(x.shape)
    if dense is None:
        if len(kept) >= _PACKED_MAX:
            kept.clear()
        weight = weight.detach().contiguous(memory_format=torch.channels_last)
        dense = torch.ops.mkldnn._reorder_convolution_weight(
            weight, padding, stride, [1, 1], 1, list(x.shape)
        )
        kept[x.shape] = dense
    return torch.ops.mkldnn._convolution_pointwise.default(
        x, dense, bias, padding, stride, [1, 1], 1, "none", [], ""
    )


def dense_conv2d(
    masked: tuple[bool, bool], x: Tensor, weight: Tensor, bias: Tensor | None, packed: Tensor,
    in_mask: Tensor | None, out_mask: Tensor | None, scale: Tensor | None, residual: Tensor | None,
    geometry: Any,
) -> Tensor:  # fmt: skip
    """The call for which `prefers_dense` returned `masked`, its arguments checked by the caller."""
    memory_format, g = memory_format_of(x), Geometry(*geometry)
    if in_mask is not None and masked[0]:
        x = x.view(torch.int32).bitwise_and(_bit_masks(in_mask, x.shape[1], g.in_group_size)).view(x.dtype)
    y = _conv2d(x, weight, bias, packed, g.stride, g.padding)
    if scale is not None:
        y.mul_(expand_groups(scale, y.shape[1], g.out_group_size)[:, :, None, None])
    if out_mask is not None and masked[1]:
        y.view(torch.int32).bitwise_and_(_bit_masks(out_mask, y.shape[1], g.out_group_size))
    if residual is not None:
        y.add_(residual)
    if g.relu:
        y.relu_()
    return y.contiguous(memory_format=memory_format)
