"""Which implementation of an operator runs, and why one cannot.

Loads the compiled libraries once, keeping the reason where one is missing, and holds the choice of the
current thread or task in a context variable, so that concurrent callers do not disturb each other.
The choice is read when a call is made, or when torch.compile traces it: a compiled model keeps it.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

_logger = logging.getLogger(__name__)

NAMES = ("auto", "native", "triton", "reference")


def build_info() -> dict[str, Any]:
    """What the build left beside the package (`built`, `reason`, ...); empty without a build."""
    path = Path(__file__).with_name("_build_info.json")
    try:
        info = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return info if isinstance(info, dict) else {}


def _load(name: str, build: str, remedy: str) -> tuple[ModuleType | None, str]:
    """A compiled module of this package, or why it is missing; `build` is its entry in the build's notes."""
    try:
        return importlib.import_module(f"ddi_kernels.{name}"), ""
    except ModuleNotFoundError:
        info = build_info()
        reason = (info.get(build) or {} if build else info).get("reason") or "it was never built"
        return None, f"the compiled library ddi_kernels.{name} is missing: {reason} ({remedy})"
    except (ImportError, OSError, RuntimeError) as failure:
        return None, f"the compiled library ddi_kernels.{name} does not load: {failure}"


def _load_native() -> tuple[ModuleType | None, str]:
    return _load("_C", "", "with a C++ compiler, run: pip install --no-build-isolation -e .")


def _load_cuda() -> tuple[ModuleType | None, str]:
    """The CUDA kernels, on top of the CPU ones; not even looked for where torch has no CUDA."""
    if torch.version.cuda is None:
        return None, "this torch is built without CUDA"
    return _load("_C_cuda", "cuda", "with nvcc, run: DDI_BUILD=cuda pip install --no-build-isolation -e .")


native_library, _native_reason = _load_native()
cuda_library, _cuda_reason = _load_cuda()

# Operators that ddi_kernels._C_cuda brings; the others compute in plain torch on a GPU.
_CUDA_OPS = frozenset(
    {"active_channels", "gated_conv2d", "gather_samples", "resident_stage"}
    | {"scatter_samples", "scatter_samples_"}
)


def native_available() -> tuple[bool, str]:
    """Whether the compiled CPU kernels are loaded, and if not, why."""
    return native_library is not None, _native_reason


def cuda_available() -> tuple[bool, str]:
    """Whether the compiled CUDA kernels are loaded, and if not, why; says nothing of a GPU."""
    return cuda_library is not None, _cuda_reason


def no_native_kernel(op: str, tensor: torch.Tensor) -> str | None:
    """Why the compiled libraries have no kernel of `op` for the tensor's device, None where they have."""
    if tensor.is_cpu:
        return None
    if not tensor.is_cuda or op not in _CUDA_OPS:
        return f"it has no kernel for {tensor.device.type} tensors"
    return None if cuda_library is not None else _cuda_reason


def no_native_dtype(x: torch.Tensor, dtypes: tuple[torch.dtype, ...]) -> str:
    """Why a compiled kernel that computes in these dtypes cannot take x."""
    return f"it computes in {', '.join(str(d).removeprefix('torch.') for d in dtypes)}, not in {x.dtype}"


def triton_available() -> tuple[bool, str]:
    """Whether Triton kernels can run here, and if not, why."""
    if importlib.util.find_spec("triton") is None:
        return False, 'triton is not installed: pip install "ddi-kernels[triton]"'
    if os.environ.get("TRITON_INTERPRET") == "1":
        return True, ""
    if torch.version.cuda is None:
        return (
            False,
            "this torch is built without CUDA (TRITON_INTERPRET=1 runs Triton on the CPU, for tests)",
        )
    if not torch.cuda.is_available():
        return False, "no CUDA GPU is visible (TRITON_INTERPRET=1 runs Triton on the CPU, for tests)"
    return True, ""


# Neither changes while a process runs.
triton_available._dynamo_marked_constant = True  # type: ignore[attr-defined]


def reference_available() -> tuple[bool, str]:
    """The plain torch reference runs everywhere."""
    return True, ""


AVAILABILITY: dict[str, Callable[[], tuple[bool, str]]] = {
    "native": native_available,
    "cuda": cuda_available,
    "triton": triton_available,
    "reference": reference_available,
}

_current: ContextVar[str] = ContextVar("ddi_backend", default=os.environ.get("DDI_BACKEND") or "auto")
_told_fallback = False


def _choice() -> str:
    return _current.get()


# What torch.compiler.assume_constant_result sets; that would import torch._dynamo, for seconds.
_choice._dynamo_marked_constant = True  # type: ignore[attr-defined]


def current_backend() -> str:
    """The name in force here: of the innermost `backend(...)`, else DDI_BACKEND, else "auto".

    Returns:
        "auto", "native", "triton" or "reference".

    Raises:
        ValueError: DDI_BACKEND holds another name.
    """
    return _check_name(_choice(), "DDI_BACKEND")


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Chooses the implementation of all operators called inside a `with` block.

    Args:
        name: "auto" takes the compiled kernel where it supports the arguments, else the plain torch
            reference; on a GPU the Triton kernel before both. "native" and "triton" raise where they
            cannot run; "reference" always runs plain torch.

    Raises:
        ValueError: the name is unknown.

    Example:
        >>> import torch
        >>> from ddi_kernels import backend, gated_conv2d
        >>> with backend("reference"):
        ...     y = gated_conv2d(torch.ones(1, 2, 4, 4), torch.ones(3, 2, 3, 3))
        >>> tuple(y.shape)
        (1, 3, 2, 2)
    """
    token = _current.set(_check_name(name, "backend"))
    try:
        yield
    finally:
        _current.reset(token)


def _check_name(name: str, source: str) -> str:
    if name not in NAMES:
        raise ValueError(f"{source}: expected one of {', '.join(NAMES)}, got {name!r}")
    return name


def use_native(op: str, unsupported: str | None) -> bool:
    """Whether a call goes to the compiled kernel (True) or to the reference (False).

    Args:
        op: the operator's name, for the error.
        unsupported: why the compiled kernel cannot take these arguments, None where it can.

    Raises:
        RuntimeError: the backend chosen by name cannot run this call.
    """
    return choose(op, unsupported) == "native"


def choose(
    op: str,
    no_native: str | None,
    no_triton: Callable[..., str | None] | None = None,
    args: tuple[Any, ...] = (),
    on_gpu: bool = False,
) -> str:
    """The implementation that a call goes to: "native", "triton" or "reference".

    Args:
        op: the operator's name, for the error.
        no_native: why the compiled kernel cannot take these arguments, None where it can.
        no_triton: says the same of the Triton kernel when called with `args`, only where it matters; None
            for an operator that has none.
        on_gpu: whether the arguments are CUDA tensors. Elsewhere Triton's interpreter is slow, and
            taken only by name.

    Raises:
        RuntimeError: the backend chosen by name cannot run this call.
    """
    name = _choice()
    if name == "auto":
        # Triton knows the matrix instructions of each GPU, CUDA C++ here those that all have.
        if on_gpu and _triton_reason(no_triton, args) is None:
            return "triton"
        if no_native is None and native_library is not None:
            return "native"
        if native_library is None:
            _tell_fallback_once()
        return "reference"
    if name == "reference":
        return "reference"
    if current_backend() == "native":
        reason = no_native if native_library is not None else _native_reason
    else:
        reason = _triton_reason(no_triton, args)
    if reason is None:
        return name
    raise RuntimeError(
        f"{op}: the backend {name!r} cannot run this call: {reason}. "
        'Use backend("auto") or backend("reference").'
    )


def after_check(
    check_args: Callable[..., Any], no_triton: Callable[..., str | None], *args: Any
) -> str | None:
    """`no_triton` of right arguments; about wrong ones, which `check_args` names, it cannot be asked."""
    check_args(*args)
    return no_triton(*args)


def _triton_reason(no_triton: Callable[..., str | None] | None, args: tuple[Any, ...]) -> str | None:
    if no_triton is None:
        return "it has no Triton kernel"
    ok, reason = triton_available()
    return no_triton(*args) if ok else reason


def _tell_fallback_once() -> None:
    global _told_fallback
    if not _told_fallback and not torch.compiler.is_compiling():
        _told_fallback = True
        _logger.warning("running the slow plain torch reference: %s", _native_reason)
