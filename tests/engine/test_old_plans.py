"""Plans of an earlier engine are answered as they were, by every instruction set, together and one by one."""

from __future__ import annotations

import copy
import json
import os
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from built import run
from native import LEVELS
from old_plans import PLANS, kept
from tolerances import TOLERANCES

pytest.importorskip("ddi_kernels._engine", reason="ddi_kernels._engine is not built")
_C = pytest.importorskip("ddi_kernels._C", reason="ddi_kernels._C is not built")

NAMES = sorted(path.stem for path in PLANS.glob("*.ddi"))
AVAILABLE = LEVELS[: LEVELS.index(_C.detected_cpu_isa()) + 1]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.float32}


@cache
def answers(isa: str) -> dict[str, Any]:
    """Of all plans, from a process of its own."""
    environment = os.environ | {"DDI_CPU_ISA": isa, "PYTHONPATH": os.pathsep.join(sys.path)}
    worker = Path(__file__).with_name("old_plans.py")
    finished = run(sys.executable, "-P", worker, env=environment)
    assert finished.returncode == 0, finished.stderr
    found = json.loads(finished.stdout)
    assert found["isa"] == isa
    return found


def check(got: dict[str, Any], expected: dict[str, Any]) -> None:
    """All but the logits is equal, and these are near."""
    assert got["network"] == expected["network"]
    atol, rtol = TOLERANCES[DTYPES[expected["network"]["dtype"]]]
    for one, other in zip(got["runs"], expected["runs"], strict=True):
        for way in ("together", "alone"):
            mine, theirs = dict(one[way]), dict(other[way])
            logits = (torch.tensor(answer.pop("logits"), dtype=torch.float64) for answer in (mine, theirs))
            torch.testing.assert_close(*logits, atol=atol, rtol=rtol)
            assert mine == theirs, f"{way}, {other['options']}"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("isa", AVAILABLE)
def test_old_plans_are_answered_as_they_were(isa: str, name: str) -> None:
    for got in answers(isa)[name]:  # on one thread and on two
        check(got, kept(name))


@pytest.mark.parametrize("name", NAMES)
def test_images_are_told_apart(name: str) -> None:
    network, runs = kept(name)["network"], kept(name)["runs"]
    own = runs[0]["together"]
    bits = "".join(own["decisions"])
    assert 0.2 < bits.count("1") / len(bits) < 0.8
    assert len(set(own["decisions"])) > 2 and len(set(own["macs"])) > 2
    assert max(own["macs"]) < network["dense_macs"]
    exits = {number for one in runs for number in one["together"]["exits"]}
    assert exits == set(range(len(network["exits"])))


@pytest.mark.parametrize("key", ["logits", "exits", "macs", "weight_bytes", "activation_bytes", "decisions"])
def test_one_other_answer_is_seen(key: str) -> None:
    expected = kept("exits_bf16")
    check(copy.deepcopy(expected), expected)
    for way in ("together", "alone"):
        got = copy.deepcopy(expected)
        value = got["runs"][2][way][key][-1]
        if key == "logits":
            value[-1] += 0.1 + 0.1 * abs(value[-1])
        else:
            got["runs"][2][way][key][-1] = value[::-1] if key == "decisions" else value + 1
        with pytest.raises(AssertionError):
            check(got, expected)


def test_names_are_the_plans() -> None:
    assert NAMES == ["exits_bf16", "gated_fp32", "gated_int8"]
