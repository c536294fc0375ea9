"""gated_conv2d_int8: exact integer sums, and the same bits from every implementation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from gated_conv2d_cases import Case, build, case_id, geometry, lay_out, pairwise, per_channel, single_changes
from native import ON_ARM, forced_isa
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ddi_kernels import backend, gated_conv2d_int8, prepack_conv2d, quantize

OP = torch.ops.ddi.gated_conv2d_int8.default
NAN = torch.nan
# Those with kernels of their own for int8.
ISAS = ("scalar", "neon", "neon_dot") if ON_ARM else ("scalar", "avx2", "avx512_vnni", "avx512_amx")
CASES = {
    case_id(c): c
    for c in (
        {k: v for k, v in changes.items() if k != "dtype"}
        for changes in single_changes() + pairwise(without="groups")
    )
}


@pytest.fixture(params=("reference", *ISAS))
def kernel(request):
    if request.param == "reference":
        with backend("reference"):
            yield request.param
        return
    with forced_isa(request.param), backend("native"):
        yield request.param


def random_bytes(*shape: int) -> Tensor:
    """Every value of int8, the extremes often."""
    values = torch.randint(-128, 128, shape)
    extreme = torch.where(torch.rand(shape) < 0.5, -128, 127)
    return torch.where(torch.rand(shape) < 0.3, extreme, values).to(torch.int8)


def lay_out_bytes(x: Tensor, layout: str) -> Tensor:
    if layout != "sliced":
        return lay_out(x, layout)
    room = torch.full([2 * s + 1 for s in x.shape], 99, dtype=torch.int8)
    return room[1::2, 1::2, 1::2, 1::2].copy_(x)


def build_int8(case: Case) -> dict[str, Any]:
    """The call of a case with int8 operands, NaN in scale and bias where gates are always closed."""
    arguments, _ = build(case)
    x, weight = random_bytes(*arguments["x"].shape), random_bytes(*arguments["weight"].shape)
    if case.layout == "expanded" and case.batch:
        x = x[:1].expand_as(x)
    weight_scale = torch.rand(len(weight)) * 0.01
    if arguments["out_mask"] is not None:
        never = ~per_channel(arguments["out_mask"], len(weight), case.out_group_size).any(0).flatten()
        weight_scale[never] = NAN
    return arguments | {
        "x": lay_out_bytes(x, case.layout),
        "weight": weight,
        "weight_scale": weight_scale,
        "packed": prepack_conv2d(weight) if case.packed else None,
        "x_scale": 0.37,
        "out_scale": None,
    }


def exact_sums(a: dict[str, Any]) -> Tensor:
    """The convolution of the open inputs, in float64 and so without rounding."""
    x = a["x"].double()
    if a["in_mask"] is not None:
        x = x * per_channel(a["in_mask"], x.shape[1], a["in_group_size"])
    geometry = {k: a[k] for k in ("stride", "padding", "dilation", "groups")}
    return F.conv2d(x, a["weight"].double(), **geometry)


def expected_result(a: dict[str, Any]) -> Tensor:
    """What a call must return, one float32 operation after the other."""
    y = exact_sums(a).float() * (a["weight_scale"] * a["x_scale"])[:, None, None]
    co = y.shape[1]
    if a["bias"] is not None:
        y = y + a["bias"][:, None, None]
    if a["scale"] is not None:
        y = y * per_channel(a["scale"], co, a["out_group_size"])
    if a["out_mask"] is not None:
        y = y.masked_fill(~per_channel(a["out_mask"], co, a["out_group_size"]), 0)
    if a["residual"] is not None:
        y = y + a["residual"]
    return y.clamp(min=0) if a["activation"] else y


def test_typed_in_answers(kernel):
    # Two input channels of 1x3 pixels, two output channels, a 1x2 kernel.
    x = torch.tensor([[[1, 2, 3]], [[10, 20, 30]]], dtype=torch.int8)[None]
    weight = torch.tensor([[[[1, 1]], [[0, 1]]], [[[2, 0]], [[-1, 0]]]], dtype=torch.int8)
    weight_scale, bias = torch.tensor([0.5, 2.0]), torch.tensor([0.25, 0.0])

    def run(**options):
        return gated_conv2d_int8(x, weight, weight_scale, bias, x_scale=2.0, **options)[0, :, 0].tolist()

    assert run() == [[23.25, 35.25], [-32.0, -64.0]]
    assert run(activation="relu") == [[23.25, 35.25], [0.0, 0.0]]
    first = torch.tensor([[True, False]])
    assert run(in_mask=first) == [[3.25, 5.25], [8.0, 16.0]]
    assert run(out_mask=first) == [[23.25, 35.25], [0.0, 0.0]]
    assert run(scale=torch.tensor([[2.0, 0.5]]), out_scale=0.5) == [[93, 127], [-32, -64]]


@pytest.mark.parametrize("changes", CASES.values(), ids=CASES.keys())
def test_every_implementation_returns_the_same_bits(kernel, changes):
    torch.manual_seed(0)
    case = Case(**changes)
    if kernel != "reference" and case.groups != "one":
        pytest.skip("no native grouped convolution")
    arguments = build_int8(case)
    expected = expected_result(arguments)
    y = gated_conv2d_int8(**arguments)
    assert y.dtype == torch.float32 and torch.equal(y, expected)
    x = arguments["x"]
    last = not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
    assert y.is_contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
    q = gated_conv2d_int8(**arguments | {"out_scale": 0.6})
    assert q.dtype == torch.int8 and torch.equal(q, quantize(expected, 0.6))


@pytest.mark.parametrize("x_value", [-128, 127])
@pytest.mark.parametrize("weight_value", [-128, 127])
def test_extremes_everywhere(kernel, x_value, weight_value):
    x = torch.full((1, 37, 5, 5), x_value, dtype=torch.int8)
    weight = torch.full((18, 37, 3, 3), weight_value, dtype=torch.int8)
    y = gated_conv2d_int8(x, weight, torch.ones(18), x_scale=1.0, padding=1)
    positions = F.conv2d(torch.ones(1, 1, 5, 5), torch.ones(1, 1, 3, 3), padding=1)
    assert torch.equal(y, (positions * 37 * x_value * weight_value).expand(1, 18, 5, 5))


def test_the_longest_sum_fits_and_one_more_is_refused(kernel):
    longest = 2**17 - 1
    x = torch.full((1, longest + 1, 1, 1), -128, dtype=torch.int8)
    weight = torch.full((1, longest + 1, 1, 1), -128, dtype=torch.int8)
    y = gated_conv2d_int8(x[:, 1:], weight[:, 1:], torch.ones(1), x_scale=1.0)
    assert y.item() == torch.tensor(longest * 2**14).float().item()
    with pytest.raises(ValueError, match="gated_conv2d_int8: argument 'weight'.*131071"):
        gated_conv2d_int8(x, weight, torch.ones(1), x_scale=1.0)


def test_rounding_of_the_result(kernel):
    # A closed convolution leaves the residual: ties, what is beyond the range, and no number.
    residual = torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5, 126.5, 127.5, 1e9, -128.5, -129.0, torch.inf, NAN])
    x = torch.zeros(1, 1, 1, 12, dtype=torch.int8)
    weight, closed = torch.ones(1, 1, 1, 1, dtype=torch.int8), torch.tensor([[False]])
    y = gated_conv2d_int8(
        x, weight, torch.ones(1), x_scale=1.0, out_scale=1.0, out_mask=closed, residual=residual.view_as(x)
    )
    assert y.flatten().tolist() == [0, 2, 2, 0, -2, 126, 127, 127, -128, -128, 127, 0]


def test_closed_outputs_without_anything_open_are_the_residual(kernel):
    x, weight = random_bytes(2, 3, 4, 4), random_bytes(5, 3, 3, 3)
    nothing = {"in_mask": torch.zeros(2, 3) > 0, "out_mask": torch.zeros(2, 5) > 0, "padding": 1}
    residual, unused = torch.randn(2, 5, 4, 4), torch.full((5,), NAN)
    y = gated_conv2d_int8(x, weight, unused, unused, x_scale=1.0, residual=residual, **nothing)
    assert torch.equal(y, residual)
    assert not gated_conv2d_int8(x, weight, unused, unused, x_scale=1.0, **nothing).any()


@pytest.mark.parametrize("out_scale", [None, 0.5])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_threads_change_no_bit(kernel, out_scale, layout):
    arguments = build_int8(Case(batch=1, ci=39, co=70, size=(17, 19), layout=layout, residual="sliced"))
    before, results = torch.get_num_threads(), []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        results.append(gated_conv2d_int8(**arguments | {"out_scale": out_scale}))
    torch.set_num_threads(before)
    assert torch.equal(*results)


def test_no_gradient_flows():
    bias = torch.ones(1, requires_grad=True)
    ones = torch.ones(1, 1, 1, 1, dtype=torch.int8)
    for name in ("auto", "reference"):
        with backend(name):
            assert not gated_conv2d_int8(ones, ones, torch.ones(1), bias, x_scale=1.0).requires_grad


def test_autocast_changes_nothing():
    arguments = build_int8(Case(scale=True, residual="contiguous"))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(gated_conv2d_int8(**arguments), expected_result(arguments))


def direct(a: dict[str, Any]) -> list[Any]:
    names = "x weight weight_scale bias packed in_mask out_mask scale residual x_scale out_scale".split()
    return [*(a[n] for n in names), geometry(a)]


@pytest.mark.parametrize("out_scale", [None, 0.5])
@pytest.mark.parametrize("packed", [True, False])
def test_opcheck(out_scale, packed):
    case = Case(ci=3, co=4, size=(4, 3), scale=True, residual="contiguous", relu=True, packed=packed)
    call = build_int8(case) | {"out_scale": out_scale}
    call = {
        k: v.nan_to_num(0.25) if isinstance(v, Tensor) and v.is_floating_point() else v
        for k, v in call.items()
    }
    results = torch.library.opcheck(OP, tuple(direct(call)))
    assert len(results) == 4 and set(results.values()) == {"SUCCESS"}


def test_compile_fullgraph():
    torch._dynamo.reset()
    arguments = build_int8(Case(scale=True, residual="contiguous", relu=True))
    compiled = torch.compile(gated_conv2d_int8, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(**arguments), gated_conv2d_int8(**arguments))


def test_macs_count_open_pairs():
    in_mask, out_mask = torch.tensor([[True, False, True]]), torch.tensor([[True, False]])
    arguments = build_int8(Case(batch=1, ci=3, co=4, size=(5, 5), out_group_size=3))
    with FlopCounterMode(display=False) as counter:
        OP(*direct(arguments | {"in_mask": in_mask, "out_mask": out_mask}))
    assert counter.get_total_flops() == 2 * 2 * 3 * 9 * 25


CASE = Case(ci=6, co=8, size=(5, 5), scale=True, residual="contiguous", packed=True)
WRONG = {
    "x-float": ("x", {"x": torch.ones(2, 6, 5, 5)}),
    "x-uint8": ("x", {"x": torch.ones(2, 6, 5, 5, dtype=torch.uint8)}),
    "x-3d": ("x", {"x": torch.ones(6, 5, 5, dtype=torch.int8)}),
    "weight-float": ("weight", {"weight": torch.ones(8, 6, 3, 3)}),
    "weight-channels": ("weight", {"weight": torch.ones(8, 7, 3, 3, dtype=torch.int8)}),
    "weight_scale-dtype": ("weight_scale", {"weight_scale": torch.ones(8).double()}),
    "weight_scale-length": ("weight_scale", {"weight_scale": torch.ones(7)}),
    "bias-dtype": ("bias", {"bias": torch.ones(8, dtype=torch.int32)}),
    "packed-dtype": ("packed", {"packed": torch.ones(1152)}),
    "packed-short": ("packed", {"packed": torch.ones(864, dtype=torch.int8)}),
    "in_mask-width": ("in_mask", {"in_mask": torch.ones(2, 5) > 0}),
    "out_mask-dtype": ("out_mask", {"out_mask": torch.ones(2, 8)}),
    "scale-dtype": ("scale", {"scale": torch.ones(2, 8).half()}),
    "residual-dtype": ("residual", {"residual": torch.ones(2, 8, 5, 5, dtype=torch.int8)}),
    "residual-shape": ("residual", {"residual": torch.ones(2, 8, 5, 4)}),
    "x_scale-0": ("x_scale", {"x_scale": 0.0}),
    "x_scale-nan": ("x_scale", {"x_scale": NAN}),
    "out_scale-negative": ("out_scale", {"out_scale": -1.0}),
    "out_scale-tiny": ("out_scale", {"out_scale": 1e-45}),
    "stride-0": ("stride", {"stride": 0}),
    "padding-negative": ("padding", {"padding": -1}),
    "in_group_size-0": ("in_group_size", {"in_group_size": 0}),
}
WRONG_FOR_PYTHON = {
    "x_scale-none": ("x_scale", {"x_scale": None}),
    "weight_scale-none": ("weight_scale", {"weight_scale": None}),
    "activation": ("activation", {"activation": "gelu"}),
}


@pytest.mark.parametrize("wrong", WRONG | WRONG_FOR_PYTHON)
@pytest.mark.parametrize("name", ["reference", "auto"])
def test_public_function_names_the_argument(name, wrong):
    argument, changes = (WRONG | WRONG_FOR_PYTHON)[wrong]
    with backend(name), pytest.raises(ValueError, match=f"gated_conv2d_int8: argument '{argument}'"):
        gated_conv2d_int8(**build_int8(CASE) | changes)


@pytest.mark.parametrize("wrong", WRONG)
def test_direct_operator_call_names_the_argument(kernel, wrong):
    argument, changes = WRONG[wrong]
    with pytest.raises((ValueError, RuntimeError), match=rf"gated_conv2d_int8.*\b{argument}\b"):
        OP(*direct(build_int8(CASE) | changes))


def test_native_says_what_it_cannot_do():
    arguments = build_int8(Case(ci=4, co=4, groups="two"))
    with backend("native"), pytest.raises(RuntimeError, match="gated_conv2d_int8.*native.*grouped"):
        gated_conv2d_int8(**arguments)
