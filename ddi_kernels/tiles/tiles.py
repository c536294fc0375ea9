"""Tile sizes of the convolution kernels, and which calls have one; decided without importing triton.

A kernel multiplies tiles of BM pixels by BN output channels, BK input channels at a time. Gates
come in *chunks*: BK input channels, or CHUNK output channels, that are open or closed together. A
chunk is the largest power of two that divides the gate's group size, so that the lists the kernels
walk never split one; below 16 channels a chunk no longer fills a tensor core's operand.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ddi_kernels.checks import Geometry

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
SMALLEST_CHUNK = 16
MAX_INDEX = 2**31 - 1
MAX_SIDE = 2**29


@dataclass(frozen=True)
class Tile:
    """One compiled form: a BM x BN tile in steps of BK, run by `warps` with `stages` of prefetch."""

    bm: int
    bn: int
    bk: int
    warps: int
    stages: int

    def shared_bytes(self, element_size: int) -> int:
        """Shared memory of the prefetched operands."""
        return self.stages * (self.bm + self.bn) * self.bk * element_size


@dataclass(frozen=True)
class Gpu:
    """What tiles depend on: compute capability (90 for 9.0), shared memory of a block in bytes, the name."""

    capability: int
    shared: int
    name: str = ""


# (many rows, more than 64 output channels) -> BM, BN, warps.
_SHAPES = {
    (True, True): (128, 128, 8),
    (True, False): (128, 64, 4),
    (False, True): (64, 128, 4),
    (False, False): (64, 64, 4),
}
_STAGES = 4
_MANY_ROWS = 512


def is_exact(dtype: torch.dtype) -> bool:
    """Whether products are of full float32, without tensor cores: as torch's convolutions are set."""
    convolutions = torch.backends.cudnn.conv  # type: ignore[attr-defined]
    return dtype == torch.float32 and convolutions.fp32_precision != "tf32"


def pick_tile(
    rows: int, co: int, bk: int, dtype: torch.dtype, gpu: Gpu, through_registers: bool = False
) -> Tile:
    """The tile for a GEMM of `rows` pixels and `co` output channels in chunks of `bk` input channels.

    `through_registers`: the kernel computes on x before it multiplies.
    """
    # With 16 channels a step there is too little arithmetic to feed from a tile of 128 pixels. In float32,
    # and computed on before Hopper, the operands of wider tiles spill, or the sums of a block's last
    # convolution do; operands that pass through registers do with four warps.
    narrow = dtype == torch.float32 or (through_registers and gpu.capability < 90)
    bm, bn, warps = _SHAPES[rows >= _MANY_ROWS and bk > SMALLEST_CHUNK, co > 64 and not narrow]
    if bm + bn > 128 and (
        dtype == torch.float32 or (bk == 64 and (through_registers or gpu.capability < 90))
    ):
        warps = 8
    stage = Tile(bm, bn, bk, warps, 1).shared_bytes(dtype.itemsize)
    # A kilobyte is left for the compiler's own use.
    return Tile(bm, bn, bk, warps, max(2, min(_STAGES, (gpu.shared - 1024) // stage)))


def pick_narrow_tile(rows: int, co: int, bk: int, dtype: torch.dtype, gpu: Gpu) -> Tile:
    """The tile for at most 64 output channels, all in one: as many columns as they need, at least 16."""
    bm = 128 if rows >= _MANY_ROWS else 64
    bn = 16
    while bn < co:
        bn *= 2
    stage = Tile(bm, bn, bk, 4, 1).shared_bytes(dtype.itemsize)
    return Tile(bm, bn, bk, 4, max(2, min(_STAGES, (gpu.shared - 1024) // stage)))


def dense_layer_chunk(x: Tensor, growth: int, in_mask: Tensor | None) -> int:
    """Channels of a step along a concatenation: closed ones come `growth` at a time."""
    largest = largest_chunk(x.dtype, x.shape[1])
    return largest if in_mask is None else max(SMALLEST_CHUNK, min(largest, growth & -growth))


def pixel_width(x: Tensor) -> int | None:
    """How far apart pixels lie, channels side by side, in [N, H, W, C]; None for any other layout."""
    n, c, h, w = x.shape
    if c > 1 and x.stride(1) != 1:
        return None
    width, pixels = None, 1
    for size, stride in ((w, x.stride(3)), (h, x.stride(2)), (n, x.stride(0))):
        if size > 1:
            width = stride if width is None else width
            if stride != width * pixels:
                return None
        pixels *= size
    width = c if width is None else width
    return width if width >= c else None


def shipped_tiles(dtype: torch.dtype, gpu: Gpu, through_registers: bool = False) -> list[Tile]:
    """Every tile that `pick_tile` can return for a GPU, for checks that compile them all."""
    chunks = [bk for bk in (16, 32, 64) if bk <= largest_chunk(dtype, MAX_INDEX)]
    sizes = [(m, n, bk) for bk in chunks for m in (1, _MANY_ROWS) for n in (64, 65)]
    return list(dict.fromkeys(pick_tile(*size, dtype, gpu, through_registers) for size in sizes))


def shipped_narrow_tiles(dtype: torch.dtype, gpu: Gpu) -> list[Tile]:
    """Every tile that `pick_narrow_tile` can return for a GPU."""
    chunks = [bk for bk in (16, 32, 64) if bk <= largest_chunk(dtype, MAX_INDEX)]
    sizes = [(m, n, bk) for bk in chunks for m in (1, _MANY_ROWS) for n in (16, 32, 64)]
    return [pick_narrow_tile(m, n, bk, dtype, gpu) for m, n, bk in sizes]


def largest_chunk(dtype: torch.dtype, channels: int) -> int:
    """Channels of the longest useful step: 128 bytes of a row of x, less if it is shorter."""
    chunk = SMALLEST_CHUNK if is_exact(dtype) else 128 // dtype.itemsize
    while chunk // 2 >= max(channels, SMALLEST_CHUNK):
        chunk //= 2
    return chunk


def gate_chunk(group_size: int, channels: int, largest: int) -> int:
    """Channels of a chunk that no gate splits; below SMALLEST_CHUNK there is no kernel for it."""
    if group_size >= channels:
        return largest  # one gate for all channels
    return min(largest, group_size & -group_size)


def gpu_conv2d_unsupported(*args: Any) -> str | None:
    """Why gated_conv2d has no kernel on a GPU, whatever the masks, for the schema's arguments."""
    x, weight, g = args[0], args[1], Geometry(*args[8])
    if g.groups != 1:
        return f"it has no grouped convolution (groups={g.groups})"
    return _unsupported_operands(x, weight, g.padding)


def gated_conv2d_unsupported(*args: Any) -> str | None:
    """Why gated_conv2d has no Triton kernel for the schema's arguments, None where it has one."""
    x, weight, in_mask, out_mask, g = args[0], args[1], args[4], args[5], Geometry(*args[8])
    reason = gpu_conv2d_unsupported(*args)
    if reason is None and in_mask is not None:
        reason = _unsupported_gate("in_group_size", g.in_group_size, x.shape[1])
    if reason is None and out_mask is not None:
        reason = _unsupported_gate("out_group_size", g.out_group_size, weight.shape[0])
    return reason


def skip_conv2d_unsupported(*args: Any) -> str | None:
    """Why skip_conv2d_ has no Triton kernel for the schema's arguments, None where it has one."""
    out, x, weight = args[:3]
    if not out.is_contiguous(memory_format=torch.channels_last):
        return f"it writes channels_last images only; out has strides {tuple(out.stride())}"
    # Rows are counted in 32 bits, those of the last tile beyond the end too.
    if out.numel() // max(out.shape[1], 1) > MAX_INDEX - 128:
        return f"the batch has more than {MAX_INDEX - 128} output pixels"
    return _unsupported_operands(x, weight, args[7])


def gated_basic_block_unsupported(*args: Any) -> str | None:
    """Why gated_basic_block has no Triton kernel for the schema's arguments, None where it has one."""
    mask, _, group_size = args[12:15]
    return _unsupported_block(args[0], (args[1], args[4]), (("group_size", mask, group_size),))


def gated_bottleneck_unsupported(*args: Any) -> str | None:
    """Why gated_bottleneck has no Triton kernel for the schema's arguments, None where it has one."""
    gates = (("group_size1", args[15], args[17]), ("group_size2", args[18], args[20]))
    return _unsupported_block(args[0], (args[1], args[4], args[7]), gates)


def block_in_place_unsupported(x: Tensor) -> str | None:
    """Why no Triton kernel writes a block's output over x, None where one does if the block has one."""
    if x.is_contiguous(memory_format=torch.channels_last):
        return None
    return f"it writes channels_last images only; x has strides {tuple(x.stride())}"


def gate_plan_unsupported(x: Tensor, *_: Any) -> str | None:
    """Why gate_plan has no Triton kernel for x and any weights of its dtype, None where it has one."""
    return None if x.dtype == torch.float32 else f"it computes in float32, not in {x.dtype}"


def gated_dense_layer_unsupported(*args: Any) -> str | None:
    """Why gated_dense_layer has no Triton kernel for the schema's arguments, None where it has one."""
    x, weight1, weight2 = args[0], args[3], args[6]
    if weight2.shape[0] > 64:
        return f"it writes at most 64 new channels, not {weight2.shape[0]}"
    return _unsupported_block(x, (weight1, weight2), ())


def gated_dense_layer_inplace_unsupported(*args: Any) -> str | None:
    """Why gated_dense_layer_ has no Triton kernel for the schema's arguments, None where it has one."""
    if pixel_width(args[0]) is None:
        return f"it writes channels_last images only; buffer has strides {tuple(args[0].stride())}"
    return gated_dense_layer_unsupported(*args)


def _unsupported_block(
    x: Tensor, weights: tuple[Tensor, ...], gates: tuple[tuple[str, Tensor | None, int], ...]
) -> str | None:
    pixels = x.shape[2] * x.shape[3]
    # Rows are counted in 32 bits, those of the last tile beyond the end too.
    if x.shape[0] * pixels > MAX_INDEX - 128:
        return f"the batch has more than {MAX_INDEX - 128} pixels"
    # A compact interior has room for whole chunks.
    if (max(w.shape[0] for w in weights) + 64) * pixels > MAX_INDEX:
        return f"an image of the block has more than {MAX_INDEX} elements"
    reasons = [_unsupported_operands(x, weight, (1, 1)) for weight in weights]
    for (name, mask, group_size), weight in zip(gates, weights, strict=False):
        if mask is not None:
            reasons.append(_unsupported_gate(name, group_size, weight.shape[0]))
    return next((reason for reason in reasons if reason is not None), None)


def _unsupported_operands(x: Tensor, weight: Tensor, padding: Any) -> str | None:
    """Why no kernel convolves tensors like these, None where one does."""
    if x.dtype not in DTYPES:
        return f"it computes in float32, float16 and bfloat16, not in {x.dtype}"
    if x.is_cuda:
        major, minor = _capability(x.device.index)
        if major < 8:
            return f"it needs a GPU of compute capability 8.0, this one has {major}.{minor}"
    if max(x[:1].numel(), weight.numel()) > MAX_INDEX:
        return f"a sample or the weight has more than {MAX_INDEX} elements"
    if max(x.shape[2] + 2 * padding[0], x.shape[3] + 2 * padding[1]) > MAX_SIDE:
        return f"a padded image has more than {MAX_SIDE} rows or columns"
    return None


def _capability(device: int) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


_capability._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _unsupported_gate(name: str, group_size: int, channels: int) -> str | None:
    if gate_chunk(group_size, channels, SMALLEST_CHUNK) < SMALLEST_CHUNK:
        return f"{name} is {group_size}, and it takes multiples of {SMALLEST_CHUNK} channels"
    return None
