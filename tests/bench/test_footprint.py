"""What loading a network takes: known allocations are seen, and failures reported."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import ddi
from bench.footprint import Footprint, measure
from bench.networks import Network, make_case

ROOT = Path(__file__).resolve().parents[2]
TAKES = """
import dataclasses, json
import numpy as np
from bench.footprint import _observe

kept = []

def load():
    np.ones(96 * 2**20, np.uint8)  # given back at once
    kept.append(np.ones(40 * 2**20, np.uint8))
    return lambda: kept[0].sum()

print(json.dumps(dataclasses.asdict(_observe(load))))
"""


def test_sees_what_is_taken_and_what_is_kept() -> None:
    # In a process of its own: in an old one memory that was given back is still there to be taken.
    done = subprocess.run([sys.executable, "-c", TAKES], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    seen = Footprint(**json.loads(done.stdout))
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
