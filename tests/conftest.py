"""Fixtures of all tests: seeds, NaN in memory that nobody wrote, and every implementation by name."""

from __future__ import annotations

import builtins
import tempfile
from collections.abc import Iterator

import pytest
import torch
from native import ISAS, forced_isa, require_native
from repeatable import (  # noqa: F401  (pytest takes hooks from here)
    pytest_configure,
    pytest_fixture_setup,
    pytest_make_collect_report,
    pytest_runtest_setup,
)

import ddi_kernels


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    """Fills every tensor that torch allocates without writing it with NaN (integers: maximum).

    This is torch's own switch, so it also holds for tensors allocated by compiled kernels, and an
    output element that a kernel leaves out shows up in any comparison.
    """
    before = torch.are_deterministic_algorithms_enabled()
    before_warn = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.empty(3).isnan().all(), "torch no longer fills uninitialized memory"
    yield
    torch.use_deterministic_algorithms(before, warn_only=before_warn)


@pytest.fixture(scope="session", autouse=True)
def own_temporary_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Where trainings and measurements lock each other out (ddi.quiet): the tests' own, not the machine's.

    Else a training of anybody else, or of other tests beside these, would hold up the measurements of these.
    """
    folder = str(tmp_path_factory.mktemp("temporary"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", folder)
        patch.setattr(tempfile, "tempdir", folder)
        yield


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """The compiled kernels of one instruction set after the other."""
    with forced_isa(request.param), ddi_kernels.backend("native"):
        yield request.param


@pytest.fixture(params=("reference", "native"))
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """The reference, then the compiled kernels of the best instruction set."""
    if request.param == "native":
        require_native()
    with ddi_kernels.backend(request.param):
        yield request.param


@pytest.fixture(params=("reference", *ISAS))
def kernel(request: pytest.FixtureRequest) -> Iterator[str]:
    """The reference, then the compiled kernels of every instruction set, forced one by one."""
    if request.param == "reference":
        with ddi_kernels.backend("reference"):
            yield request.param
        return
    with forced_isa(request.param), ddi_kernels.backend("native"):
        yield request.param


@pytest.fixture
def no_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine where importing matplotlib fails."""
    real = builtins.__import__

    def without(name: str, *args: object, **kwargs: object) -> object:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
