"""Reorders convolution weights into the panels that the native gated_conv2d reads.

A panel holds 16 output channels side by side, [ceil(Co/16)][kh][kw][ceil(Ci/p)][16][p], zeros where
there are no channels: a row of a panel is one vector load on any instruction set, and the input
channels walk in steps of one row, so that closed ones are skipped without touching memory. p input
channels lie together because instructions multiply them together: 2 of bfloat16, 4 of int8, else 1.
Each convolution group has panels of its own; of a depthwise convolution a row holds 16 channels of
one tap. Done once per model, not per call.

Narrow 3x3 convolutions with stride 1 take 2.25 or 4 times fewer multiplications after Winograd's transform
F(m x m, 3x3), m = 2 or 4 (Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", 2016), and 7x7
ones with stride 2 take 3 times fewer after F(3x3, 4x4), of their 4x4 taps over each of four phases of the
image: its even and odd rows and columns. Their panels may be followed by the transformed weights,
[ceil(Co/16)][position][column phase][Ci][row phase][16], of m = 4 up to 128 channels and then of m = 2 up to
256, or of m = 3: which a call uses depends on its image and gates.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ddi_kernels.backends import use_native
from ddi_kernels.checks import argument_error, check_at_least, check_like, check_tensor, describe
from ddi_kernels.registry import Op, call_kernel, register

_NAME = "prepack_conv2d"
PANEL = 16
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
GROUPED_DTYPES = (torch.float32, torch.float64)  # with kernels for more than one convolution group
_TOGETHER = {torch.bfloat16: 2, torch.int8: 4}


class Transform(NamedTuple):
    """F(m x m) of a square kernel: the side of a tile of inputs, the phases of the image along an axis,
    and the most output channels, or input channels times phases, that it is used for."""

    kernel: int
    m: int
    side: int
    phases: int
    most: int


_TRANSFORMS = [
    Transform(kernel=3, m=4, side=6, phases=1, most=128),
    Transform(kernel=3, m=2, side=4, phases=1, most=256),
    Transform(kernel=7, m=3, side=6, phases=2, most=128),
]


def packed_dtype(dtype: torch.dtype) -> torch.dtype:
    """Dtype of the packed form of weights: fp16 is computed in float32, and packed as such."""
    return torch.float32 if dtype == torch.float16 else dtype


def _panels_numel(weight: Tensor, groups: int) -> int:
    co, ci, kh, kw = weight.shape
    if _is_depthwise(weight, groups):
        return kh * kw * -(-co // PANEL) * PANEL
    together = _TOGETHER.get(weight.dtype, 1)
    return groups * -(-(co // groups) // PANEL) * kh * kw * (-(-ci // together) * together) * PANEL


def _transforms(weight: Tensor, groups: int) -> list[Transform]:
    """Those that a weight has."""
    if weight.dtype not in (torch.float32, torch.float16) or groups != 1:
        return []
    co, ci, kh, kw = weight.shape
    return [t for t in _TRANSFORMS if kh == kw == t.kernel and max(co, t.phases**2 * ci) <= t.most]


def _numel(weight: Tensor, groups: int, winograd: bool) -> int:
    transforms = _transforms(weight, groups) if winograd else []
    rows = sum((t.side * t.phases) ** 2 for t in transforms) * -(-weight.shape[0] // PANEL)
    return _panels_numel(weight, groups) + rows * weight.shape[1] * PANEL


def check_packed(op: str, name: str, packed: Any, weight: Tensor, groups: int, x: Tensor) -> None:
    """Raises ValueError unless packed is the packed form of weight, with or without a transform."""
    plain, transformed = (_numel(weight, groups, winograd) for winograd in (False, True))
    fits = isinstance(packed, Tensor) and tuple(packed.shape) == (transformed,)
    length = transformed if fits else plain
    check_like(op, name, packed, (length,), packed_dtype(x.dtype), like=x)


def _is_depthwise(weight: Tensor, groups: int) -> bool:
    """Whether every channel is a convolution group of its own."""
    return groups > 1 and groups == weight.shape[0] and weight.shape[1] == 1


def prepack_conv2d(weight: Tensor, groups: int = 1, winograd: bool = True) -> Tensor:
    """Reorders weights for repeated calls of `gated_conv2d(..., packed=...)`.

    The result belongs to the values at the time of the call; pack again after changing them. No
    gradient flows through it.

    Args:
        weight: Tensor[Co, Ci / groups, kh, kw], float32, float64, float16, bfloat16 or int8.
        groups: convolution groups, a divisor of Co; must be 1 unless weight is float32 or float64.
        winograd: whether the weights of a narrow 3x3 or 7x7 convolution in float32 or float16 are stored
            transformed as well (up to 6.8 times the memory), for Winograd's algorithm wherever it is faster.
            Its results differ by rounding, and NaN or infinity in an open input channel may spread to all of
            a tile of 4x4 or 3x3 outputs. Of use with stride 1 for 3x3 and 2 for 7x7, without dilation.

    Returns:
        1-dimensional tensor, [groups][ceil(Co/groups/16)][kh][kw][ceil(Ci/groups/p)][16][p] flattened, with
        p = 2 for bfloat16, 4 for int8, else 1; of a depthwise weight (Co = Ci = groups > 1)
        [kh][kw][ceil(Co/16) * 16]; then any transformed weights. Of the same dtype, except that float16
        becomes float32.

    Raises:
        ValueError: an argument has the wrong type, shape or range.

    Example:
        >>> import torch
        >>> from ddi_kernels import gated_conv2d, prepack_conv2d
        >>> weight = torch.ones(8, 4, 3, 3)
        >>> packed = prepack_conv2d(weight)
        >>> y = gated_conv2d(torch.ones(1, 4, 8, 8), weight, packed=packed)
    """
    check_tensor(_NAME, "weight", weight)
    if not isinstance(winograd, bool):
        raise argument_error(_NAME, "winograd", describe(winograd), "True or False")
    weight = weight.detach()
    if use_native(_NAME, _unsupported(weight)):
        return call_kernel(_OP, _check, (weight, groups, winograd))
    return reference(weight, groups, winograd)


def _unsupported(weight: Tensor) -> str | None:
    if not weight.is_cpu:
        return f"it has no kernel for {weight.device.type} tensors"
    return None


def _check(weight: Any, groups: int, winograd: bool = True) -> None:
    check_tensor(_NAME, "weight", weight, dims=4)
    if weight.dtype not in (*DTYPES, torch.int8) or min(weight.shape) < 1:
        expected = "float32, float64, float16, bfloat16 or int8 of a shape without zeros"
        remedy = "Other dtypes need no packing: pass packed=None."
        raise argument_error(_NAME, "weight", describe(weight), expected, remedy)
    check_at_least(_NAME, "groups", groups, 1)
    if groups != 1 and weight.dtype not in GROUPED_DTYPES:
        remedy = "Leave the weight unpacked: pass packed=None."
        raise argument_error(_NAME, "groups", groups, f"1 for {weight.dtype}", remedy)
    if weight.shape[0] % groups:
        raise argument_error(_NAME, "groups", groups, f"a divisor of weight's {weight.shape[0]} channels")


def reference(weight: Tensor, groups: int, winograd: bool) -> Tensor:
    """Plain torch `prepack_conv2d`, the specification of all other implementations."""
    _check(weight, groups)
    co, ci, kh, kw = weight.shape
    if _is_depthwise(weight, groups):
        return F.pad(weight[:, 0].permute(1, 2, 0), (0, -co % PANEL)).flatten().clone()
    together = _TOGETHER.get(weight.dtype, 1)
    panels = weight.reshape(groups, co // groups, ci, kh, kw)
    padded = F.pad(panels, (0, 0, 0, 0, 0, -ci % together, 0, -(co // groups) % PANEL))
    cells = padded.reshape(-1, PANEL, -(-ci // together), together, kh, kw)
    parts = [cells.permute(0, 4, 5, 2, 1, 3).flatten()]
    parts += [_transformed(weight.double(), t) for t in (_transforms(weight, groups) if winograd else [])]
    return torch.cat([part.to(packed_dtype(weight.dtype)) for part in parts])


def _transformed(weight: Tensor, transform: Transform) -> Tensor:
    co, ci, kh, kw = weight.shape
    p = transform.phases
    phases = F.pad(weight, (0, -kw % p, 0, -kh % p, 0, 0, 0, -co % PANEL))
    # [panel, lane, ci, tap row, row phase, tap column, column phase] to [..., ci, phases, taps].
    phases = phases.reshape(-1, PANEL, ci, -(-kh // p), p, -(-kw // p), p).permute(0, 1, 2, 4, 6, 3, 5)
    points = torch.tensor(_winograd_points(transform), dtype=torch.float64)
    positions = (points @ phases @ points.T).flatten(-2)
    return positions.permute(0, 5, 4, 2, 3, 1).flatten()


def _winograd_points(transform: Transform) -> list[list[float]]:
    """G: row i evaluates the polynomial of the taps at a point, with the sign and scale that go with it.

    Points are 0, 1, -1 and infinity for m = 2, else 0, +-5/8, +-3/2 and infinity, where the textbook's 1
    and 2 lose four times as many digits.
    """
    if transform.m == 2:
        return [[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]]
    a, b, taps = 0.625, 1.5, transform.side - transform.m + 1
    rows: list[list[float]] = [[1 / (a * b) ** 2] + [0.0] * (taps - 1)]
    for near, far in ((a, b), (b, a)):
        scale = 1 / (2 * near**2 * (near**2 - far**2))
        rows += [[scale * (s * near) ** i for i in range(taps)] for s in (1, -1)]
    return [*rows, [0.0] * (taps - 1) + [1.0]]


def _fake(weight: Tensor, groups: int, winograd: bool) -> Tensor:
    _check(weight, groups)
    return weight.new_empty((_numel(weight, groups, winograd),), dtype=packed_dtype(weight.dtype))


_OP = register(
    Op(
        name=_NAME,
        schema="(Tensor weight, int groups, bool winograd) -> Tensor",
        reference=reference,
        fake=_fake,
    )
)
