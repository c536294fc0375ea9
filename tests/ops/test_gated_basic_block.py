"""gated_basic_block: every implementation against dense times mask in float64; torch integration."""

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
from ddi_kernels.ops.gated_basic_block import gated_basic_block

OP = torch.ops.ddi.gated_basic_block.default
BASIC = (3, 3)


@KERNELS
def test_typed_in_answers(kernel):
    # One pixel, one channel in, two inside: only the centre of a 3x3 kernel counts.
    x = torch.tensor([3.0, 5.0])[:, None, None, None]
    weight1 = torch.zeros(2, 1, 3, 3)
    weight1[:, 0, 1, 1] = torch.tensor([2.0, -1.0])
    weight2 = torch.zeros(1, 2, 3, 3)
    weight2[0, :, 1, 1] = torch.tensor([1.0, 10.0])
    bias1, bias2 = torch.tensor([0.0, 4.0]), torch.tensor([0.5])

    def run(**options):
        y, pooled = gated_basic_block(x, weight1, bias1, weight2, bias2, **options)
        return (
            (y.flatten().tolist(), pooled.flatten().tolist()) if "pool" in options else y.flatten().tolist()
        )

    # h = (6, 1) and (10, 0); branch 16.5 and 10.5
    assert run() == [19.5, 15.5]
    assert run(mask=torch.tensor([[False, True], [True, False]])) == [13.5, 15.5]
    assert run(mask=torch.tensor([[True], [False]]), group_size=2) == [19.5, 5.5]
    # The scale comes before the ReLU: -1 * (4 - 5) is open where 4 - 5 was not.
    assert run(mask_scale=torch.tensor([[-1.0, 1.0], [1.0, -1.0]])) == [13.5, 25.5]
    keep = torch.tensor([False, True])
    assert run(keep=keep) == [3.0, 15.5]
    assert run(keep_scale=torch.tensor([2.0, -1.0])) == [36.0, 0.0]
    assert run(keep=keep, pool=True) == ([3.0, 15.5], [3.0, 15.5])
    assert run(keep=keep, pool=True, x_pooled=torch.tensor([[7.0], [NAN]])) == ([3.0, 15.5], [7.0, 15.5])
    shortcut = {"shortcut_weight": torch.full((1, 1, 1, 1), -10.0), "shortcut_bias": torch.tensor([35.0])}
    assert run(**shortcut) == [21.5, 0.0]


@KERNELS
def test_typed_in_stride(kernel):
    # Ones everywhere: a corner of a 3x3 image sees 4 pixels, and stride 2 keeps the corners.
    x, weight = torch.ones(1, 1, 3, 3), torch.ones(1, 1, 3, 3)
    shortcut = torch.full((1, 1, 1, 1), 3.0)
    y, pooled = gated_basic_block(
        x, weight, None, weight, None, shortcut_weight=shortcut, stride=2, pool=True
    )
    assert y.tolist() == [[[[19.0, 19.0], [19.0, 19.0]]]] and pooled.tolist() == [[19.0]]


@KERNELS
@pytest.mark.parametrize("changes", single_changes(FACTORS, Case()), ids=case_id)
def test_equals_dense_times_mask(kernel, changes):
    check(Case(**changes), gated_basic_block, BASIC)


@KERNELS
@pytest.mark.parametrize("changes", random_changes(FACTORS, 80))
def test_equals_dense_times_mask_where_all_varies(kernel, changes):
    check(Case(**changes), gated_basic_block, BASIC)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_auto_takes_half_precision(dtype, layout):
    check(Case(dtype=dtype, layout=layout, mask_scale=True, pool=True), gated_basic_block, BASIC)


@KERNELS
def test_a_skipped_sample_reads_nothing_but_x(kernel):
    x = torch.randn(2, 4, 5, 5)
    x[0, 1, 2, 2], x[1, 0, 0, 0] = NAN, torch.inf
    weight, bias = torch.full((4, 4, 3, 3), NAN), torch.full((4,), NAN)
    y, pooled = gated_basic_block(
        x, weight, bias, weight, bias, keep=torch.zeros(2, dtype=torch.bool), pool=True
    )
    torch.testing.assert_close(y, x, rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(pooled, x.mean((2, 3)), equal_nan=True)
    assert y.data_ptr() != x.data_ptr()


@KERNELS
def test_nan_in_a_kept_sample_comes_out(kernel):
    x, weight = torch.ones(1, 1, 5, 5), torch.ones(1, 1, 3, 3)
    x[0, 0, 0, 0] = NAN
    y, _ = gated_basic_block(x, weight, None, weight, None)
    assert y.isnan().sum() == 9  # two 3x3 kernels reach two pixels down and right


@KERNELS
@pytest.mark.parametrize("stride", [1, 2])
def test_equals_two_gated_convolutions(kernel, stride):
    """As the module runs it now, on samples that are all kept."""
    case = Case(stride=stride, mask_scale=True, keep_scale=True, keep="all")
    call = plain(case, BASIC)
    masks = {"scale": call["mask_scale"], "out_group_size": call["group_size"], "activation": "relu"}
    h = gated_conv2d(
        call["x"], call["weight1"], call["bias1"], out_mask=call["mask"], stride=stride, padding=1, **masks
    )
    shortcut = call["x"]
    if stride == 2:
        shortcut = gated_conv2d(call["x"], call["shortcut_weight"], call["shortcut_bias"], stride=stride)
    expected = gated_conv2d(
        h, call["weight2"], call["bias2"], in_mask=call["mask"], in_group_size=call["group_size"],
        scale=call["keep_scale"][:, None], out_group_size=case.ci, residual=shortcut, padding=1,
        activation="relu",
    )  # fmt: skip
    assert_close(gated_basic_block(**call)[0], expected.double())


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
    results = torch.library.opcheck(OP, positional(OP, plain(VARIANTS[variant], BASIC)))
    assert len(results) == 4 and set(results.values()) == {"SUCCESS"}


@pytest.mark.parametrize("variant", VARIANTS)
def test_compile_fullgraph(variant):
    torch._dynamo.reset()
    call = plain(VARIANTS[variant], BASIC)
    compiled = torch.compile(gated_basic_block, fullgraph=True, backend="aot_eager")
    for a, b in zip(compiled(**call), gated_basic_block(**call), strict=True):
        assert_close(a, b.double())


def test_gradients_are_those_of_the_reference():
    names = ("x", "weight1", "bias1", "weight2", "bias2", "keep_scale", "mask_scale")
    case = Case(dtype=torch.float64, ci=3, interior=(4, 0), size=(3, 3), mask_scale=True, keep_scale=True)
    call = plain(case, BASIC)
    leaves = [call[name].requires_grad_() for name in names]
    assert torch.autograd.gradcheck(
        lambda *t: gated_basic_block(**call | dict(zip(names, t, strict=True)))[0], leaves, fast_mode=True
    )
    with torch.no_grad():
        assert not gated_basic_block(**call)[0].requires_grad


def test_autocast_computes_in_bfloat16_and_keeps_means():
    case = Case(mask_scale=True, keep_scale=True, pool=True, x_pooled=True)
    call = plain(case, BASIC)
    with torch.autocast("cpu", torch.bfloat16):
        y, pooled = gated_basic_block(**call)
    assert y.dtype == torch.bfloat16 and pooled.dtype == torch.float32
    halved = {
        k: v.bfloat16().double() if isinstance(v, torch.Tensor) and v.is_floating_point() else v
        for k, v in call.items()
    }
    assert_close(y, gated_basic_block(**halved)[0])


def test_macs_count_open_pairs_in_kept_samples():
    mask = torch.tensor([[True, False], [True, True], [False, False]])  # groups of 3 and 1: 3, 4, 0 open
    call = plain(Case(ci=2, interior=(4, 0), size=(5, 5), keep=None, open=None, bias=False), BASIC)

    def macs(**options):
        with FlopCounterMode(display=False) as counter:
            OP(*positional(OP, call | options))
        flops = counter.get_total_flops()
        assert flops % 2 == 0
        return flops // 2

    positions = 9 * 25
    assert macs() == 3 * (2 * 4 + 4 * 2) * positions
    gates = {"mask": mask, "group_size": 3}
    assert macs(**gates) == 7 * (2 + 2) * positions
    assert macs(**gates, keep=torch.tensor([True, False, True])) == 3 * (2 + 2) * positions
    shortcut = {"shortcut_weight": torch.ones(2, 2, 1, 1), "stride": 2}
    assert macs(**gates, **shortcut) == 7 * (2 + 2) * 9 * 9 + 3 * 4 * 9
