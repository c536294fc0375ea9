"""The Triton kernels of gated_dense_layer and its in-place form, interpreted: float64, torch, errors."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from gated_dense_layer_cases import Case, build, with_buffer
from residual_block_cases import case_id, positional, without_nan
from test_gated_dense_layer import check, check_in_place

from ddi_kernels import backend, gated_dense_layer, gated_dense_layer_
from ddi_kernels.tiles import tiles
from ddi_kernels.triton import gated_dense_layer as kernels

FORMS = pytest.mark.parametrize("form", [check, check_in_place], ids=["copying", "in_place"])
SINGLES: list[dict[str, Any]] = [
    {"pool": True},
    {"batch": 0, "pool": True},
    {"batch": 1},
    {"ci": 1},
    {"ci": 130, "middle": 70},
    {"ci": 64, "growth": 32, "group_size": 32},
    {"growth": 64, "group_size": 8},
    {"in_open": None},
    {"out_open": None, "pool": True},
    {"in_open": None, "out_open": None},
    {"in_open": "none"},
    {"in_open": "one"},
    {"out_open": "none", "pool": True},
    {"out_open": "one"},
    {"size": (1, 1)},
    {"size": (11, 13), "pool": True},  # more than one tile of pixels, the last one short
    {"size": (23, 23), "ci": 16, "middle": 16},  # many rows
    {"layout": "contiguous"},
    {"bias": (False, False)},
]
FACTORS: dict[str, list[Any]] = {
    "batch": [1, 2, 3],
    "ci": [3, 24, 60],
    "middle": [16, 48],
    "growth": [1, 12, 16],
    "size": [(4, 4), (7, 9)],
    "group_size": [1, 4, 16],
    "in_open": ["all", "none", "one", "random", None],
    "out_open": ["all", "none", "one", "random", None],
    "bias": [(True, True), (False, True), (False, False)],
    "pool": [True, False],
    "dtype": [torch.float32, torch.float16, torch.bfloat16],
}
SEEDS = [pytest.param(n, marks=pytest.mark.slow if n >= 4 else ()) for n in range(10)]


@pytest.fixture(autouse=True)
def triton_backend():
    with backend("triton"):
        yield


def make(**changes: Any) -> Case:
    small = {"ci": 40, "middle": 48, "growth": 12, "size": (5, 6), "group_size": 4, "layout": "channels_last"}
    return Case(**small | changes)


@FORMS
@pytest.mark.parametrize("changes", SINGLES, ids=case_id)
def test_equals_dense_times_mask(form, changes):
    if form is check_in_place and changes.get("layout") == "contiguous":
        with pytest.raises(RuntimeError, match="gated_dense_layer_.*channels_last images only"):
            form(make(**changes))
    else:
        form(make(**changes))


@FORMS
@pytest.mark.parametrize("seed", SEEDS)
def test_equals_dense_times_mask_drawn(form, seed):
    rng = random.Random(seed)
    form(make(**{name: rng.choice(values) for name, values in FACTORS.items()}))


def test_every_tile(monkeypatch):
    gpu = tiles.Gpu(90, 227 * 1024)
    for tile in tiles.shipped_tiles(torch.bfloat16, gpu, through_registers=True):
        monkeypatch.setattr(kernels, "pick_tile", lambda *_, tile=tile, **__: tile)
        check(make(ci=tile.bk + 16, middle=32, batch=1, size=(3, 3), dtype=torch.bfloat16))
    monkeypatch.undo()
    for tile in tiles.shipped_narrow_tiles(torch.bfloat16, gpu):
        monkeypatch.setattr(kernels, "pick_narrow_tile", lambda *_, tile=tile: tile)
        with backend("triton"):
            check(make(ci=16, growth=tile.bn, batch=1, size=(3, 3), pool=True, dtype=torch.bfloat16))


def test_the_plan_lists_chunks_with_an_open_channel():
    bits = torch.zeros(3, 100, dtype=torch.bool)
    bits[0, [3, 69]] = bits[1, 63] = bits[1, 32] = True
    order, words, count = kernels._list_chunks(bits, 32)
    assert count.tolist() == [2, 1, 0]
    assert order[0, :3].tolist() == [0, 2, 0] and order[1, :2].tolist() == [1, 0] and order[2, 0] == 0
    assert words[0, :3].tolist() == [1 << 3, 1 << 5, 0] and words[1, :2].tolist() == [(1 << 31) + 1, 0]
    assert kernels._list_chunks(bits, 64)[1][1, 0] == -(1 << 63) + (1 << 32)


UNSUPPORTED = {
    "growth": ({"growth": 65}, "at most 64 new channels, not 65"),
    "float64": ({"dtype": torch.float64}, "float32, float16 and bfloat16"),
}


@pytest.mark.parametrize("reason", UNSUPPORTED)
def test_what_it_does_not_do_is_said(reason):
    changes, text = UNSUPPORTED[reason]
    call = build(make(**changes))[0]
    with pytest.raises(RuntimeError, match=f"gated_dense_layer.*'triton'.*{text}"):
        gated_dense_layer(**call)
    op = torch.ops.ddi_triton.gated_dense_layer.default
    with pytest.raises(RuntimeError, match=f"gated_dense_layer: no Triton kernel.*{text}"):
        op(*positional(op, call))


def test_wrong_arguments_are_named():
    call = build(make())[0]
    for name, wrong in (("x", call["x"][0]), ("weight1", call["weight1"][0]), ("scale1", call["scale1"][1:])):
        with pytest.raises(ValueError, match=f"gated_dense_layer: argument '{name}'"):
            gated_dense_layer(**call | {name: wrong})


@pytest.mark.parametrize("masked", [True, False])
def test_opcheck_and_compile(masked):
    opened = {} if masked else {"in_open": None, "out_open": None}
    case = make(pool=True, size=(3, 3), **opened)
    call = without_nan(build(case)[0])
    op, in_place = (
        torch.ops.ddi_triton.gated_dense_layer.default,
        torch.ops.ddi_triton.gated_dense_layer_.default,
    )
    for overload, arguments in ((op, call), (in_place, without_nan(with_buffer(call, case)))):
        results = torch.library.opcheck(overload, positional(overload, arguments))
        assert len(results) == 4 and set(results.values()) == {"SUCCESS"}
    torch._dynamo.reset()
    compiled = torch.compile(gated_dense_layer, fullgraph=True, backend="aot_eager")
    for a, b in zip(compiled(**call), gated_dense_layer(**call), strict=True):
        torch.testing.assert_close(a, b)
    first = without_nan(with_buffer(call, case))
    second = first | {"buffer": first["buffer"].clone()}
    compiled = torch.compile(gated_dense_layer_, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(**first), gated_dense_layer_(**second))
    torch.testing.assert_close(first["buffer"], second["buffer"])
