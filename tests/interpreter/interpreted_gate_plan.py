"""The Triton kernel of gate_plan, interpreted: against float64, and in torch."""

from __future__ import annotations

import pytest
import torch
from test_gate_plan import BAD, gates, inputs
from tolerances import TOLERANCES

from ddi_kernels import backend, gate_logits, gate_plan

OP = torch.ops.ddi_triton.gate_plan.default


@pytest.fixture(autouse=True)
def triton_backend():
    with backend("triton"):
        yield


@pytest.mark.parametrize("n", [0, 1, 9])
@pytest.mark.parametrize("channels", [1, 33, 200])
@pytest.mark.parametrize("hidden, reduced, groups", [(0, 16, 5), (10, 16, 5), (17, 5, 70), (16, 1, 1)])
def test_equals_float64(n, channels, hidden, reduced, groups):
    weights = gates(channels, hidden, reduced, groups)
    x, h, c = inputs(n, channels, hidden)
    wide = {key: [w.double() for w in values] for key, values in weights.items()}
    keep_logit, open_logit, h64, c64 = gate_logits(x.double(), h.double(), c.double(), **wide)
    keep, opened, h1, c1 = gate_plan(x, h, c, **weights, threshold=0.3)
    atol, rtol = TOLERANCES[torch.float32]
    torch.testing.assert_close(h1.double(), h64, atol=atol, rtol=rtol)
    torch.testing.assert_close(c1.double(), c64, atol=atol, rtol=rtol)
    if hidden == 0:
        assert keep_logit is None and keep.all()
        keep_logit = keep.double()
    for bits, logits in ((keep, keep_logit), (opened, open_logit)):
        # A bit may differ only where rounding can carry the logit across the threshold.
        clear = (logits - 0.3).abs() > 1e-4
        assert bits.dtype == torch.bool and torch.equal(bits[clear], (logits > 0.3)[clear])
        assert n == 0 or clear.any()


def test_means_of_any_strides():
    weights, (x, h, c) = gates(33), inputs(9, 33)
    means = x[:, :, 0, 0]
    assert not means.is_contiguous()
    for state in ((h, c), (h.repeat(1, 2)[:, ::2], c.T.contiguous().T)):
        strided = gate_plan(means, *state, **{k: [w.T.contiguous().T for w in v] for k, v in weights.items()})
        plain = gate_plan(means.contiguous(), *(s.contiguous() for s in state), **weights)
        for a, b in zip(strided, plain, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("without", ["layer", "channel"])
def test_a_missing_head(without):
    x, h, c = inputs(4, 8)
    expected, found = gate_plan(x, h, c, **gates(8)), gate_plan(x, h, c, **gates(8) | {without: []})
    other = 1 if without == "layer" else 0
    assert torch.equal(found[other], expected[other]) and torch.equal(found[2], expected[2])
    assert found[0].all() if without == "layer" else found[1].shape == (4, 0)


def test_nan_closes_and_extremes_saturate():
    weights, (x, h, c) = gates(4), inputs(3, 4)
    x[0], x[1], x[2] = 1e6, -1e6, torch.nan
    wide = {k: [w.double() for w in v] for k, v in weights.items()}
    expected = gate_logits(x.double(), h.double(), c.double(), **wide)
    keep, opened, h1, c1 = gate_plan(x, h, c, **weights)
    for a, b in ((h1, expected[2]), (c1, expected[3])):
        torch.testing.assert_close(a.double(), b, atol=1e-6, rtol=1e-5, equal_nan=True)
    assert not keep[2] and not opened[2].any() and h1[:2].isfinite().all()


def test_what_it_does_not_do_is_said():
    weights, (x, h, c) = gates(4, dtype=torch.float64), inputs(2, 4, dtype=torch.float64)
    with pytest.raises(RuntimeError, match="gate_plan.*'triton'.*float32, not in torch.float64"):
        gate_plan(x, h, c, **weights)
    with pytest.raises(RuntimeError, match="gate_plan: no Triton kernel.*float32"):
        OP(x, h, c, *weights.values(), 0.0)


@pytest.mark.parametrize("argument", BAD)
def test_errors_name_the_argument(argument):
    x, h, c = inputs(2, 6)
    with pytest.raises(ValueError) as caught:
        gate_plan(**dict(x=x, h=h, c=c, **gates(6)) | BAD[argument])
    assert f"gate_plan: argument '{argument.split(' with')[0]}'" in str(caught.value)


@pytest.mark.parametrize("hidden", [0, 10])
def test_opcheck_and_compile(hidden):
    weights, (x, h, c) = gates(6, hidden), inputs(3, 6, hidden)
    results = torch.library.opcheck(OP, (x, h, c, *weights.values(), 0.1))
    assert len(results) == 4 and set(results.values()) == {"SUCCESS"}
    compiled = torch.compile(
        lambda x, h, c: gate_plan(x, h, c, **weights), fullgraph=True, backend="aot_eager"
    )
    for a, b in zip(compiled(x, h, c), gate_plan(x, h, c, **weights), strict=True):
        torch.testing.assert_close(a, b)
