"""The mark of tests that need a GPU: skipped, with the reason, where Triton kernels cannot run on one."""

from __future__ import annotations

import os

import pytest

from ddi_kernels import backends


def _missing() -> str:
    if os.environ.get("TRITON_INTERPRET") == "1":
        return "TRITON_INTERPRET=1: kernels would be interpreted"
    ok, reason = backends.triton_available()
    return "" if ok else reason


needs_gpu = pytest.mark.skipif(bool(_missing()), reason=_missing())
