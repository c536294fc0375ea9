"""gated_conv2d inside torch: gradients, torch.compile, autocast, FLOP counting, opcheck."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from gated_conv2d_cases import Case, build, direct_arguments
from native import require_native
from tolerances import assert_close
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from ddi_kernels import backend, gated_conv2d

OP = torch.ops.ddi.gated_conv2d.default
DIFFERENTIABLE = ("x", "weight", "bias", "scale", "residual")
SMALL = {"batch": 2, "ci": 3, "co": 4, "size": (4, 3), "out_group_size": 2}
VARIANTS = {
    "plain": Case(**SMALL, in_open=None, out_open=None, bias=False),
    "masks": Case(**SMALL),
    "all": Case(**SMALL, scale=True, residual="contiguous", relu=True, stride=2),
    "sliced": Case(**SMALL, scale=True, residual="channels_last", layout="sliced"),
    "empty": Case(**SMALL | {"batch": 0}),
    "packed": Case(**SMALL, packed=True, residual="sliced"),
}


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()


def make(case: Case, requires_grad: bool = False) -> dict:
    """A call without NaN, so that numerical differences exist."""
    torch.manual_seed(0)
    arguments = {
        k: torch.nan_to_num(v, 0.25, 0.5, -0.5)
        if isinstance(v, torch.Tensor) and v.is_floating_point() and k != "packed"
        else v
        for k, v in build(case)[0].items()
    }
    for name in DIFFERENTIABLE:
        if arguments[name] is not None:
            arguments[name].requires_grad_(requires_grad)
    return arguments


@pytest.mark.parametrize("variant", VARIANTS)
def test_opcheck(variant):
    grad = variant in ("masks", "all", "sliced")
    arguments = direct_arguments(make(VARIANTS[variant], requires_grad=grad))
    results = torch.library.opcheck(OP, tuple(arguments))
    assert len(results) == 4 and set(results.values()) == {"SUCCESS"}


@pytest.mark.parametrize("how", ["public", "operator"])
@pytest.mark.parametrize("variant", ["plain", "masks", "all", "sliced"])
def test_gradcheck(variant, how):
    case = VARIANTS[variant].__dict__ | {"dtype": torch.float64}
    arguments = make(Case(**case), requires_grad=True)
    names = [n for n in DIFFERENTIABLE if arguments[n] is not None]

    def run(*tensors):
        call = arguments | dict(zip(names, tensors, strict=True))
        return gated_conv2d(**call) if how == "public" else OP(*direct_arguments(call))

    # Inputs near the kink of the ReLU have no numerical gradient; the seed leaves none.
    inputs = tuple(arguments[n] for n in names)
    assert torch.autograd.gradcheck(run, inputs, fast_mode=True)


def test_gradients_of_the_operator_are_those_of_dense_times_mask():
    arguments = make(VARIANTS["all"], requires_grad=True)
    leaves = [arguments[n] for n in DIFFERENTIABLE]
    y = OP(*direct_arguments(arguments))
    x, weight, bias, scale, residual = leaves
    dense = F.conv2d(x * arguments["in_mask"][..., None, None], weight, bias, 2, 1)
    gate = (scale * arguments["out_mask"]).repeat_interleave(2, 1)[..., None, None]
    expected = (dense * gate + residual).relu()
    weights = torch.randn_like(y)
    for got, want in zip(
        torch.autograd.grad(y, leaves, weights),
        torch.autograd.grad(expected, leaves, weights),
        strict=True,
    ):
        assert_close(got, want.double())


def test_a_hard_gate_as_scale_gives_closed_channels_a_gradient():
    x, weight = torch.ones(1, 1, 2, 2), torch.ones(2, 1, 1, 1)
    scale = torch.tensor([[1.0, 0.0]], requires_grad=True)
    y = gated_conv2d(x, weight, scale=scale)
    assert y.sum((2, 3)).tolist() == [[4.0, 0.0]]
    y.sum().backward()
    assert scale.grad.tolist() == [[4.0, 4.0]]


def test_no_gradient_is_recorded_without_need():
    x, weight = torch.ones(1, 1, 2, 2), torch.ones(1, 1, 1, 1, requires_grad=True)
    assert gated_conv2d(x, weight).requires_grad
    with torch.no_grad():
        assert not gated_conv2d(x, weight).requires_grad
    assert not gated_conv2d(x, weight.detach()).requires_grad


@pytest.mark.parametrize("grad", [False, True], ids=["inference", "grad"])
@pytest.mark.parametrize("variant", ["masks", "all", "sliced"])
def test_compile_fullgraph(variant, grad):
    arguments = make(VARIANTS[variant], requires_grad=grad)
    compiled = torch.compile(gated_conv2d, fullgraph=True, backend="aot_eager")
    y, expected = compiled(**arguments), gated_conv2d(**arguments)
    assert_close(y, expected.double())
    if grad:
        leaves = [arguments[n] for n in DIFFERENTIABLE if arguments[n] is not None]
        for got, want in zip(
            torch.autograd.grad(y.sum(), leaves),
            torch.autograd.grad(expected.sum(), leaves),
            strict=True,
        ):
            assert_close(got, want.double())


def test_compile_with_inductor_keeps_the_native_operator():
    require_native()
    arguments = make(VARIANTS["all"])
    compiled = torch.compile(gated_conv2d, fullgraph=True)
    assert_close(compiled(**arguments), gated_conv2d(**arguments).double())


def test_compile_with_dynamic_shapes():
    compiled = torch.compile(gated_conv2d, fullgraph=True, backend="aot_eager", dynamic=True)
    for batch, size in ((2, (5, 6)), (3, (8, 7))):
        arguments = make(Case(**SMALL | {"batch": batch, "size": size}))
        assert_close(compiled(**arguments), gated_conv2d(**arguments).double())


def test_a_compiled_call_keeps_the_backend_it_was_traced_with():
    require_native()
    arguments = make(VARIANTS["masks"])
    seen = []

    def spy(graph, example_inputs):
        seen.append({node.target for node in graph.graph.nodes})
        return graph.forward

    compiled = torch.compile(gated_conv2d, fullgraph=True, backend=spy)
    with backend("reference"):
        compiled(**arguments)
    compiled(**arguments)
    assert len(seen) == 1 and OP not in seen[0]


@pytest.mark.parametrize("how", ["public", "operator", "compiled"])
@pytest.mark.parametrize("grad", [False, True], ids=["inference", "grad"])
def test_autocast_computes_like_conv2d(how, grad):
    # Mixed dtypes, as under autocast: x comes out of another layer, parameters are float32.
    arguments = make(Case(scale=True, residual="contiguous", relu=True), requires_grad=grad)
    arguments["x"] = arguments["x"].bfloat16()
    expected = make(Case(scale=True, residual="contiguous", relu=True))
    doubled = {
        k: v.bfloat16().double() if isinstance(v, torch.Tensor) and v.is_floating_point() else v
        for k, v in expected.items()
    }
    run = {
        "public": gated_conv2d,
        "operator": lambda **a: OP(*direct_arguments(a)),
        "compiled": torch.compile(gated_conv2d, fullgraph=True, backend="aot_eager"),
    }[how]
    with torch.autocast("cpu", torch.bfloat16):
        y = run(**arguments)
    assert y.dtype == torch.bfloat16 and y.requires_grad == grad
    assert_close(y, gated_conv2d(**doubled))


def test_autocast_leaves_float64():
    x, weight = torch.randn(1, 2, 3, 3).double(), torch.randn(2, 2, 1, 1).double()
    with torch.autocast("cpu", torch.bfloat16):
        assert gated_conv2d(x, weight).dtype == torch.float64


def macs(call: dict) -> int:
    with FlopCounterMode(display=False) as counter:
        OP(*direct_arguments(call))
    flops = counter.get_total_flops()
    assert flops % 2 == 0
    return flops // 2


def call_of_ones(*, weight: tuple[int, ...], ci: int, groups: int, size: int = 5, **masks) -> dict:
    names = ("bias", "packed", "in_mask", "out_mask", "scale", "residual", "activation")
    geometry = {"stride": 1, "padding": 1, "dilation": 1, "groups": groups}
    sizes = {"in_group_size": 1, "out_group_size": 1}
    operands = {"x": torch.ones(2, ci, size, size), "weight": torch.ones(weight)}
    return dict.fromkeys(names) | geometry | sizes | operands | masks


def test_macs_count_open_pairs():
    in_mask = torch.tensor([[True, False, True], [False, True, False]])  # 2 and 1 open
    out_mask = torch.tensor([[True, False], [True, True]])  # groups of 3 and 1: 3 and 4 open
    shapes = {"weight": (4, 3, 3, 3), "ci": 3, "groups": 1}
    positions = 9 * 25
    assert macs(call_of_ones(**shapes)) == 2 * 12 * positions
    assert macs(call_of_ones(**shapes, in_mask=in_mask)) == (2 * 4 + 1 * 4) * positions
    gated = call_of_ones(**shapes, in_mask=in_mask, out_mask=out_mask, out_group_size=3)
    assert macs(gated) == (2 * 3 + 1 * 4) * positions
    strided = gated | {"stride": 2}
    assert macs(strided) == (2 * 3 + 1 * 4) * 9 * 9


def test_macs_count_open_pairs_inside_convolution_groups():
    in_mask = torch.tensor([[True, True, True, False], [False] * 4])
    out_mask = torch.tensor([[True, False] * 2] * 2)
    call = call_of_ones(weight=(4, 2, 3, 3), ci=4, groups=2, in_mask=in_mask, out_mask=out_mask)
    formula = flop_registry[torch.ops.ddi.gated_conv2d]
    flops = formula(*direct_arguments(call), out_val=gated_conv2d(**call))
    assert flops == 2 * (2 * 1 + 1 * 1) * 9 * 25
