"""The Triton chains of the gated residual blocks, interpreted: against float64, and in torch."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from residual_block_cases import NAN, Case, case_id, check, plain, positional
from tolerances import assert_close

from ddi_kernels import backend, gated_basic_block, gated_basic_block_, gated_bottleneck, gated_bottleneck_
from ddi_kernels.tiles import tiles
from ddi_kernels.triton import gated_block
from ddi_kernels.triton import gated_conv2d as gated_kernels
from ddi_kernels.triton import skip_conv2d as skip_kernels

BLOCKS = {"basic": (gated_basic_block, (3, 3)), "bottleneck": (gated_bottleneck, (1, 3, 1))}
SINGLES: list[dict[str, Any]] = [
    {"pool": True},
    {"pool": True, "x_pooled": True, "keep_scale": True, "mask_scale": True},
    {"batch": 0, "pool": True},
    {"batch": 1},
    {"open": "all"},
    {"open": "none", "pool": True},
    {"open": "one"},
    {"open": None, "mask_scale": True},
    {"keep": None, "pool": True},
    {"keep": "all"},
    {"keep": "none", "pool": True},
    {"stride": 2, "co": 48, "pool": True},
    {"stride": 3, "shortcut": True, "keep_scale": True},
    {"ci": 17, "interior": (19, 70), "group_sizes": (32, 48)},
    {"interior": (130, 96), "group_sizes": (64, 32)},
    {"group_sizes": (1000, 1000)},  # one gate for all channels
    {"size": (1, 1), "pool": True},
    {"size": (11, 13), "pool": True},  # more than one tile of pixels, the last one short
    {"bias": False},
    {"layout": "contiguous"},
    {"layout": "sliced", "strided": True},
    {"layout": "expanded"},
]
# Without masks tiles are packed over the kept samples.
PACKED: list[dict[str, Any]] = [
    {"pool": True},
    {"pool": True, "x_pooled": True, "keep_scale": True},
    {"batch": 0, "pool": True},
    {"batch": 1, "pool": True},
    {"keep": "all", "pool": True},
    {"keep": "none", "pool": True},
    {"batch": 13, "size": (3, 4), "pool": True},  # a tile meets many samples
    {"batch": 70, "size": (1, 1), "pool": True, "ci": 16},
    {"size": (11, 13), "pool": True},
    {"layout": "contiguous", "strided": True},
]
FACTORS: dict[str, list[Any]] = {
    "batch": [1, 2, 5],
    "ci": [3, 16, 40],
    "interior": [(16, 16), (40, 33), (64, 80)],
    "co": [None, 8, 48],
    "size": [(4, 4), (5, 9)],
    "stride": [1, 1, 2],
    "group_sizes": [(16, 16), (32, 48), (48, 16)],
    "open": ["all", "none", "one", "random", None],
    "mask_scale": [True, False],
    "keep": ["all", "none", "random", None],
    "keep_scale": [True, False],
    "layout": ["contiguous", "channels_last", "transposed"],
    "bias": [True, False],
    "pool": [True, False],
    "x_pooled": [True, False],
    "dtype": [torch.float32, torch.float16, torch.bfloat16],
}
IN_PLACE = {"basic": gated_basic_block_, "bottleneck": gated_bottleneck_}
EACH_BLOCK = pytest.mark.parametrize("block", BLOCKS)
SEEDS = [pytest.param(n, marks=pytest.mark.slow if n >= 3 else ()) for n in range(10)]


@pytest.fixture(autouse=True)
def triton_backend():
    with backend("triton"):
        yield


def make(**changes: Any) -> Case:
    small = {"ci": 32, "interior": (40, 48), "size": (5, 6), "group_sizes": (16, 16)}
    return Case(**small | changes)


@EACH_BLOCK
@pytest.mark.parametrize("changes", SINGLES, ids=case_id)
def test_equals_dense_times_mask(block, changes):
    check(make(**changes), *BLOCKS[block])


@EACH_BLOCK
@pytest.mark.parametrize("changes", PACKED, ids=case_id)
def test_equals_dense_where_kept(block, changes):
    check(make(open=None, **changes), *BLOCKS[block])


@EACH_BLOCK
@pytest.mark.parametrize("seed", SEEDS)
def test_equals_dense_times_mask_drawn(block, seed):
    rng = random.Random(seed)
    check(Case(**{name: rng.choice(values) for name, values in FACTORS.items()}), *BLOCKS[block])


@pytest.mark.parametrize("opened", ["random", None])
def test_every_tile(monkeypatch, opened):
    for tile in tiles.shipped_tiles(torch.bfloat16, tiles.Gpu(90, 227 * 1024)):
        monkeypatch.setattr(gated_kernels, "pick_tile", lambda *_, tile=tile: tile)
        monkeypatch.setattr(skip_kernels, "pick_tile", lambda *_, tile=tile: tile)
        monkeypatch.setattr(gated_block, "largest_chunk", lambda *_, tile=tile: tile.bk)
        changes = {"ci": tile.bk + 16, "interior": (2 * tile.bk, 0), "group_sizes": (tile.bk, 1)}
        case = make(**changes, open=opened, batch=2, size=(3, 3), pool=True, dtype=torch.bfloat16)
        check(case, *BLOCKS["basic"])


@EACH_BLOCK
def test_a_skipped_sample_reads_nothing_but_x(block):
    function, kernels = BLOCKS[block]
    for opened in ("all", None):
        case = make(ci=16, interior=(16, 16), keep="none", open=opened, pool=True)
        call = plain(case, kernels)
        for name in [name for name in call if "weight" in name or "bias" in name]:
            call[name] = None if call[name] is None else torch.full_like(call[name], NAN)
        x = call["x"]
        x[0, 1, 2, 2], x[1, 0, 0, 0] = NAN, torch.inf
        y, pooled = function(**call)
        torch.testing.assert_close(y, x, rtol=0, atol=0, equal_nan=True)
        torch.testing.assert_close(pooled, x.mean((2, 3)), equal_nan=True)
        assert y.data_ptr() != x.data_ptr()


@EACH_BLOCK
@pytest.mark.parametrize("opened", ["random", None])
@pytest.mark.parametrize("pool, x_pooled", [(False, False), (True, False), (True, True)])
def test_in_place(block, opened, pool, x_pooled):
    function, kernels = BLOCKS[block]
    for changes in ({}, {"keep": "none"}, {"keep": None}, {"batch": 0}, {"batch": 4, "bias": False}):
        case = make(
            interior=(32, 32),
            size=(3, 4),
            open=opened,
            pool=pool,
            x_pooled=x_pooled,
            keep_scale=True,
            **changes,
        )
        call = {k: v for k, v in plain(case, kernels).items() if "shortcut" not in k and "packed" not in k}
        del call["stride"]
        call |= {"x": call["x"].contiguous(memory_format=torch.channels_last)}
        if x_pooled:
            call["x_pooled"] = plain(case, kernels)["x_pooled"]
        y, pooled = function(**call)
        written = call["x"].clone()
        found = IN_PLACE[block](**call | {"x": written})
        assert torch.equal(written, y) and torch.equal(found, pooled)
    call["x"] = torch.zeros(2, 32, 5, 6)
    with pytest.raises(RuntimeError, match=f"{block}.*_: the backend 'triton'.*channels_last images only"):
        IN_PLACE[block](
            **call
            | {
                "keep": None,
                "keep_scale": None,
                "x_pooled": None,
                **dict.fromkeys([name for name in call if name.startswith("mask")]),
            }
        )


@EACH_BLOCK
def test_nothing_gated_is_the_dense_block(block):
    function, kernels = BLOCKS[block]
    call = plain(make(keep=None, open=None, keep_scale=True, pool=True), kernels)
    y, pooled = function(**call)
    with backend("reference"):
        expected = function(**call)
    assert torch.equal(y, expected[0]) and torch.equal(pooled, expected[1])


UNSUPPORTED = {
    "group": ({"group_sizes": (8, 8)}, "group_size1? is 8.*multiples of 16"),
    "float64": ({"dtype": torch.float64}, "float32, float16 and bfloat16"),
}


@EACH_BLOCK
@pytest.mark.parametrize("reason", UNSUPPORTED)
def test_what_it_does_not_do_is_said(block, reason):
    function, kernels = BLOCKS[block]
    changes, text = UNSUPPORTED[reason]
    call = plain(make(**changes), kernels)
    name = function.__name__
    with pytest.raises(RuntimeError, match=f"{name}.*'triton'.*{text}"):
        function(**call)
    op = getattr(torch.ops.ddi_triton, name).default
    with pytest.raises(RuntimeError, match=f"{name}: no Triton kernel.*{text}"):
        op(*positional(op, call))
    with backend("auto"):
        check(make(**changes), function, kernels)


@EACH_BLOCK
def test_wrong_arguments_are_named(block):
    function, kernels = BLOCKS[block]
    call = plain(make(), kernels)
    for name, wrong in (("x", call["x"][0]), ("weight1", call["weight1"][0]), ("keep", call["keep"][:1])):
        with pytest.raises(ValueError, match=f"{function.__name__}: argument '{name}'"):
            function(**call | {name: wrong})


@EACH_BLOCK
@pytest.mark.parametrize("opened", ["random", None])
def test_opcheck_and_compile(block, opened):
    function, kernels = BLOCKS[block]
    call = plain(make(open=opened, keep_scale=True, pool=True, x_pooled=True, size=(3, 3)), kernels)
    op = getattr(torch.ops.ddi_triton, function.__name__).default
    results = torch.library.opcheck(op, positional(op, call))
    assert len(results) == 4 and set(results.values()) == {"SUCCESS"}
    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    for a, b in zip(compiled(**call), function(**call), strict=True):
        assert_close(a, b.double())
