"""gated_dense_layer and its in-place form against dense times mask in float64; torch integration."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from gated_conv2d_cases import lay_out, per_channel
from gated_dense_layer_cases import FACTORS, NAN, Case, build, with_buffer
from residual_block_cases import case_id, positional, random_changes, single_changes, without_nan
from tolerances import TOLERANCES, assert_close
from torch.utils.flop_counter import FlopCounterMode

from ddi_kernels.ops.gated_dense_layer import gated_dense_layer, gated_dense_layer_

OP = torch.ops.ddi.gated_dense_layer.default
OP_INPLACE = torch.ops.ddi.gated_dense_layer_.default


def test_typed_in_answers(kernel):
    # One pixel, three channels in, one in the middle, two new: only the centre of the 3x3 kernel counts.
    x = torch.tensor([[1.0, 2.0, -3.0], [4.0, NAN, 1.0]])[:, :, None, None]
    scale1, shift1 = torch.tensor([2.0, -1.0, 1.0]), torch.tensor([0.0, 5.0, 4.0])
    weight1, bias1 = torch.tensor([1.0, 10.0, 100.0])[None, :, None, None], torch.tensor([-30.0])
    weight2 = torch.zeros(2, 1, 3, 3)
    weight2[:, 0, 1, 1] = torch.tensor([1.0, -2.0])
    layer = (scale1, shift1, weight1, bias1, weight2, torch.tensor([0.0, 1.0]))
    in_mask = torch.tensor([[True, True, True], [True, False, True]])

    def run(**options):
        return gated_dense_layer(x, *layer, in_mask=in_mask, **options)[0].flatten(1).tolist()

    # Prologue (2, 3, 1) and (8, closed, 5); conv1 132 - 30 and 508 - 30.
    assert run() == [[102.0, -203.0], [478.0, -955.0]]
    assert run(out_mask=torch.tensor([[True, False], [False, False]])) == [[102.0, 0.0], [0.0, 0.0]]
    assert run(out_mask=torch.tensor([[False], [True]]), group_size=2) == [[0.0, 0.0], [478.0, -955.0]]
    # A closed channel counts nothing, not relu(shift1): the mask comes after the BN-ReLU.
    closed = torch.zeros(2, 3, dtype=torch.bool)
    y, pooled = gated_dense_layer(x, *layer, in_mask=closed, pool=True)
    assert y.flatten(1).tolist() == pooled.tolist() == [[0.0, 1.0], [0.0, 1.0]]


def test_typed_in_answers_in_place(kernel):
    buffer = torch.tensor([[1.0, 2.0, 70.0, 80.0, 90.0]])[:, :, None, None]
    layer = (torch.ones(2), torch.zeros(2), torch.ones(1, 2, 1, 1), None, torch.ones(2, 1, 3, 3), None)
    pooled = gated_dense_layer_(buffer, *layer, out_mask=torch.tensor([[False, True]]), pool=True)
    assert buffer.flatten().tolist() == [1.0, 2.0, 70.0, 3.0, 90.0] and pooled.tolist() == [[0.0, 3.0]]
    assert gated_dense_layer_(buffer, *layer).shape == (1, 0)
    assert buffer.flatten().tolist() == [1.0, 2.0, 3.0, 3.0, 90.0]


def check(case: Case) -> None:
    torch.manual_seed(0)
    arguments, expected, expected_pooled = build(case)
    y, pooled = gated_dense_layer(**arguments)
    assert y.dtype == case.dtype
    assert_close(y, expected)
    check_pooled(pooled, expected_pooled, case)
    x = arguments["x"]
    last = not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
    assert y.is_contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


def check_pooled(pooled, expected, case):
    assert pooled.dtype == (torch.float64 if case.dtype == torch.float64 else torch.float32)
    atol, rtol = TOLERANCES[case.dtype]
    torch.testing.assert_close(pooled.double(), expected, atol=atol, rtol=rtol)


def check_in_place(case: Case) -> None:
    torch.manual_seed(0)
    arguments, expected, expected_pooled = build(case)
    call = with_buffer(arguments, case)
    before, strides = call["buffer"].clone(), call["buffer"].stride()
    check_pooled(gated_dense_layer_(**call), expected_pooled, case)
    buffer, ci = call["buffer"], case.ci
    new = buffer[:, ci : ci + case.growth]
    written = torch.ones_like(new, dtype=torch.bool)
    if call["out_mask"] is not None:
        written &= per_channel(call["out_mask"], case.growth, case.group_size)
    assert_close(torch.where(written, new, 0), expected)
    # All else is untouched, to the bit.
    untouched = torch.ones_like(before, dtype=torch.bool)
    untouched[:, ci : ci + case.growth] = ~written
    same = (buffer == before) | (buffer.isnan() & before.isnan())
    assert same[untouched].all() and buffer.stride() == strides


@pytest.mark.parametrize("form", [check, check_in_place], ids=["copying", "in_place"])
@pytest.mark.parametrize("changes", single_changes(FACTORS, Case()), ids=case_id)
def test_equals_dense_times_mask(kernel, form, changes):
    form(Case(**changes))


@pytest.mark.parametrize("form", [check, check_in_place], ids=["copying", "in_place"])
@pytest.mark.parametrize("changes", random_changes(FACTORS, 60))
def test_equals_dense_times_mask_where_all_varies(kernel, form, changes):
    form(Case(**changes))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("form", [check, check_in_place], ids=["copying", "in_place"])
def test_auto_takes_half_precision(form, dtype):
    form(Case(dtype=dtype, pool=True))


@pytest.mark.parametrize("form", [check, check_in_place], ids=["copying", "in_place"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_a_layer_in_several_blocks_of_rows(kernel, form, layout):
    form(Case(batch=2, ci=160, middle=64, growth=32, size=(33, 40), group_size=16, layout=layout, pool=True))


# Few new channels: the middle is cut into strips, two or four, of which the last may end early.
@pytest.mark.parametrize("growth", [1, 4, 7, 8])
@pytest.mark.parametrize("middle", [5, 16, 48])
@pytest.mark.parametrize("size", [(16, 16), (17, 8), (18, 3), (19, 1), (5, 9), (9, 5), (33, 20), (41, 600)])
def test_strips_of_the_middle(kernel, growth, middle, size):
    check(Case(ci=9, middle=middle, growth=growth, size=size, out_open=None, pool=True))
    if size[1] < 600:
        gated = Case(ci=9, middle=middle, growth=3 * growth, group_size=growth, size=size, packed=True)
        check_in_place(gated)


@pytest.mark.parametrize(("batch", "growth"), [(1, 12), (3, 12), (1, 4), (3, 8)])
def test_threads_change_no_bit(isa, batch, growth):
    case = Case(batch=batch, ci=90, middle=48, growth=growth, size=(19, 23), pool=True)
    torch.manual_seed(0)
    arguments = build(case)[0]
    call = with_buffer(arguments, case)
    before, results = torch.get_num_threads(), []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        buffer = call["buffer"].clone()
        pooled = gated_dense_layer_(**call | {"buffer": buffer})
        results.append((*gated_dense_layer(**arguments), pooled, buffer.nan_to_num(7.0)))
    torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_a_buffer_inside_a_wider_one(kernel, layout):
    case = Case(pool=True, spare=0)
    torch.manual_seed(0)
    call = with_buffer(build(case)[0], case)
    wide = lay_out(torch.full((case.batch, case.ci + case.growth + 5, *case.size), 7.0), layout)
    part = wide[:, 2:-3]
    part.copy_(call["buffer"])
    pooled = gated_dense_layer_(**call)
    assert_close(gated_dense_layer_(**call | {"buffer": part}), pooled.double())
    assert_close(part.nan_to_num(9.0), call["buffer"].nan_to_num(9.0).double())
    assert (wide[:, [0, 1, -3, -2, -1]] == 7.0).all()


def test_a_sample_with_nothing_open_reads_nothing(kernel):
    x, one, three = (
        torch.full((2, 3, 4, 4), NAN),
        torch.full((4, 3, 1, 1), NAN),
        torch.full((5, 4, 3, 3), NAN),
    )
    layer = (x[0, :, 0, 0], x[0, :, 0, 0], one, one[:, 0, 0, 0], three, three[:, 0, 0, 0])
    closed = torch.zeros(2, 5, dtype=torch.bool)
    y, pooled = gated_dense_layer(x, *layer, out_mask=closed, pool=True)
    assert torch.equal(y, torch.zeros(2, 5, 4, 4)) and torch.equal(pooled, torch.zeros(2, 5))
    buffer = torch.full((2, 8, 4, 4), 7.0)
    assert not gated_dense_layer_(buffer, *layer, out_mask=closed, pool=True).any()
    assert (buffer == 7.0).all()


def test_nan_in_open_channels_comes_out(kernel):
    x, one = torch.ones(1, 2, 5, 5), torch.ones(2)
    x[0, 1, 2, 2] = NAN
    weights = (torch.ones(1, 2, 1, 1), None, torch.ones(1, 1, 3, 3), None)
    assert gated_dense_layer(x, one, one, *weights)[0].isnan().sum() == 9


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_a_block_of_layers_equals_dense_concatenation(kernel, layout):
    """Three layers in one buffer, closed channels holding NaN, with one running mask beside it."""
    torch.manual_seed(0)
    n, initial, growth, size = 4, 7, 5, 6
    total = initial + 3 * growth
    buffer = lay_out(torch.full((n, total, size, size), NAN), layout)
    buffer[:, :initial] = torch.randn(n, initial, size, size)
    opened = torch.zeros(n, total, dtype=torch.bool)
    opened[:, :initial] = True
    pooled = torch.zeros(n, total)
    pooled[:, :initial] = buffer[:, :initial].mean((2, 3))
    dense = buffer[:, :initial].double()
    for ci in range(initial, total, growth):
        scale1, shift1 = torch.randn(ci), torch.randn(ci)
        weight1, weight2 = torch.randn(9, ci, 1, 1) / ci**0.5, torch.randn(growth, 9, 3, 3) / 9
        bias1, new = torch.randn(9), slice(ci, ci + growth)
        bits = torch.rand(n, growth) < 0.6
        bits[0] = False  # the first sample skips every layer
        pooled[:, new] = gated_dense_layer_(
            buffer, scale1, shift1, weight1, bias1, weight2, None,
            in_mask=opened[:, :ci], out_mask=bits, pool=True,
        )  # fmt: skip
        h = (dense * scale1.double()[:, None, None] + shift1.double()[:, None, None]).relu()
        h = F.conv2d(h * opened[:, :ci, None, None], weight1.double(), bias1.double()).relu()
        y = F.conv2d(h, weight2.double(), padding=1) * bits[:, :, None, None]
        dense, opened[:, new] = torch.cat((dense, y), dim=1), bits
    assert buffer[~opened].isnan().all() and not opened[0, initial:].any()
    assert_close(torch.where(opened[:, :, None, None], buffer, 0), dense)
    assert_close(pooled, dense.mean((2, 3)))


VARIANTS = {
    "plain": Case(in_open=None, out_open=None),
    "masks": Case(pool=True, group_size=4, bias=(True, True)),
    "packed": Case(packed=True, strided=True),
    "sliced": Case(layout="sliced", pool=True),
    "empty": Case(batch=0, pool=True),
}


def plain(variant: str, in_place: bool = False) -> dict:
    torch.manual_seed(0)
    case = VARIANTS[variant]
    arguments = build(case)[0]
    arguments = with_buffer(arguments, case) if in_place else arguments
    call = without_nan(arguments)
    name = "buffer" if in_place else "x"
    return call | {name: lay_out(call[name], case.layout)}


@pytest.mark.parametrize("variant", VARIANTS)
def test_opcheck(variant):
    for overload, in_place in ((OP, False), (OP_INPLACE, True)):
        results = torch.library.opcheck(overload, positional(overload, plain(variant, in_place)))
        assert len(results) == 4 and set(results.values()) == {"SUCCESS"}


@pytest.mark.parametrize("variant", VARIANTS)
def test_compile_fullgraph(variant):
    torch._dynamo.reset()
    call = plain(variant)
    compiled = torch.compile(gated_dense_layer, fullgraph=True, backend="aot_eager")
    for a, b in zip(compiled(**call), gated_dense_layer(**call), strict=True):
        assert_close(a, b.double())


@pytest.mark.parametrize("variant", VARIANTS)
def test_compile_in_place_fullgraph(variant):
    torch._dynamo.reset()
    call = plain(variant, in_place=True)
    other = call | {"buffer": lay_out(call["buffer"].clone(), VARIANTS[variant].layout)}
    compiled = torch.compile(gated_dense_layer_, fullgraph=True, backend="aot_eager")
    assert_close(compiled(**call), gated_dense_layer_(**other).double())
    assert_close(call["buffer"], other["buffer"].double())


def test_gradients_are_those_of_the_reference():
    names = ("x", "scale1", "shift1", "weight1", "bias1", "weight2", "bias2")
    case = Case(batch=2, ci=4, middle=5, growth=3, size=(3, 3), bias=(True, True), dtype=torch.float64)
    torch.manual_seed(0)
    call = without_nan(build(case)[0])
    leaves = [call[name].requires_grad_() for name in names]
    assert torch.autograd.gradcheck(
        lambda *t: gated_dense_layer(**call | dict(zip(names, t, strict=True)))[0], leaves, fast_mode=True
    )
    with torch.no_grad():
        assert not gated_dense_layer(**call)[0].requires_grad
    buffer = torch.zeros(2, 7, 3, 3, dtype=torch.float64)
    with pytest.raises(RuntimeError, match="gated_dense_layer_.*gradient.*no_grad"):
        gated_dense_layer_(buffer, *(call[n] for n in names[1:]))


@pytest.mark.parametrize("how", ["public", "operator"])
def test_autocast(how):
    call, inner = plain("masks"), plain("masks", in_place=True)
    expected = gated_dense_layer(
        **{k: v.bfloat16().double() if k[:-1] in ("weight", "bias", "scale", "shift") or k == "x" else v
           for k, v in call.items()}
    )[0]  # fmt: skip
    before = lay_out(inner["buffer"].clone(), "channels_last")
    gated_dense_layer_(**inner | {"buffer": before})
    with torch.autocast("cpu", torch.bfloat16):
        y, pooled = gated_dense_layer(**call) if how == "public" else OP(*positional(OP, call))
        if how == "public":
            gated_dense_layer_(**inner)
        else:
            OP_INPLACE(*positional(OP_INPLACE, inner))
    assert y.dtype == torch.bfloat16 and pooled.dtype == torch.float32
    assert_close(y, expected)
    assert_close(inner["buffer"], before.double())  # in place: the buffer's own dtype


def test_macs_count_open_channels_of_samples_that_run():
    in_mask = torch.tensor([[True, False, True], [True, True, True], [True, False, False]])
    out_mask = torch.tensor([[True, False], [False, False], [True, True]])  # groups of 3 and 1
    layer = {
        "scale1": torch.ones(3), "shift1": torch.ones(3), "weight1": torch.ones(6, 3, 1, 1), "bias1": None,
        "packed1": None, "weight2": torch.ones(4, 6, 3, 3), "bias2": None, "packed2": None, "pool": False,
    }  # fmt: skip

    def macs(**options):
        flops = []
        for overload, first in (
            (OP, {"x": torch.ones(3, 3, 5, 5)}),
            (OP_INPLACE, {"buffer": torch.ones(3, 9, 5, 5)}),
        ):
            with FlopCounterMode(display=False) as counter:
                overload(*positional(overload, layer | first | options))
            flops.append(counter.get_total_flops())
        assert flops[0] == flops[1] and flops[0] % 2 == 0
        return flops[0] // 2

    assert macs(in_mask=None, out_mask=None, group_size=1) == 3 * (3 + 4 * 9) * 6 * 25
    gated = macs(in_mask=in_mask, out_mask=out_mask, group_size=3)
    assert gated == ((2 + 3 * 9) + (1 + 4 * 9)) * 6 * 25
