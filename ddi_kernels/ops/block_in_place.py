"""Residual blocks that write their output over their input, from the operators that return it.

Samples that skip a block then cost nothing, not even a copy: half of a batch skipped is half of the traffic.
The kernels are Triton's; the native CPU kernels copy from cache, and have no such form.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, cast

import torch
from torch import Tensor

from ddi_kernels.checks import argument_error, check_own_memory, check_tensor, describe
from ddi_kernels.ops.block_parts import Residual, dispatch, needs_gradient
from ddi_kernels.registry import Op, register, register_triton
from ddi_kernels.tiles.tiles import block_in_place_unsupported


def register_in_place(
    op: Op,
    residual_of: Callable[..., Residual],
    check_args: Callable[..., Any],
    no_triton: Callable[..., str | None],
) -> Callable[..., Tensor]:
    """Registers `<op>_` beside a block's operator, and returns what its public function calls.

    Args:
        op: the operator; its schema returns y and pooled, that of the new one pooled.
        residual_of: the parts of its arguments around the residual branch.
        check_args: raises for its wrong arguments.
        no_triton: why it has no Triton kernel for its arguments.
    """
    name = op.name + "_"

    def check(*args: Any) -> None:
        check_args(*args)
        r = residual_of(*args)
        if r.shortcut_weight is not None or r.stride != 1:
            expected = "None, and stride 1: y takes the place of x"
            raise argument_error(name, "shortcut_weight", describe(r.shortcut_weight), expected)
        check_own_memory(name, "x", r.x)

    def reference(*args: Any) -> Tensor:
        check(*args)
        x = args[0]
        with nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False):
            y, pooled = op.reference(*args)
        x.copy_(y)
        return cast(Tensor, pooled)

    def fake(*args: Any) -> Tensor:
        check(*args)
        return cast(Tensor, op.fake(*args)[1])

    def flops(*args: Any, out_val: Tensor) -> int:
        return cast(Callable[..., int], op.flops)(*args, out_val=(args[0], out_val))

    def no_triton_in_place(*args: Any) -> str | None:
        return block_in_place_unsupported(args[0]) or no_triton(*args)

    schema = op.schema.replace("(Tensor x,", "(Tensor(a!) x,").replace("(Tensor y, Tensor pooled)", "Tensor")
    spec = Op(name, schema, reference, fake, flops=flops)
    overload, overload_triton = register(spec), register_triton(spec)

    def run(*args: Any) -> Tensor:
        check_tensor(name, "x", args[0])
        if needs_gradient(args):
            raise RuntimeError(
                f"{name}: an argument requires a gradient, which the in-place form does not have. "
                f"Use {op.name}, or call under torch.no_grad()"
            )
        no_native = "it has no compiled kernel"
        return cast(
            Tensor,
            dispatch(name, overload, reference, check, args, no_native, overload_triton, no_triton_in_place),
        )

    return run
