"""gated_bottleneck: every implementation against dense times mask in float64; torch integration."""

from __future__ import annotations

import pytest
import torch
from residual_block_cases import (
    FACTORS,
    KERNELS,
    NAN,
    Case,
    case_id,
    check,
    plain,
    positional,
    random_changes,
    single_changes,
)
from tolerances import assert_close
from torch.utils.flop_counter import FlopCounterMode

from ddi_kernels import gated_conv2d
from ddi_kernels.ops.gated_bottleneck import gated_bottleneck

OP = torch.ops.ddi.gated_bottleneck.default
BOTTLENECK = (1, 3, 1)


@KERNELS
def test_typed_in_answers(kernel):
    # One pixel: only the centre of the 3x3 kernel counts. Channels 1 -> 2 -> 2 -> 1.
    x = torch.tensor([3.0, 5.0])[:, None, None, None]
    weight1 = torch.tensor([2.0, -1.0])[:, None, None, None]
    weight2 = torch.zeros(2, 2, 3, 3)
    weight2[:, :, 1, 1] = torch.tensor([[1.0, 10.0], [-1.0, 0.0]])
    weight3 = torch.tensor([[1.0, 100.0]])[:, :, None, None]
    biases = torch.tensor([0.0, 4.0]), torch.tensor([0.0, 7.0]), torch.tensor([0.5])
    parts = [v for pair in zip((weight1, weight2, weight3), biases, strict=True) for v in pair]

    def run(**options):
        y, pooled = gated_bottleneck(x, *parts, **options)
        return (
            (y.flatten().tolist(), pooled.flatten().tolist()) if "pool" in options else y.flatten().tolist()
        )

    # h1 = (6, 1) and (10, 0); h2 = (16, 1) and (10, 0); branch 116.5 and 10.5
    assert run() == [119.5, 15.5]
    first, second = torch.tensor([[True, False], [False, True]]), torch.tensor([[True, True], [False, True]])
    assert run(mask1=first) == [109.5, 705.5]  # h1 = (6, 0), (0, 0); h2 = (6, 1), (0, 7)
    assert run(mask2=second) == [119.5, 5.5]  # h2 = (16, 1), (0, 0)
    assert run(mask1=first, mask2=second) == [109.5, 705.5]  # h2 = (6, 1), (0, 7)
    pair = torch.tensor([[False], [True]])
    assert run(mask1=pair, group_size1=2) == [703.5, 15.5]  # h2 = (0, 7), (10, 0)
    assert run(mask2=pair, group_size2=2) == [3.5, 15.5]
    # Scales come before the ReLU: h1 = (6, 0), (10, 1); h2 = (0, 2), (0, 0).
    scales = {
        "mask1_scale": torch.tensor([[1.0, -1.0], [1.0, -1.0]]),
        "mask2_scale": torch.tensor([[-1.0, 2.0], [-1.0, 1.0]]),
    }
    assert run(**scales) == [203.5, 5.5]
    keep = torch.tensor([False, True])
    assert run(keep=keep, keep_scale=torch.tensor([NAN, 2.0]), pool=True) == ([3.0, 26.0], [3.0, 26.0])
    passed_on = torch.tensor([[7.0], [NAN]])
    assert run(keep=keep, pool=True, x_pooled=passed_on) == ([3.0, 15.5], [7.0, 15.5])


@KERNELS
def test_typed_in_stride(kernel):
    # Ones everywhere: a corner of a 3x3 image sees 4 pixels, and stride 2 keeps the corners.
    x, one, three = torch.ones(1, 1, 3, 3), torch.ones(1, 1, 1, 1), torch.ones(1, 1, 3, 3)
    y, pooled = gated_bottleneck(
        x, one, None, three, None, one, None, shortcut_weight=one * 3, stride=2, pool=True
    )
    assert y.tolist() == [[[[7.0, 7.0], [7.0, 7.0]]]] and pooled.tolist() == [[7.0]]


@KERNELS
@pytest.mark.parametrize("changes", single_changes(FACTORS, Case()), ids=case_id)
def test_equals_dense_times_mask(kernel, changes):
    check(Case(**changes), gated_bottleneck, BOTTLENECK)


@KERNELS
@pytest.mark.parametrize("changes", random_changes(FACTORS, 80))
def test_equals_dense_times_mask_where_all_varies(kernel, changes):
    check(Case(**changes), gated_bottleneck, BOTTLENECK)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_auto_takes_half_precision(dtype, layout):
    check(Case(dtype=dtype, layout=layout, pool=True), gated_bottleneck, BOTTLENECK)


@KERNELS
def test_a_skipped_sample_reads_nothing_but_x(kernel):
    x = torch.randn(2, 4, 5, 5)
    x[0, 1, 2, 2], x[1, 0, 0, 0] = NAN, torch.inf
    one, three, bias = torch.full((4, 4, 1, 1), NAN), torch.full((4, 4, 3, 3), NAN), torch.full((4,), NAN)
    keep = torch.zeros(2, dtype=torch.bool)
    y, pooled = gated_bottleneck(x, one, bias, three, bias, one, bias, keep=keep, pool=True)
    torch.testing.assert_close(y, x, rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(pooled, x.mean((2, 3)), equal_nan=True)
    assert y.data_ptr() != x.data_ptr()


@KERNELS
@pytest.mark.parametrize("stride", [1, 2])
def test_equals_three_gated_convolutions(kernel, stride):
    case = Case(stride=stride, mask_scale=True, keep_scale=True, keep="all")
    call = plain(case, BOTTLENECK)
    h = gated_conv2d(
        call["x"], call["weight1"], call["bias1"], out_mask=call["mask1"], scale=call["mask1_scale"],
        out_group_size=call["group_size1"], activation="relu",
    )  # fmt: skip
    h = gated_conv2d(
        h, call["weight2"], call["bias2"], in_mask=call["mask1"], in_group_size=call["group_size1"],
        out_mask=call["mask2"], scale=call["mask2_scale"], out_group_size=call["group_size2"],
        stride=stride, padding=1, activation="relu",
    )  # fmt: skip
    shortcut = call["x"]
    if stride == 2:
        shortcut = gated_conv2d(call["x"], call["shortcut_weight"], call["shortcut_bias"], stride=stride)
    expected = gated_conv2d(
        h, call["weight3"], call["bias3"], in_mask=call["mask2"], in_group_size=call["group_size2"],
        scale=call["keep_scale"][:, None], out_group_size=case.ci, residual=shortcut, activation="relu",
    )  # fmt: skip
    assert_close(gated_bottleneck(**call)[0], expected.double())


VARIANTS = {
    "plain": Case(open=None, keep=None, bias=False),
    "masks": Case(pool=True),
    "all": Case(mask_scale=True, keep_scale=True, packed=True, pool=True, x_pooled=True),
    "stride": Case(stride=2, co=5, mask_scale=True, keep_scale=True, pool=True),
    "sliced": Case(layout="sliced", pool=True),
    "empty": Case(batch=0, pool=True),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_opcheck(variant):
    results = torch.library.opcheck(OP, positional(OP, plain(VARIANTS[variant], BOTTLENECK)))
    assert len(results) == 4 and set(results.values()) == {"SUCCESS"}


@pytest.mark.parametrize("variant", VARIANTS)
def test_compile_fullgraph(variant):
    torch._dynamo.reset()
    call = plain(VARIANTS[variant], BOTTLENECK)
    compiled = torch.compile(gated_bottleneck, fullgraph=True, backend="aot_eager")
    for a, b in zip(compiled(**call), gated_bottleneck(**call), strict=True):
        assert_close(a, b.double())


def test_gradients_are_those_of_the_reference():
    names = (
        "x",
        "weight1",
        "weight2",
        "bias2",
        "weight3",
        "bias3",
        "keep_scale",
        "mask1_scale",
        "mask2_scale",
    )
    case = Case(dtype=torch.float64, ci=3, interior=(4, 5), size=(3, 3), mask_scale=True, keep_scale=True)
    call = plain(case, BOTTLENECK)
    leaves = [call[name].requires_grad_() for name in names]
    assert torch.autograd.gradcheck(
        lambda *t: gated_bottleneck(**call | dict(zip(names, t, strict=True)))[0], leaves, fast_mode=True
    )
    with torch.no_grad():
        assert not gated_bottleneck(**call)[0].requires_grad


def test_autocast_computes_in_bfloat16_and_keeps_means():
    call = plain(Case(keep_scale=True, pool=True, x_pooled=True), BOTTLENECK)
    with torch.autocast("cpu", torch.bfloat16):
        y, pooled = gated_bottleneck(**call)
    assert y.dtype == torch.bfloat16 and pooled.dtype == torch.float32
    halved = {
        k: v.bfloat16().double() if isinstance(v, torch.Tensor) and v.is_floating_point() else v
        for k, v in call.items()
    }
    assert_close(y, gated_bottleneck(**halved)[0])


def test_macs_count_open_pairs_in_kept_samples():
    mask1 = torch.tensor([[True, False], [True, True], [False, False]])  # groups of 3 and 1: 3, 4, 0 open
    mask2 = torch.tensor([[True, True], [True, False], [True, True]])  # groups of 2 and 1: 3, 2, 3 open
    call = plain(Case(ci=2, interior=(4, 3), size=(5, 5), keep=None, open=None, bias=False), BOTTLENECK)

    def macs(**options):
        with FlopCounterMode(display=False) as counter:
            OP(*positional(OP, call | options))
        flops = counter.get_total_flops()
        assert flops % 2 == 0
        return flops // 2

    assert macs() == 3 * (2 * 4 + 4 * 3 * 9 + 3 * 2) * 25
    gates = {"mask1": mask1, "group_size1": 3, "mask2": mask2, "group_size2": 2}
    pairs = [2 * 3 + 3 * 3 * 9 + 3 * 2, 2 * 4 + 4 * 2 * 9 + 2 * 2, 3 * 2]
    assert macs(**gates) == sum(pairs) * 25
    assert macs(**gates, keep=torch.tensor([True, False, True])) == (pairs[0] + pairs[2]) * 25
    shortcut = {"shortcut_weight": torch.ones(2, 2, 1, 1), "stride": 2}
    assert macs(**gates, **shortcut) == 2 * 7 * 25 + ((9 * 9 + 6) + (8 * 9 + 4) + 6) * 9 + 3 * 4 * 9
