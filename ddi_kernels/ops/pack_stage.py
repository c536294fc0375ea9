"""Weights of a stage's convolutions in the order in which `resident_stage` reads them.

Rows of input channels, an output channel each, tap by tap. Their 8-channel pieces are turned so that matrix
loads from shared memory meet no bank twice.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ddi_kernels.checks import argument_error, check_like, check_tensor, describe

# Channels and side of the images that the kernel has room for, and of which there are kernels.
SHAPES = {16: 32, 32: 16, 64: 8}


def pack_stage(weight1: Tensor, weight2: Tensor) -> Tensor:
    """Weights of a stage's convolutions in the order in which `resident_stage` reads them.

    Args:
        weight1, weight2: Tensor[B, C, C, 3, 3], both convolutions of each block, BatchNorm folded in; C is
            16, 32 or 64.

    Returns:
        Tensor[B, 2, 9, C, C]: tap, output, input, with the 8-channel pieces of each row turned so that
        matrix loads from shared memory meet no bank twice.

    Raises:
        ValueError: another shape.

    Example:
        >>> import torch
        >>> from ddi_kernels import pack_stage
        >>> pack_stage(torch.zeros(3, 16, 16, 3, 3), torch.zeros(3, 16, 16, 3, 3)).shape
        torch.Size([3, 2, 9, 16, 16])
    """
    check_tensor("pack_stage", "weight1", weight1, dims=5)
    b, c = weight1.shape[:2]
    if c not in SHAPES:
        raise argument_error("pack_stage", "weight1", describe(weight1), f"one of {tuple(SHAPES)} channels")
    for name, weight in (("weight1", weight1), ("weight2", weight2)):
        check_like("pack_stage", name, weight, (b, c, c, 3, 3), weight1.dtype, like=weight1)
    return torch.stack((pack(weight1), pack(weight2)), 1)


def pack_entry(weight1: Tensor, weight2: Tensor, shortcut: Tensor) -> tuple[Tensor, Tensor]:
    """Weights of a stage's entry block in the order in which `resident_stage` reads them.

    Args:
        weight1, weight2, shortcut: Tensor[C, C / 2, 3, 3], [C, C, 3, 3] and [C, C / 2, 1, 1], BatchNorm
            folded in; C is 32 or 64.

    Returns:
        Tensor[10, C, C / 2], the last for the shortcut, and Tensor[9, C, C].

    Raises:
        ValueError: another shape.

    Example:
        >>> import torch
        >>> from ddi_kernels import pack_entry
        >>> narrow, wide = torch.zeros(32, 16, 3, 3), torch.zeros(32, 32, 3, 3)
        >>> [w.shape for w in pack_entry(narrow, wide, torch.zeros(32, 16, 1, 1))]
        [torch.Size([10, 32, 16]), torch.Size([9, 32, 32])]
    """
    check_tensor("pack_entry", "weight1", weight1, dims=4)
    c = weight1.shape[0]
    if c // 2 not in SHAPES or c not in SHAPES:
        raise argument_error("pack_entry", "weight1", describe(weight1), "32 or 64 output channels")
    for name, weight, shape in (
        ("weight1", weight1, (c, c // 2, 3, 3)),
        ("weight2", weight2, (c, c, 3, 3)),
        ("shortcut", shortcut, (c, c // 2, 1, 1)),
    ):
        check_like("pack_entry", name, weight, shape, weight1.dtype, like=weight1)
    return torch.cat((pack(weight1), pack(shortcut))), pack(weight2)


def pack(weight: Tensor) -> Tensor:
    """[..., Co, Ci, kh, kw] as [..., taps, Co, Ci], pieces turned."""
    return turn_pieces(weight.flatten(-2).movedim(-1, -3))


def unpack(rows: Tensor) -> Tensor:
    """The filters, kernels square, that `pack` made these rows of."""
    side = 3 if rows.shape[-3] == 9 else 1
    return turn_pieces(rows).movedim(-3, -1).unflatten(-1, (side, side))


def turn_pieces(rows: Tensor) -> Tensor:
    """[..., Co, Ci] with each row's 8-channel pieces in the kernel's order, or back from it."""
    co, ci = rows.shape[-2:]
    row, pieces = torch.arange(co, device=rows.device), ci // 8
    turn = {2: row >> 2 & 1, 4: row >> 1 & 3, 8: row & 7}[pieces]
    source = torch.arange(pieces, device=rows.device)[None, :] ^ turn[:, None]
    index = (source[:, :, None] * 8 + torch.arange(8, device=rows.device)).reshape(co, ci)
    return rows.gather(-1, index.expand(rows.shape))
