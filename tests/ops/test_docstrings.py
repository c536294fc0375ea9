"""The examples in the docstrings of ddi_kernels run and print what they say."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import ddi_kernels

MODULES = sorted(
    info.name
    for info in pkgutil.walk_packages(ddi_kernels.__path__, "ddi_kernels.")
    if not info.name.endswith(("._C", "._C_cuda", ".__main__"))
)


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name):
    result = doctest.testmod(importlib.import_module(name))
    assert result.failed == 0


@pytest.mark.parametrize("name", ddi_kernels.__all__)
def test_public_functions_have_an_example(name):
    documented = getattr(ddi_kernels, name)
    assert doctest.DocTestFinder().find(documented)[0].examples or name == "current_backend"
