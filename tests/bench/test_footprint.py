"""What loading a network takes: known allocations are seen, and failures reported."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import ddi
from bench.footprint import _observe, measure
from bench.networks import Network, make_case

MIB = 2**20


def test_sees_what_is_taken_and_what_is_kept() -> None:
    kept = []

    def load() -> object:
        np.ones(96 * MIB, np.uint8)  # given back at once
        kept.append(np.ones(40 * MIB, np.uint8))
        return lambda: kept[0].sum()

    seen = _observe(load)
    assert 94 < seen.peak_mib < 110
    assert 38 < seen.kept_mib < 50
    assert seen.load_ms > 1 and 0 < seen.first_call_ms < seen.load_ms * 10


def test_runs_in_a_process_of_its_own(tmp_path: Path) -> None:
    pytest.importorskip("ddi_kernels._engine", reason="ddi_kernels._engine is not built")
    case = make_case(Network("cifar_resnet8", 32, ddi.DDIConfig(group_size=4)), 1, 1, "fp32")
    case.freeze(case.gated, tmp_path / "net.ddi")
    seen = measure("engine", tmp_path / "net.ddi", 32)
    assert 0.3 < seen.kept_mib <= seen.peak_mib < 30  # the packed weights alone take 0.3 MiB
    with pytest.raises(RuntimeError, match="engine of none.ddi: .*No such file"):
        measure("engine", tmp_path / "none.ddi", 32)
