"""Values of gated_conv2d: every implementation against dense times mask in float64."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from gated_conv2d_cases import (
    FACTORS,
    Case,
    build,
    case_id,
    direct_arguments,
    grouped_changes,
    lay_out,
    pairwise,
    single_changes,
    winograd_changes,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerances import assert_close

import ddi_kernels
from ddi_kernels import gated_conv2d, prepack_conv2d

NAN = torch.nan


def test_typed_in_answers(kernel):
    # Two input channels of 1x3 pixels, three output channels, a 1x2 kernel.
    x = torch.tensor([[[1.0, 2.0, 3.0]], [[10.0, 20.0, 30.0]]])[None]
    weight = torch.tensor([[[[1.0, 1.0]], [[0.0, 1.0]]],
                           [[[2.0, 0.0]], [[1.0, 0.0]]],
                           [[[0.0, 0.0]], [[0.0, -1.0]]]])  # fmt: skip
    bias = torch.tensor([0.5, 0.0, 25.0])

    def run(**options):
        return gated_conv2d(x, weight, bias, **options)[0, :, 0].tolist()

    assert run() == [[23.5, 35.5], [12.0, 24.0], [5.0, -5.0]]
    assert run(activation="relu") == [[23.5, 35.5], [12.0, 24.0], [5.0, 0.0]]
    first = torch.tensor([[True, False]])
    assert run(in_mask=first) == [[3.5, 5.5], [2.0, 4.0], [25.0, 25.0]]
    outer = torch.tensor([[True, False, True]])
    assert run(out_mask=outer) == [[23.5, 35.5], [0.0, 0.0], [5.0, -5.0]]
    scale = torch.tensor([[2.0, 3.0, -1.0]])
    assert run(out_mask=outer, scale=scale) == [[47.0, 71.0], [0.0, 0.0], [-5.0, 5.0]]
    residual = torch.tensor([[[1.0, -99.0]], [[-7.0, 7.0]], [[-6.0, 6.0]]])[None]
    summed = run(out_mask=outer, scale=scale, residual=residual, activation="relu")
    assert summed == [[48.0, 0.0], [0.0, 7.0], [0.0, 11.0]]
    pair = torch.tensor([[True, False]])  # groups {0, 1} and {2}, the last one short
    assert run(out_mask=pair, out_group_size=2) == [[23.5, 35.5], [12.0, 24.0], [0.0, 0.0]]


def check(case: Case) -> None:
    torch.manual_seed(0)
    arguments, expected = build(case)
    y = gated_conv2d(**arguments)
    assert y.dtype == case.dtype
    assert_close(y, expected)
    x = arguments["x"]
    last = not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
    wanted = torch.channels_last if last else torch.contiguous_format
    assert y.is_contiguous(memory_format=wanted)


@pytest.mark.parametrize("changes", single_changes(), ids=case_id)
def test_equals_dense_times_mask(kernel, changes):
    check(Case(**changes))


@pytest.mark.parametrize("changes", grouped_changes(), ids=case_id)
def test_convolution_groups_equal_dense_times_mask(kernel, changes):
    check(Case(**changes))


@pytest.mark.parametrize("changes", pairwise(), ids=case_id)
def test_equals_dense_times_mask_on_pairs_of_changes(kernel, changes):
    check(Case(**changes))


@pytest.mark.parametrize("changes", winograd_changes(), ids=case_id)
def test_winograd_equals_dense_times_mask(kernel, changes):
    check(Case(**changes))


# As the first layer of networks for large images, but smaller.
STEM = Case(ci=3, co=64, size=(40, 40), kernel=(7, 7), stride=2, padding=3, in_open=None)


@pytest.mark.parametrize(
    ("case", "taken"),
    [
        (Case(ci=64, co=64, size=(16, 16)), True),
        (Case(ci=64, co=64, size=(8, 8)), True),
        (Case(ci=16, co=16, size=(32, 32), in_open=None, out_open=None), True),
        (Case(ci=64, co=64, size=(4, 4)), False),  # too few tiles
        (Case(ci=64, co=64, size=(16, 16), out_open="one"), False),  # too few pairs of channels
        (Case(ci=64, co=64, size=(16, 16), stride=2), False),
        (Case(ci=64, co=260, size=(16, 16)), False),
        (replace(STEM, out_group_size=16), True),
        (replace(STEM, out_group_size=4), True),
        (replace(STEM, in_open="one"), False),  # phases of closed channels
        (replace(STEM, size=(12, 12)), False),
        (replace(STEM, stride=1), False),
        (replace(STEM, ci=33), False),
    ],
)
def test_winograd_is_taken_where_it_pays(isa, case, taken):
    arguments, _ = build(case)
    direct, transformed = (
        gated_conv2d(**arguments | {"packed": prepack_conv2d(arguments["weight"], 1, winograd)})
        for winograd in (False, True)
    )
    assert torch.equal(direct, transformed) is not taken


def test_winograd_keeps_nan_and_infinity_in_their_tile(isa):
    x = torch.ones(1, 16, 16, 16)
    x[0, 3, 9, 6], x[0, 5, 12, 13] = NAN, torch.inf
    weight = torch.ones(16, 16, 3, 3)
    y = gated_conv2d(x, weight, packed=prepack_conv2d(weight), padding=1)
    assert not y[..., 8:11, 5:8].isfinite().any() and not y[..., 11:14, 12:15].isfinite().any()
    # Of the tiles of 4x4 outputs, those that read one of the two.
    far = torch.ones(16, 16, dtype=torch.bool)
    far[8:12, 4:8] = far[8:16, 12:16] = False
    assert y[..., far].isfinite().all()


def test_strided_winograd_keeps_nan_in_its_tile(isa):
    x = torch.ones(1, 3, 48, 48)
    x[0, 1, 20, 31] = NAN
    weight = torch.ones(64, 3, 7, 7)
    y = gated_conv2d(x, weight, packed=prepack_conv2d(weight), stride=2, padding=3)
    assert not y[..., 9:12, 14:18].isfinite().any()  # outputs whose windows hold it
    # Of the tiles of 3x3 outputs, those that read it; the first row and column of a window is even.
    far = torch.ones(24, 24, dtype=torch.bool)
    far[6:12, 12:18] = False
    assert y[..., far].isfinite().all()


def test_typed_in_depthwise_answers(kernel):
    # Three channels of 1x3 pixels, a 1x3 kernel each; the middle input and the last output are closed.
    x = torch.tensor([[[1.0, 2.0, 3.0]], [[NAN, NAN, NAN]], [[4.0, 5.0, 6.0]]])[None]
    weight = torch.tensor([[[[1.0, 10.0, 100.0]]], [[[1.0, 1.0, 1.0]]], [[[NAN, NAN, NAN]]]])
    gates = {
        "in_mask": torch.tensor([[True, False, True]]),
        "out_mask": torch.tensor([[True, True, False]]),
        "padding": (0, 1),
        "groups": 3,
    }
    for layout in ("contiguous", "channels_last"):
        y = gated_conv2d(lay_out(x, layout), weight, torch.tensor([0.5, 7.0, NAN]), **gates)
        assert y[0, :, 0].tolist() == [[210.5, 321.5, 32.5], [7.0, 7.0, 7.0], [0.0, 0.0, 0.0]]


@pytest.mark.parametrize("groups", ["two", "depthwise"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_auto_takes_the_reference_for_convolution_groups_in_half_precision(groups, layout, dtype):
    shape = {"ci": 12, "co": 24, "in_group_size": 4, "residual": "sliced"}
    check(Case(groups=groups, layout=layout, dtype=dtype, **shape))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.fixed_dictionaries({name: st.sampled_from(v) for name, v in FACTORS.items()}),
       st.integers(1, 40), st.integers(1, 40), st.integers(1, 12), st.integers(1, 12))  # fmt: skip
def test_any_call_equals_dense_times_mask(factors, ci, co, height, width):
    case = Case(**factors)
    check(replace(case, ci=ci, co=co, size=(height, width)))


@pytest.fixture
def one_then_two_threads() -> Iterator[tuple[int, int]]:
    before = torch.get_num_threads()
    yield 1, 2
    torch.set_num_threads(before)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("groups", ["one", "two", "depthwise"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("packed", [True, False])
def test_threads_change_no_bit(isa, one_then_two_threads, batch, groups, dtype, packed):
    shape = {"ci": 90, "co": 70, "size": (31, 19), "packed": packed, "winograd": packed}
    arguments, _ = build(Case(batch=batch, groups=groups, dtype=dtype, **shape))
    results = []
    for threads in one_then_two_threads:
        torch.set_num_threads(threads)
        results.append(gated_conv2d(**arguments))
    assert torch.equal(*results)


@pytest.mark.parametrize("groups", ["one", "four", "depthwise"])
def test_packed_weights_change_no_bit(isa, groups):
    arguments, _ = build(Case(relu=True, groups=groups))
    packed = prepack_conv2d(arguments["weight"], arguments["groups"], winograd=False)
    assert torch.equal(gated_conv2d(**arguments), gated_conv2d(**arguments | {"packed": packed}))


def test_operands_of_any_strides(kernel):
    torch.manual_seed(0)
    arguments, expected = build(Case(scale=True, residual="sliced", in_group_size=4))
    arguments["weight"] = lay_out(arguments["weight"], "sliced")
    for name in ("bias", "in_mask", "out_mask", "scale"):
        wide = arguments[name].repeat_interleave(2, dim=-1)
        arguments[name] = wide[..., ::2]
        assert not arguments[name].is_contiguous()
    assert_close(gated_conv2d(**arguments), expected)
    arguments["weight"] = lay_out(arguments["weight"], "channels_last")
    assert_close(gated_conv2d(**arguments), expected)


def test_nan_in_open_channels_comes_out(kernel):
    x, weight = torch.ones(1, 2, 3, 3), torch.ones(2, 2, 1, 1)
    x[0, 1, 1, 1] = NAN
    y = gated_conv2d(x, weight, in_mask=torch.tensor([[True, True]]), activation="relu")
    assert y.isnan().sum() == 2 and y[:, :, 1, 1].isnan().all()


def test_closed_outputs_without_anything_open_are_the_residual(kernel):
    x, weight = torch.full((2, 3, 4, 4), NAN), torch.full((5, 3, 3, 3), NAN)
    closed_in, closed_out = torch.zeros(2, 3, dtype=torch.bool), torch.zeros(2, 5, dtype=torch.bool)
    residual = torch.randn(2, 5, 4, 4)
    bias = torch.full((5,), NAN)
    gates = {"in_mask": closed_in, "out_mask": closed_out, "padding": 1}
    y = gated_conv2d(x, weight, bias, residual=residual, activation="relu", **gates)
    assert torch.equal(y, residual.relu())
    assert torch.equal(gated_conv2d(x, weight, bias, **gates), torch.zeros(2, 5, 4, 4))


def test_closed_inputs_leave_the_bias(kernel):
    x, bias = torch.full((1, 3, 4, 4), NAN), torch.arange(5.0)
    closed = torch.zeros(1, 3, dtype=torch.bool)
    y = gated_conv2d(x, torch.ones(5, 3, 3, 3), bias, in_mask=closed)
    assert torch.equal(y, bias[None, :, None, None].expand(1, 5, 2, 2))


def test_result_shares_no_memory_with_the_operands(kernel):
    x, residual = torch.randn(1, 4, 5, 5), torch.randn(1, 4, 5, 5)
    before = x.clone(), residual.clone()
    gated_conv2d(x, torch.eye(4)[:, :, None, None], residual=residual).add_(1)
    assert torch.equal(x, before[0]) and torch.equal(residual, before[1])


def test_direct_operator_call_equals_public_function():
    torch.manual_seed(0)
    arguments, expected = build(Case(scale=True, residual="contiguous", relu=True))
    y = torch.ops.ddi.gated_conv2d(*direct_arguments(arguments))
    assert_close(y, expected)
    with ddi_kernels.backend("auto"):
        assert torch.equal(y, gated_conv2d(**arguments))
