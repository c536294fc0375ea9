"""gated_basic_block on a GPU: two 3x3 convolutions of triton/gated_block.py's chain, images [N, H, W, C]."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ddi_kernels.ops.block_parts import Residual
from ddi_kernels.ops.gated_basic_block import check_args, reference, residual_of
from ddi_kernels.tiles.tiles import block_in_place_unsupported, gated_basic_block_unsupported
from ddi_kernels.triton.gated_block import InteriorGate, launch_block, launch_block_
from ddi_kernels.triton.gated_conv2d import Filter


def launch(*args: Any) -> tuple[Tensor, Tensor]:
    """`gated_basic_block` on x's device, to the schema; panels are an order of the CPU's, not used here.

    Raises:
        RuntimeError: there is no kernel for these arguments.
    """
    return launch_block(*_parts(*args), lambda: reference(*args))


def launch_(*args: Any) -> Tensor:
    """`gated_basic_block_` on x's device, to the schema.

    Raises:
        RuntimeError: there is no kernel for these arguments.
    """
    return launch_block_(*_parts(*args, reason=block_in_place_unsupported(args[0])), lambda: reference(*args))


def _parts(*args: Any, reason: str | None = None) -> tuple[Residual, list[Filter], list[InteriorGate]]:
    check_args(*args)
    reason = reason or gated_basic_block_unsupported(*args)
    if reason is not None:
        raise RuntimeError(f"gated_basic_block: no Triton kernel for this call: {reason}")
    r, gate = residual_of(*args), InteriorGate(*args[12:15])
    one, stride = (1, 1), (r.stride, r.stride)
    filters = [Filter(args[1], args[2], stride, one), Filter(args[4], args[5], one, one)]
    return r, filters, [gate]
