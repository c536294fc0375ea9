"""gated_conv2d in half precision: every case on every instruction set, sums in float32, autocast."""

from __future__ import annotations

import pytest
import torch
from gated_conv2d_cases import Case, build, case_id, pairwise, single_changes
from native import ISAS, ON_ARM, forced_isa, require_native
from tolerances import assert_close

from ddi_kernels import backend, gated_conv2d, prepack_conv2d

BF16, FP16 = torch.bfloat16, torch.float16
# Those on which a dtype has kernels of its own.
DOT_ISAS = ("neon_bf16",) if ON_ARM else ("avx512_bf16", "avx512_amx")
KERNELS = [(FP16, isa) for isa in ISAS] + [(BF16, isa) for isa in ISAS + DOT_ISAS]
CASES = {
    case_id(c): c
    for c in (
        {k: v for k, v in changes.items() if k != "dtype"}
        for changes in single_changes() + pairwise(without="groups")
    )
    if "groups" not in c
}


@pytest.fixture(params=KERNELS, ids=lambda kernel: f"{str(kernel[0])[6:]}-{kernel[1]}")
def dtype(request):
    """A dtype, with the compiled kernels of one instruction set."""
    with forced_isa(request.param[1]), backend("native"):
        yield request.param[0]


@pytest.fixture
def keeps_denormals(request, dtype):
    """The bfloat16 dot products take denormals as zeros."""
    return not any(isa in request.node.name for isa in DOT_ISAS)


@pytest.mark.parametrize("changes", CASES.values(), ids=CASES.keys())
def test_equals_dense_times_mask(dtype, changes):
    torch.manual_seed(0)
    arguments, expected = build(Case(**changes, dtype=dtype))
    y = gated_conv2d(**arguments)
    assert y.dtype == dtype
    assert_close(y, expected)


def test_sums_are_float32(dtype):
    # In bfloat16, 256 + 1 is 256, and in float16, 2048 + 1 is 2048.
    x, weight = torch.ones(1, 3000, 1, 2, dtype=dtype), torch.ones(1, 3000, 1, 1, dtype=dtype)
    assert gated_conv2d(x, weight).tolist() == torch.full((1, 1, 1, 2), 3000.0).to(dtype).tolist()


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_results_are_rounded_to_nearest_even(dtype, layout, keeps_denormals):
    every = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)
    if not keeps_denormals:
        every = torch.where(every.abs() < torch.finfo(dtype).tiny, 0, every)
    other = every[torch.randperm(2**16, generator=torch.Generator().manual_seed(0))]
    shape, weight = (1, 16, 64, 64), torch.eye(16, dtype=dtype)[:, :, None, None]
    gate = torch.ones(1, 16, dtype=torch.bool)
    for residual in (None, other):
        sums = every.float() if residual is None else every.float() + residual.float()
        # One channel after the other, so that an infinity meets no zero weight.
        y = torch.stack(
            [
                gated_conv2d(
                    every.view(shape).contiguous(memory_format=FORMATS[layout]),
                    weight,
                    in_mask=gate & (torch.arange(16) == c),
                    out_mask=gate & (torch.arange(16) == c),
                    residual=None if residual is None else residual.view(shape),
                )[0, c]
                for c in range(16)
            ]
        )
        expected = sums.to(dtype).view(shape)[0]
        assert torch.equal(y.isnan(), expected.isnan())
        assert torch.equal(y.nan_to_num(7.0), expected.nan_to_num(7.0))


FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def test_threads_change_no_bit(dtype):
    arguments, _ = build(Case(batch=1, ci=39, co=70, size=(17, 19), dtype=dtype))
    before, results = torch.get_num_threads(), []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        results.append(gated_conv2d(**arguments))
    torch.set_num_threads(before)
    assert torch.equal(*results)


def test_packed_weights_change_no_bit(dtype):
    arguments, _ = build(Case(relu=True, dtype=dtype))
    packed = prepack_conv2d(arguments["weight"])
    assert torch.equal(gated_conv2d(**arguments), gated_conv2d(**arguments | {"packed": packed}))


@pytest.mark.parametrize("dtype_of_autocast", [BF16, FP16], ids=str)
@pytest.mark.parametrize("ci", [16, 17])
def test_autocast_runs_native_and_leaves_packed_float32_weights_out(dtype_of_autocast, ci):
    require_native()
    x, weight, bias = torch.randn(2, ci, 5, 5), torch.randn(33, ci, 3, 3), torch.randn(33)
    expected = [t.to(dtype_of_autocast) for t in (x, weight, bias)]
    with backend("native"), torch.autocast("cpu", dtype_of_autocast):
        y = gated_conv2d(x, weight, bias, packed=prepack_conv2d(weight))
    assert y.dtype == dtype_of_autocast and torch.equal(y, gated_conv2d(*expected))


def test_packed_weights_of_another_dtype_are_refused():
    arguments, _ = build(Case(dtype=BF16, ci=16))
    arguments["packed"] = prepack_conv2d(arguments["weight"].float())
    with pytest.raises(ValueError, match="gated_conv2d: argument 'packed'.*bfloat16"):
        gated_conv2d(**arguments)
