"""gated_bottleneck on a GPU: 1x1, 3x3 and 1x1 convolutions of triton/gated_block.py's chain, [N, H, W, C]."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ddi_kernels.ops.block_parts import Residual
from ddi_kernels.ops.gated_bottleneck import check_args, reference, residual_of
from ddi_kernels.tiles.tiles import block_in_place_unsupported, gated_bottleneck_unsupported
from ddi_kernels.triton.gated_block import InteriorGate, launch_block, launch_block_
from ddi_kernels.triton.gated_conv2d import Filter


def launch(*args: Any) -> tuple[Tensor, Tensor]:
    """`gated_bottleneck` on x's device, to the schema; panels are an order of the CPU's, not used here.

    Raises:
        RuntimeError: there is no kernel for these arguments.
    """
    return launch_block(*_parts(*args), lambda: reference(*args))


def launch_(*args: Any) -> Tensor:
    """`gated_bottleneck_` on x's device, to the schema.

    Raises:
        RuntimeError: there is no kernel for these arguments.
    """
    return launch_block_(*_parts(*args, reason=block_in_place_unsupported(args[0])), lambda: reference(*args))


def _parts(*args: Any, reason: str | None = None) -> tuple[Residual, list[Filter], list[InteriorGate]]:
    check_args(*args)
    reason = reason or gated_bottleneck_unsupported(*args)
    if reason is not None:
        raise RuntimeError(f"gated_bottleneck: no Triton kernel for this call: {reason}")
    r, gates = residual_of(*args), [InteriorGate(*args[15:18]), InteriorGate(*args[18:21])]
    zero, one = (0, 0), (1, 1)
    filters = [
        Filter(args[1], args[2], one, zero),
        Filter(args[4], args[5], (r.stride, r.stride), one),
        Filter(args[7], args[8], one, zero),
    ]
    return r, filters, gates
