"""ddi.h from C99: tests/engine/c_api_check.c computes, Python compares."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from built import run
from tiny_plans import CLASSES, CORPUS, SIZE

from ddi_kernels import engine

GATED = CORPUS / "resnet_gated.ddi"
EXITS = CORPUS / "exits.ddi"
IMAGES = 4
ENERGY = (3e-12, 2e-11, 7e-12)  # of c_api_check.c
NO_LIMITS = ("-1", "-1", "-1")


@pytest.fixture(scope="module")
def c_program(compile_c: Callable[[str], Path]) -> Path:
    return compile_c("c_api_check")


@pytest.fixture
def images(tmp_path: Path) -> np.ndarray:
    x = np.random.default_rng(0).standard_normal((IMAGES, 3, SIZE, SIZE), np.float32)
    x.tofile(tmp_path / "nchw")
    x.transpose(0, 2, 3, 1).tofile(tmp_path / "nhwc")
    return x


@pytest.fixture
def large_images(tmp_path: Path) -> Path:
    """For `large_plan`, and enough for the smaller ones."""
    np.random.default_rng(0).standard_normal((IMAGES, 3, 32, 32), np.float32).tofile(tmp_path / "large")
    return tmp_path / "large"


def call(program: Path, *arguments: str | Path) -> str:
    finished = run(program, *arguments)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return finished.stdout


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("name", ["resnet_gated", "densenet_gated", "mixed", "exits_bf16"])
def test_computes_what_python_computes(
    name: str, layout: str, threads: int, c_program: Path, images: np.ndarray, tmp_path: Path
) -> None:
    pytest.importorskip("ddi_kernels._engine", reason="ddi_kernels._engine is not built")
    plan = CORPUS / f"{name}.ddi"
    frozen = engine.load(plan, max_batch=IMAGES)
    bits = np.random.default_rng(1).integers(0, 2, (IMAGES, frozen.decision_bytes), np.uint8)
    bits.tofile(tmp_path / "bits")
    for decisions in (None, bits):
        out = tmp_path / "logits"
        more = [] if decisions is None else [tmp_path / "bits"]
        data = [plan, tmp_path / layout, str(IMAGES), layout, str(threads)]
        printed = call(c_program, "run", *data, *NO_LIMITS, out, *more).split()
        logits, report = frozen(images, decisions=decisions, report=True, energy=ENERGY)
        assert np.array_equal(np.fromfile(out, np.float32).reshape(IMAGES, CLASSES), logits)
        assert printed[:2] == [frozen.exits[report.exit], str(report.exit)]
        columns = (report.macs, report.weight_bytes, report.activation_bytes, report.joules, report.exits)
        for i, column in enumerate(columns):
            assert [float(text) for text in printed[2 + i :: 5]] == column


def test_budgets(c_program: Path, images: np.ndarray, tmp_path: Path) -> None:
    pytest.importorskip("ddi_kernels._engine", reason="ddi_kernels._engine is not built")
    frozen = engine.load(EXITS, max_batch=IMAGES)
    out = tmp_path / "logits"

    def check(macs: float = -1, joules: float = -1, confidence: float = -1) -> int:
        data = [EXITS, tmp_path / "nchw", str(IMAGES), "nchw", "1"]
        printed = call(c_program, "run", *data, str(macs), repr(joules), repr(confidence), out)
        limits: dict[str, Any] = {"max_macs": macs, "max_joules": joules, "confidence": confidence}
        limits = {name: value for name, value in limits.items() if value >= 0}
        logits, report = frozen(images, **limits, energy=ENERGY, report=True)
        assert np.array_equal(np.fromfile(out, np.float32).reshape(IMAGES, CLASSES), logits)
        assert printed.split()[1] == str(report.exit)
        assert [int(text) for text in printed.split()[6::5]] == report.exits
        return report.exit

    for exit, work in enumerate(frozen.exit_worst_work):
        assert check(macs=work[0]) == exit
        assert check(joules=ENERGY[0] * work[0] + ENERGY[1] * work[1] + ENERGY[2] * work[2]) == exit
    assert [check(confidence=value) for value in (0, 1)] == [0, 2]
    check(confidence=0.36)


def test_every_error(c_program: Path) -> None:
    assert call(c_program, "errors", GATED) == "errors: ok\n"


def test_threads_with_sessions_of_their_own(c_program: Path, large_plan: Path, large_images: Path) -> None:
    printed = call(c_program, "threads", large_plan, large_images, str(IMAGES))
    assert printed == "threads: 0 wrong of 200\n"


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", ["large", "resnet_gated_bf16", "densenet_gated", "mixed", "exits"])
def test_runs_do_not_allocate(
    name: str, threads: int, c_program: Path, large_plan: Path, large_images: Path
) -> None:
    plan = large_plan if name == "large" else CORPUS / f"{name}.ddi"
    words = call(c_program, "allocations", plan, large_images, str(IMAGES), str(threads)).split()
    assert int(words[1]) > 3, "opening a session allocates, or nothing is counted"
    assert words[3:] == ["0", "running"]


@pytest.mark.parametrize("name", ["resnet_gated", "densenet_gated", "mixed"])
def test_no_allocation_may_fail_unnoticed(name: str, c_program: Path) -> None:
    words = call(c_program, "exhausted", CORPUS / f"{name}.ddi").split()
    assert words[0] == "exhausted:" and int(words[1]) > 50
