"""skip_conv2d_: the reference against float64, in place, its errors, and inside torch."""

from __future__ import annotations

import pytest
import torch
from skip_conv2d_cases import CASES, KEEPS, build
from tolerances import assert_close
from torch.utils.flop_counter import FlopCounterMode

from ddi_kernels import skip_conv2d_

OP = torch.ops.ddi.skip_conv2d_.default
DTYPES = [torch.float64, torch.float32, torch.bfloat16]


def positional(a: dict) -> tuple:
    """The same call as positional arguments of torch.ops.ddi.skip_conv2d_."""
    pairs = [[v, v] if isinstance(v, int) else list(v) for v in (a["stride"], a["padding"], a["dilation"])]
    first = (a[name] for name in ("out", "x", "weight", "bias", "keep", "scale"))
    return (*first, *pairs, a["accumulate"], a["activation"] == "relu")


def check(arguments: dict, expected: torch.Tensor) -> None:
    out, keep = arguments["out"], arguments["keep"]
    before = out.clone()
    assert skip_conv2d_(**arguments) is out
    assert_close(out[keep], expected[keep])
    torch.testing.assert_close(out[~keep], before[~keep], rtol=0, atol=0, equal_nan=True)


def test_typed_in_answer():
    x = torch.tensor([1.0, 2.0, 3.0])[:, None, None, None]
    weight, bias = torch.tensor([10.0]).reshape(1, 1, 1, 1), torch.tensor([0.5])
    keep = torch.tensor([True, False, True])

    def run(**options):
        out = torch.tensor([-100.0, 7.0, 1.0])[:, None, None, None]
        return skip_conv2d_(out, x, weight, bias, keep=keep, **options).flatten().tolist()

    assert run() == [10.5, 7.0, 30.5]
    assert run(accumulate=True) == [-89.5, 7.0, 31.5]
    assert run(accumulate=True, activation="relu") == [0.0, 7.0, 31.5]
    assert run(scale=torch.tensor([2.0, torch.nan, -1.0])) == [21.0, 7.0, -30.5]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_equals_dense_where_kept(case, dtype):
    check(*build(**CASES[case], dtype=dtype))


@pytest.mark.parametrize("keep", KEEPS)
def test_any_samples_may_be_kept(keep):
    check(*build(keep=keep, accumulate=True))


def test_out_of_any_strides():
    arguments, expected = build(accumulate=True)
    room = torch.full([2 * size for size in arguments["out"].shape], torch.nan)
    arguments["out"] = room[::2, 1::2, ::2, 1::2].copy_(arguments["out"])
    check(arguments, expected)


def test_operator_call_equals_public_function():
    arguments, expected = build(accumulate=True, scale=True, relu=True)
    OP(*positional(arguments))
    assert_close(arguments["out"][arguments["keep"]], expected[arguments["keep"]])


def test_opcheck():
    arguments, _ = build(accumulate=True, scale=True, nan=False)
    results = torch.library.opcheck(OP, positional(arguments))
    assert len(results) == 4 and set(results.values()) == {"SUCCESS"}


def test_compile_fullgraph():
    arguments, expected = build(accumulate=True, relu=True)
    torch.compile(skip_conv2d_, fullgraph=True, backend="aot_eager")(**arguments)
    assert_close(arguments["out"][arguments["keep"]], expected[arguments["keep"]])


def test_gradients_are_refused():
    arguments, _ = build()
    arguments["weight"].requires_grad_()
    with pytest.raises(RuntimeError, match="skip_conv2d_.*requires a gradient.*gated_conv2d"):
        skip_conv2d_(**arguments)
    with torch.no_grad():
        skip_conv2d_(**arguments)


def test_flops_are_those_of_the_kept_samples():
    arguments, _ = build(ci=3, co=5, size=(4, 4), keep="some", nan=False)
    with FlopCounterMode(display=False) as counter:
        OP(*positional(arguments))
    assert counter.get_total_flops() == 2 * 2 * (4 * 4) * (5 * 3 * 3 * 3)


def wrong_calls() -> dict[str, tuple[str, dict]]:
    a, _ = build()
    out, x = a["out"], a["x"]
    return {
        "x": ("x", {"x": x[0]}),
        "weight": ("weight", {"weight": a["weight"][:, :1]}),
        "out-shape": ("out", {"out": out[:, :, 1:]}),
        "out-dtype": ("out", {"out": out.double()}),
        "out-none": ("out", {"out": None}),
        "out-expanded": ("out", {"out": out[:, :, :, :1].expand_as(out)}),
        "out-is-x": ("out", {"out": x[:, :16], "x": x}),
        "bias": ("bias", {"bias": torch.ones(3)}),
        "keep-dtype": ("keep", {"keep": a["keep"].int()}),
        "keep-shape": ("keep", {"keep": a["keep"][1:]}),
        "keep-none": ("keep", {"keep": None}),
        "scale": ("scale", {"scale": torch.ones(4, 1)}),
        "stride": ("stride", {"stride": 0}),
        "padding": ("padding", {"padding": -1}),
        "activation": ("activation", {"activation": "gelu"}),
    }


@pytest.mark.parametrize("wrong", wrong_calls())
def test_errors_name_the_argument(wrong):
    argument, changes = wrong_calls()[wrong]
    with pytest.raises(ValueError, match=f"skip_conv2d_: argument '{argument}'"):
        skip_conv2d_(**build()[0] | changes)
