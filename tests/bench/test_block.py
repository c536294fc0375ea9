"""The block bench: what its rows derive from times, and that everybody computes the block."""

from __future__ import annotations

import pytest
import torch

from bench.block import dense_block, dense_providers, make_weights, our_calls, row_times
from bench.gated import draw_masks, expand_mask
from bench.opponents import check_result
from ddi.measure.timing import Timing
from ddi.measure.turns import Measured


def _measured(ms: float) -> Measured:
    return Measured(Timing.of([ms, ms, ms]), 10)


def test_times_of_a_row():
    row = row_times(_measured(0.05), _measured(1.28), {"slow": 0.3, "fast": 0.1}, 2.0)
    assert row["best_dense_provider"] == "fast" and row["speedup_vs_best_dense"] == pytest.approx(2.0)
    assert row["realised"] == pytest.approx(1.0)
    # 1.28 ms for 32 samples are 40 us a sample, of the 50 us that one takes alone.
    assert row["kernels_us"] == pytest.approx(40) and row["overhead_us"] == pytest.approx(10)


def test_everybody_computes_the_block():
    xs = [torch.randn(1, 16, 8, 8).contiguous(memory_format=torch.channels_last) for _ in range(2)]
    weights = make_weights(16)
    expected = dense_block(xs[1].double(), weights)
    providers = dense_providers(xs, weights, 1)
    assert set(providers) == {"channels_last", "onnxruntime", "openvino"}
    for name, provider in providers.items():
        check_result(name, "block", provider.output(1), expected)
    masks = draw_masks(1, 16, 0.5, 4)
    with torch.inference_mode():
        got = our_calls(xs, weights, masks, 4)[3]()
    check_result("ours", "block", got, dense_block(xs[1].double(), weights, expand_mask(masks[3], 16, 4)))
    with pytest.raises(RuntimeError, match="ours on block differs from float64"):
        check_result("ours", "block", got + 1, expected)
