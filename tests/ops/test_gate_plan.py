"""gate_plan: bits and state of every backend equal the reference; odd sizes; errors; torch integration."""

import math

import pytest
import torch
from tolerances import TOLERANCES

from ddi_kernels import gate_logits, gate_plan


def gates(channels, hidden=10, reduced=16, groups=5, dtype=torch.float32, seed=0):
    """Random weights: lstm, layer and channel lists; the first two are empty if hidden is 0."""
    generator = torch.Generator().manual_seed(seed)

    def weight(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) * 0.7

    lstm = [weight(hidden, channels), weight(hidden), weight(4 * hidden, hidden)]
    lstm += [weight(4 * hidden, hidden), weight(4 * hidden), weight(4 * hidden)]
    layer = [weight(1, hidden), weight(1)]
    channel = [weight(reduced, channels + hidden), weight(reduced), weight(groups, reduced), weight(groups)]
    return dict(lstm=lstm if hidden else [], layer=layer if hidden else [], channel=channel)


def inputs(n, channels, hidden=10, dtype=torch.float32, size=(7, 5)):
    torch.manual_seed(n + channels)
    x = torch.randn(n, channels, *size, dtype=dtype) + torch.randn(n, channels, 1, 1, dtype=dtype)
    return x, torch.randn(n, hidden, dtype=dtype), torch.randn(n, hidden, dtype=dtype)


def test_by_hand():
    # One pixel, one channel, one hidden unit: projected = 2, gates i = f = o = 0 -> 1/2, g = 2.
    one = torch.ones(1, 1)
    zero = torch.zeros(4)
    w_ih = torch.tensor([[0.0], [0.0], [1.0], [0.0]])
    lstm = [one * 2, torch.zeros(1), w_ih, torch.zeros(4, 1), zero, zero]
    layer = [one, torch.tensor([-0.4])]
    keep, open, h, c = gate_plan(one[:, :, None, None], one * 3, one, lstm, layer)
    cell = 0.5 * 1 + 0.5 * math.tanh(2)
    assert c.item() == pytest.approx(cell) and h.item() == pytest.approx(0.5 * math.tanh(cell))
    assert keep.tolist() == [0.5 * math.tanh(cell) > 0.4] and open.shape == (1, 0)


def test_by_hand_without_an_lstm(backend):
    # Means 1 and 3; reduced = relu(1 - 3), relu(1 + 3) = 0, 4; logits -0.5, 4 - 3.5.
    x = torch.tensor([[[[0.0, 2.0]], [[3.0, 3.0]]]])
    channel = [
        torch.tensor([[1.0, -1.0], [1.0, 1.0]]),
        torch.zeros(2),
        torch.tensor([[1.0, 0.0], [1.0, 1.0]]),
    ]
    channel += [torch.tensor([-0.5, -3.5])]
    none = torch.empty(1, 0)
    keep, open, h, c = gate_plan(x, none, none, channel=channel)
    assert keep.tolist() == [True] and open.tolist() == [[False, True]]
    assert h.shape == c.shape == (1, 0)
    assert gate_logits(x, none, none, channel=channel)[1].tolist() == [[-0.5, 0.5]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", [0, 1, 9])
@pytest.mark.parametrize("channels", [1, 3, 16, 33])
@pytest.mark.parametrize("layout", ["nchw", "channels_last", "strided"])
@pytest.mark.parametrize("hidden", [0, 10, 17])
def test_equals_float64(kernel, dtype, n, channels, layout, hidden):
    weights = gates(channels, hidden, dtype=dtype)
    x, h, c = inputs(n, channels, hidden, dtype=dtype)
    if layout == "channels_last":
        x = x.contiguous(memory_format=torch.channels_last)
    elif layout == "strided":
        x = x.transpose(2, 3)
    wide = {key: [w.double() for w in values] for key, values in weights.items()}
    keep_logit, open_logit, h64, c64 = gate_logits(x.double(), h.double(), c.double(), **wide)
    keep, open, h1, c1 = gate_plan(x, h, c, **weights, threshold=0.3)
    atol, rtol = TOLERANCES[dtype]
    torch.testing.assert_close(h1.double(), h64, atol=atol, rtol=rtol)
    torch.testing.assert_close(c1.double(), c64, atol=atol, rtol=rtol)
    # A bit may differ only where rounding can carry the logit across the threshold.
    if hidden == 0:
        assert keep_logit is None and keep.dtype == torch.bool and keep.all()
        keep_logit = keep.double()
    for bits, logits in ((keep, keep_logit), (open, open_logit)):
        clear = (logits - 0.3).abs() > 1e-5
        assert bits.dtype == torch.bool and torch.equal(bits[clear], (logits > 0.3)[clear])
        assert n == 0 or clear.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", [0, 1, 9])
def test_means_stand_for_the_image(backend, dtype, n):
    weights, (x, h, c) = gates(33, dtype=dtype), inputs(n, 33, dtype=dtype)
    means = x[:, :, 0, 0]
    # An image of two equal pixels: its means have no rounding, so state and bits are the same.
    expected = gate_plan(means[:, :, None, None].expand(-1, -1, 2, 1), h, c, **weights)
    assert n == 0 or not means.is_contiguous()
    for values in (means, means.contiguous()):
        for a, b in zip(gate_plan(values, h, c, **weights), expected, strict=True):
            assert torch.equal(a, b)


def test_logits_take_means():
    weights, (x, h, c) = gates(6), inputs(3, 6)
    for a, b in zip(
        gate_logits(x.mean((2, 3)), h, c, **weights), gate_logits(x, h, c, **weights), strict=True
    ):
        assert torch.equal(a, b)


@pytest.mark.parametrize("without", ["layer", "channel"])
def test_a_missing_head(without, backend):
    weights = gates(8) | {without: []}
    x, h, c = inputs(4, 8)
    expected = gate_plan(x, h, c, **gates(8))
    found = gate_plan(x, h, c, **weights)
    other = 1 if without == "layer" else 0
    assert torch.equal(found[other], expected[other]) and torch.equal(found[2], expected[2])
    assert found[0].all() if without == "layer" else found[1].shape == (4, 0)


def test_threads_do_not_change_a_bit(isa):  # torch, and so the reference, does not promise this
    weights, (x, h, c) = gates(16), inputs(9, 16)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(gate_plan(x, h, c, **weights))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("hidden", [0, 10])
def test_nan_closes(kernel, hidden):
    weights, (x, h, c) = gates(4, hidden), inputs(2, 4, hidden)
    x[1] = float("nan")
    keep, open, h, c = gate_plan(x, h, c, **weights)
    assert bool(keep[1]) == (hidden == 0) and not open[1].any()
    assert h[1].isnan().all() and c[1].isnan().all() and h[0].isfinite().all()


def test_saturated_gates(kernel):
    weights, (x, h, c) = gates(4), inputs(2, 4)
    x[0], x[1] = 1e6, -1e6  # logits of the LSTM's gates beyond the range of exp
    expected = gate_logits(
        x.double(), h.double(), c.double(), **{k: [w.double() for w in v] for k, v in weights.items()}
    )
    found = gate_plan(x, h, c, **weights)
    for a, b in zip(found[2:], expected[2:], strict=True):
        torch.testing.assert_close(a.double(), b, atol=1e-6, rtol=1e-5)


def test_logits_are_differentiable():
    weights, (x, h, c) = gates(3, 4, 5, 2, torch.float64), inputs(2, 3, 4, torch.float64, (2, 2))
    leaves = [x, h, c, *weights["lstm"], *weights["layer"], *weights["channel"]]
    for leaf in leaves:
        leaf.requires_grad_()

    def run(*t):
        return gate_logits(t[0], t[1], t[2], t[3:9], t[9:11], t[11:])

    assert torch.autograd.gradcheck(run, leaves)


@pytest.mark.parametrize("hidden", [0, 10])
def test_opcheck_and_compile(hidden):
    weights, (x, h, c) = gates(6, hidden), inputs(3, 6, hidden)
    args = (x, h, c, weights["lstm"], weights["layer"], weights["channel"], 0.1)
    results = torch.library.opcheck(torch.ops.ddi.gate_plan.default, args)
    assert set(results.values()) == {"SUCCESS"}
    compiled = torch.compile(
        lambda x, h, c: gate_plan(x, h, c, **weights), fullgraph=True, backend="aot_eager"
    )
    for values in (x, x.mean((2, 3))):
        for a, b in zip(compiled(values, h, c), gate_plan(values, h, c, **weights), strict=True):
            torch.testing.assert_close(a, b)


BAD = {
    "x": dict(x=torch.zeros(2, 6, 1)),
    "h": dict(h=torch.zeros(2, 3)),
    "c": dict(c=torch.zeros(3, 10)),
    "lstm": dict(lstm=gates(6)["lstm"][:5]),
    "lstm[0]": dict(lstm=gates(7)["lstm"]),
    "lstm[0] without rows": dict(lstm=[torch.zeros(0, 6), *gates(6)["lstm"][1:]]),
    "layer without lstm": dict(lstm=[], h=torch.zeros(2, 0), c=torch.zeros(2, 0)),
    "layer": dict(layer=gates(6)["layer"][:1]),
    "layer[0]": dict(layer=[torch.zeros(2, 10), torch.zeros(1)]),
    "channel[0]": dict(channel=gates(5)["channel"]),
    "channel[2]": dict(channel=[*gates(6)["channel"][:2], torch.zeros(5), torch.zeros(5)]),
    "channel[3]": dict(channel=[*gates(6)["channel"][:3], torch.zeros(5).double()]),
}


@pytest.mark.parametrize("argument", BAD)
def test_errors_name_the_argument(argument, backend):
    x, h, c = inputs(2, 6)
    args = dict(x=x, h=h, c=c, **gates(6)) | BAD[argument]
    with pytest.raises(ValueError) as caught:
        gate_plan(**args)
    assert f"gate_plan: argument '{argument.split(' with')[0]}'" in str(caught.value)


@pytest.mark.parametrize("argument", BAD)
def test_the_raw_operator_refuses_garbage(argument):
    x, h, c = inputs(2, 6)
    args = dict(x=x, h=h, c=c, **gates(6)) | BAD[argument]
    with pytest.raises((RuntimeError, ValueError), match="gate_plan"):
        torch.ops.ddi.gate_plan.default(*args.values(), 0.0)
