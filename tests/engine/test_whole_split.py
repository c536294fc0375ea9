"""The engine and the model it was frozen from on every test image of the shipped network."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from tolerances import assert_close
from torch import Tensor

import ddi
from bench.decisions import forced
from ddi.report.demo import pretrained
from ddi_kernels import engine

pytest.importorskip("ddi_kernels._engine", reason="ddi_kernels._engine is not built")

BATCH = 50
MARGIN = 1e-5  # of a gate's probability: nearer to the threshold rounding may decide


@cache
def shipped() -> tuple[Any, Tensor]:
    """The gated network and the images of the test split."""
    model, _ = ddi.load_model(pretrained("scene_digits_resnet38_ddi.safetensors"))
    data = ddi.data.get_dataset("scene_digits")
    return model.eval(), data.normalize(data.test().images)


def run(tmp_path: Path, **kwargs: Any) -> tuple[Tensor, Tensor]:
    """Logits and decisions of all images in the engine."""
    model, images = shipped()
    ddi.freeze(model, images[:1], tmp_path / "net.ddi", **kwargs)
    frozen = engine.load(tmp_path / "net.ddi", max_batch=BATCH)
    answers = [frozen(part, report=True) for part in images.split(BATCH)]
    return torch.cat([logits for logits, _ in answers]), torch.cat([r.decisions for _, r in answers])


@torch.no_grad()
def test_equals_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, images = shipped()
    logits, bits = run(tmp_path)
    assert len(logits) == 5000
    # Each gate is asked with what the engine's gates saw, since the bits before it are the engine's.
    gates, seen = model.ddi_gates, []
    decide = type(gates).decide

    def noted_decide(*args: Any) -> Any:
        decision, state = decide(*args)
        seen[-1] += [] if decision.keep is None else [decision.keep[:, None]]
        seen[-1] += [mask.open for mask in decision.masks]
        return decision, state

    monkeypatch.setattr(type(gates), "decide", noted_decide)
    certain = {}
    for threshold in (0.5 - MARGIN, 0.5 + MARGIN):
        gates.set_threshold(threshold)
        rows = []
        for part, row, expected in zip(*(t.split(BATCH) for t in (images, bits, logits)), strict=True):
            seen.append([])
            with forced(model, row):
                assert_close(expected, model(part))
            rows.append(torch.cat(seen.pop(), dim=1))
        certain[threshold] = torch.cat(rows)
    gates.set_threshold(0.5)
    assert not (bits.bool() & ~certain[0.5 - MARGIN]).any()
    assert not (~bits.bool() & certain[0.5 + MARGIN]).any()


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int8], ids=str)
def test_gates_agree(dtype: torch.dtype, tmp_path: Path) -> None:
    _, images = shipped()
    data = ddi.data.get_dataset("scene_digits")
    labels = data.test().labels
    calibration = {"calibration": data.normalize(data.train(0, 0).images[:256])}
    logits, bits = run(tmp_path, dtype=dtype, **(calibration if dtype == torch.int8 else {}))
    exact_logits, exact = run(tmp_path)
    share = (bits == exact).double().mean().item()
    right = [(t.argmax(1) == labels).double().mean().item() for t in (exact_logits, logits)]
    assert share >= 0.995
    assert abs(right[1] - right[0]) < 0.005
