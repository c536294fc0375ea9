"""Registers an operator with torch: schema, kernels, fake, autograd, autocast and FLOP formula.

One description (`Op`) goes through one function for every namespace. In `ddi` the compiled libraries
bring the CPU and CUDA kernels; the reference is registered as the kernel of all devices that have
none, so that an operator works, traces and differentiates the same with and without them. Operators
with a Triton kernel stand in `ddi_triton` as well.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils.flop_counter import register_flop_formula

_TAGS = (torch.Tag.needs_fixed_stride_order, torch.Tag.pt2_compliant_tag)
_LIBRARIES: dict[str, torch.library.Library] = {}


@dataclass(frozen=True)
class Op:
    """All that torch needs to know of an operator.

    Args:
        name: the operator's name, that of its file.
        schema: arguments and results, in the language of native_functions.yaml.
        reference: the plain torch implementation; takes the schema's arguments.
        fake: computes shapes, dtypes and strides only.
        backward: gradients with respect to all arguments, with `setup_context`; see
            torch.library.register_autograd.
        setup_context: what forward keeps for backward.
        autocast: called under autocast, with the floating arguments cast to its dtype.
        flops: FLOPs (two for each multiply-add) of a call, from the real arguments.
    """

    name: str
    schema: str
    reference: Callable[..., Any]
    fake: Callable[..., Any]
    backward: Callable[..., Any] | None = None
    setup_context: Callable[..., None] | None = None
    autocast: Callable[..., Any] | None = None
    flops: Callable[..., int] | None = None


def register(op: Op) -> OpOverload:
    """Registers `op` as `ddi::<name>` and returns the overload that public functions call."""
    return _register("ddi", op, {"CompositeExplicitAutograd": op.reference})


def register_triton(op: Op) -> OpOverload:
    """Registers `op` as `ddi_triton::<name>`: `launch` of ddi_kernels/triton/<name>.py, `launch_` in place.

    For CUDA tensors; with TRITON_INTERPRET=1, when Triton runs its kernels on the CPU, for CPU
    tensors too. Triton is imported at the first call. Autocast stays with `ddi::<name>`.
    """

    name = op.name.rstrip("_")
    entry = "launch" + op.name[len(name) :]

    def launch(*args: Any) -> Any:
        return getattr(importlib.import_module(f"ddi_kernels.triton.{name}"), entry)(*args)

    keys = ["CUDA", "CPU"] if os.environ.get("TRITON_INTERPRET") == "1" else ["CUDA"]
    return _register("ddi_triton", replace(op, autocast=None), dict.fromkeys(keys, launch))


def _register(namespace: str, op: Op, kernels: Mapping[str, Callable[..., Any]]) -> OpOverload:
    if namespace not in _LIBRARIES:
        _LIBRARIES[namespace] = torch.library.Library(namespace, "DEF")
    lib = _LIBRARIES[namespace]
    lib.define(op.name + op.schema, tags=_TAGS)
    overload = getattr(getattr(torch.ops, namespace), op.name).default
    for key, kernel in kernels.items():
        lib.impl(op.name, kernel, key)
    name = f"{namespace}::{op.name}"
    torch.library.register_fake(name, op.fake, lib=lib)
    if op.backward is not None:
        torch.library.register_autograd(name, op.backward, setup_context=op.setup_context, lib=lib)
    if op.autocast is not None:
        for device_type in ("cpu", "cuda"):
            kernel = _autocast(op.autocast, device_type, _packed_arguments(overload))
            lib.impl(op.name, kernel, f"Autocast{device_type.upper()}")
    if op.flops is not None:
        register_flop_formula(overload.overloadpacket, get_raw=True)(op.flops)
    return overload


def _packed_arguments(overload: OpOverload) -> set[int]:
    return {i for i, argument in enumerate(overload._schema.arguments) if "packed" in argument.name}


def _autocast(run: Callable[..., Any], device_type: str, packed: set[int]) -> Callable[..., Any]:
    keys = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, f"Autocast{device_type.upper()}"))

    def kernel(*args: Any) -> Any:
        dtype = torch.get_autocast_dtype(device_type)
        # float64 stays, as it does in torch's own convolutions.
        cast = [
            a.to(dtype) if isinstance(a, Tensor) and a.is_floating_point() and a.dtype != torch.float64 else a
            for a in args
        ]
        # The layout of packed weights is that of their dtype: casting them would scramble them.
        for i in packed:
            cast[i] = args[i] if cast[i] is args[i] else None
        with torch._C._ExcludeDispatchKeyGuard(keys):
            return run(*cast)

    return kernel


def autocast_enabled(x: Tensor) -> bool:
    """Whether an operator must be called through torch's dispatcher to have its arguments cast."""
    # The text of a device costs more than most checks of a call.
    if x.is_cpu:
        return torch.is_autocast_enabled("cpu")
    return not x.is_meta and torch.is_autocast_enabled(x.device.type)


def call_kernel(overload: OpOverload, check_args: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    """Calls a compiled or Triton operator where no gradient is needed.

    Args:
        overload: what `register` or `register_triton` returned.
        check_args: raises for wrong arguments in the words of the reference; called if the operator raises.
        args: the schema's.
    """
    try:
        if torch.compiler.is_compiling():
            return overload(*args)
        # Calling an overload is a Python function around this one.
        kernel = overload.op
        if torch.is_inference_mode_enabled():
            return kernel(*args)
        # No gradient is needed here, and asking for one again is half of a small call's time.
        with torch._C._AutoDispatchBelowAutograd():
            return kernel(*args)
    except RuntimeError:
        check_args(*args)  # words the same mistake alike on all backends
        raise
