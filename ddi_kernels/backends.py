"""Which implementation of an operator runs, and why one cannot.

Loads the compiled library once, keeping the reason where it is missing, and holds the choice of the
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


def _load_native() -> tuple[ModuleType | None, str]:
    try:
        return importlib.import_module("ddi_kernels._C"), ""
    except ModuleNotFoundError:
        reason = build_info().get("reason") or "it was never built"
        remedy = "with a C++ compiler, run: pip install --no-build-isolation -e ."
        return None, f"the compiled library ddi_kernels._C is missing: {reason} ({remedy})"
    except (ImportError, OSError, RuntimeError) as failure:
        return None, f"the compiled library ddi_kernels._C does not load: {failure}"


native_library, _native_reason = _load_native()


def native_available() -> tuple[bool, str]:
    """Whether the compiled kernels are loaded, and if not, why."""
    return native_library is not None, _native_reason


def triton_available() -> tuple[bool, str]:
    """Whether Triton kernels can run; none exists yet, whatever is installed."""
    if importlib.util.find_spec("triton") is None:
        return False, "triton is not installed"
    return False, "no operator has a Triton kernel yet"


def reference_available() -> tuple[bool, str]:
    """The plain torch reference runs everywhere."""
    return True, ""


AVAILABILITY: dict[str, Callable[[], tuple[bool, str]]] = {
    "native": native_available,
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
        name: "auto" takes the compiled kernel where it supports the arguments and the plain torch
            reference elsewhere; "native" and "triton" raise where they cannot run; "reference"
            always runs plain torch.

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
    name = _choice()
    if name == "auto":
        if native_library is not None:
            return unsupported is None
        _tell_fallback_once()
        return False
    if name == "reference":
        return False
    if current_backend() == "native":
        reason = unsupported if native_library is not None else _native_reason
        if reason is None:
            return True
    else:
        reason = triton_available()[1]
    raise RuntimeError(
        f"{op}: the backend {name!r} cannot run this call: {reason}. "
        'Use backend("auto") or backend("reference").'
    )


def _tell_fallback_once() -> None:
    global _told_fallback
    if not _told_fallback and not torch.compiler.is_compiling():
        _told_fallback = True
        _logger.warning("running the slow plain torch reference: %s", _native_reason)
