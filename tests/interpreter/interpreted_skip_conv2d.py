"""The Triton kernel of skip_conv2d_, interpreted: against float64, in place, and in torch."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from skip_conv2d_cases import CASES, KEEPS, build
from tolerances import assert_close

from ddi_kernels import backend, skip_conv2d_
from ddi_kernels.tiles import tiles
from ddi_kernels.triton import skip_conv2d as kernels

OP = torch.ops.ddi_triton.skip_conv2d_.default
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.fixture(autouse=True)
def triton_backend():
    with backend("triton"):
        yield


def check(arguments: dict, expected: torch.Tensor) -> None:
    out, keep = arguments["out"], arguments["keep"]
    before = out.clone()
    assert skip_conv2d_(**arguments) is out
    assert_close(out[keep], expected[keep])
    bits = torch.int32 if out.element_size() == 4 else torch.int16
    assert torch.equal(out[~keep].view(bits), before[~keep].view(bits))  # NaN included


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_equals_dense_where_kept(case, dtype):
    check(*build(**CASES[case], dtype=dtype))


@pytest.mark.parametrize("keep", KEEPS)
@pytest.mark.parametrize("accumulate", [True, False])
def test_any_samples_may_be_kept(keep, accumulate):
    check(*build(keep=keep, accumulate=accumulate, relu=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_every_tile(monkeypatch, dtype):
    for tile in tiles.shipped_tiles(dtype, tiles.Gpu(90, 227 * 1024)):
        monkeypatch.setattr(kernels, "pick_tile", lambda *_, tile=tile: tile)
        check(*build(ci=70, co=136, size=(5, 5), dtype=dtype, accumulate=True))


def test_a_residual_block_in_place():
    torch.manual_seed(0)
    x = torch.randn(5, 32, 6, 7).contiguous(memory_format=torch.channels_last)
    weights = [torch.randn(32, 32, 3, 3) / 17 for _ in range(2)]
    biases = [torch.randn(32) for _ in range(2)]
    keep = torch.tensor([True, False, True, True, False])
    exact = [t.double() for t in (x, *weights, *biases)]
    interior = F.conv2d(exact[0], exact[1], exact[3], padding=1).relu()
    expected = (F.conv2d(interior, exact[2], exact[4], padding=1) + exact[0]).relu()
    scratch = torch.empty_like(x)
    options = {"keep": keep, "padding": 1, "activation": "relu"}
    before = x.clone()
    skip_conv2d_(scratch, x, weights[0], biases[0], **options)
    assert scratch[~keep].isnan().all()  # never written, and never read by the next call
    skip_conv2d_(x, scratch, weights[1], biases[1], accumulate=True, **options)
    assert_close(x[keep], expected[keep])
    assert torch.equal(x[~keep], before[~keep])


def test_plan_lists_the_kept_samples_of_a_large_batch():
    torch.manual_seed(0)
    keep = torch.rand(2500) < 0.3
    listed, count = torch.empty(2500, dtype=torch.int32), torch.empty(1, dtype=torch.int32)
    kernels._skip_conv2d_plan_kernel[(1,)](keep.view(torch.uint8), listed, count, 2500, BLOCK=1024)
    index = keep.nonzero().flatten().tolist()
    assert count.item() == len(index) and listed[: len(index)].tolist() == index
    skipped = (~keep).nonzero().flatten().tolist()
    assert sorted(listed[len(index) :].tolist()) == skipped


def test_what_it_does_not_do_is_said():
    arguments, expected = build()
    wrong = arguments | {"out": arguments["out"].contiguous()}
    with pytest.raises(RuntimeError, match="skip_conv2d_.*'triton'.*channels_last images only"):
        skip_conv2d_(**wrong)
    with backend("auto"):
        skip_conv2d_(**wrong)
    assert_close(wrong["out"][wrong["keep"]], expected[wrong["keep"]])
    doubles, _ = build(dtype=torch.float64)
    with pytest.raises(RuntimeError, match="float32, float16 and bfloat16"):
        skip_conv2d_(**doubles)


def test_opcheck():
    a, _ = build(accumulate=True, scale=True, nan=False)
    pairs = [[1, 1], [1, 1], [1, 1]]
    args = (a["out"], a["x"], a["weight"], a["bias"], a["keep"], a["scale"], *pairs, True, True)
    results = torch.library.opcheck(OP, args)
    assert len(results) == 4 and set(results.values()) == {"SUCCESS"}


def test_compile_fullgraph():
    arguments, expected = build(relu=True)
    compiled = torch.compile(skip_conv2d_, fullgraph=True, backend="aot_eager")
    compiled(**arguments)
    assert_close(arguments["out"][arguments["keep"]], expected[arguments["keep"]])
