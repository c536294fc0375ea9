"""Draws of torch, numpy and random are the same in every run: alone, in the whole suite, in any order.

Every test begins at a seed of its own name. What outlives a test, a fixture of a module or the session, and
what a test file draws while it is imported begin at seeds of theirs, and leave the test's own as they are.
Folders are no part of a name, so that a moved file draws what it drew before.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch

__all__ = ["pytest_configure", "pytest_fixture_setup", "pytest_make_collect_report", "pytest_runtest_setup"]


def seed(name: str) -> None:
    """Starts all global generators at a number of the name."""
    number = zlib.crc32(name.encode())
    torch.manual_seed(number)
    np.random.seed(number)
    random.seed(number)


@contextmanager
def seeded_aside(name: str) -> Iterator[None]:
    """Draws in here begin at the name's seed; those behind go on as if there had been none."""
    before = torch.get_rng_state(), np.random.get_state(), random.getstate()
    seed(name)
    try:
        yield
    finally:
        torch.set_rng_state(before[0])
        np.random.set_state(before[1])
        random.setstate(before[2])


def pytest_configure(config: pytest.Config) -> None:
    # Examples of hypothesis are the same in every run, too; on a machine with a GPU it may be missing.
    if config.pluginmanager.hasplugin("hypothesispytest"):
        from hypothesis import settings

        settings.load_profile("ci")


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Generator[None, Any, Any]:
    with seeded_aside(collector.name):
        return (yield)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    seed(f"{item.path.name}::{item.nodeid.partition('::')[2]}")


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef: Any, request: Any) -> Generator[None, Any, Any]:
    if fixturedef.scope == "function":
        return (yield)
    with seeded_aside(f"{fixturedef.argname}[{request.param_index}]"):
        return (yield)
