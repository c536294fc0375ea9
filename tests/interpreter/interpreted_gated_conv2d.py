"""The Triton kernel of gated_conv2d, interpreted: against dense times mask in float64, and in torch."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from gated_conv2d_cases import Case, build, case_id, direct_arguments, lay_out
from tolerances import assert_close

import ddi_kernels
from ddi_kernels import backend, gated_conv2d, prepack_conv2d
from ddi_kernels.tiles import tiles
from ddi_kernels.triton import gated_conv2d as kernels

OP = torch.ops.ddi_triton.gated_conv2d.default
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
SINGLES: list[dict[str, Any]] = [
    {},
    {"batch": 0},
    {"batch": 1},
    {"ci": 1, "co": 1, "in_group_size": 16, "out_group_size": 16},
    {"ci": 17, "co": 33},
    {"ci": 130, "co": 70},
    {"in_open": None, "out_open": None},
    {"in_open": None},
    {"out_open": None},
    {"in_open": "all", "out_open": "all"},
    {"in_open": "none"},
    {"out_open": "none", "residual": "channels_last", "relu": True},
    {"in_open": "none", "out_open": "none"},
    {"in_open": "one", "out_open": "one"},
    {"in_group_size": 32, "out_group_size": 64, "ci": 96, "co": 160},
    {"in_group_size": 48, "out_group_size": 80, "ci": 96, "co": 160},
    {"in_group_size": 1000, "out_group_size": 1000},  # one gate for all channels
    {"stride": 2},
    {"stride": (2, 1), "padding": (2, 0), "dilation": (1, 3)},
    {"kernel": (1, 1), "padding": 0},
    {"kernel": (5, 5), "padding": 2},
    {"kernel": (7, 7), "padding": 3, "ci": 16, "co": 16},
    {"kernel": (3, 2)},
    {"size": (1, 1)},
    {"size": (11, 13)},  # more than one tile of pixels, the last one short
    {"size": (23, 23), "ci": 16, "co": 16},  # many rows: tiles of 128 pixels
    {"layout": "contiguous", "residual": "contiguous"},
    {"layout": "sliced", "residual": "sliced"},
    {"layout": "expanded"},
    {"bias": False},
    {"scale": True, "relu": True, "residual": "channels_last"},
    {"scale": True, "out_open": None, "out_group_size": 5},
]
FACTORS: dict[str, list[Any]] = {
    "batch": [1, 2, 3],
    "ci": [3, 16, 40, 64],
    "co": [5, 16, 70, 96],
    "size": [(4, 4), (7, 9), (3, 17)],
    "kernel": [(1, 1), (3, 3), (2, 3)],
    "stride": [1, 2],
    "padding": [0, 1],
    "in_group_size": [16, 32],
    "out_group_size": [16, 32, 48],
    "in_open": ["all", "none", "one", "random", None],
    "out_open": ["all", "none", "one", "random", None],
    "layout": ["contiguous", "channels_last", "transposed"],
    "bias": [True, False],
    "scale": [True, False],
    "residual": [None, "contiguous", "channels_last"],
    "relu": [True, False],
    "dtype": DTYPES,
}
SEEDS = [pytest.param(n, marks=pytest.mark.slow if n >= 20 else ()) for n in range(45)]


@pytest.fixture(autouse=True)
def triton_backend():
    with backend("triton"):
        yield


def make(**changes: Any) -> Case:
    small = {"ci": 40, "co": 48, "size": (6, 9), "in_group_size": 16, "out_group_size": 16}
    return Case(**small | changes)


def draw(seed: int) -> dict[str, Any]:
    rng = random.Random(seed)
    return {name: rng.choice(values) for name, values in FACTORS.items()}


def check(case: Case, seed: int = 0) -> None:
    torch.manual_seed(seed)
    arguments, expected = build(case)
    y = gated_conv2d(**arguments)
    assert y.dtype == case.dtype
    assert_close(y, expected)
    x = arguments["x"]
    last = not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
    assert y.is_contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


# float16 takes the same path as bfloat16 but for the interpreter's upcast; the drawn cases have it.
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("changes", SINGLES, ids=case_id)
def test_equals_dense_times_mask(changes, dtype):
    check(make(**changes, dtype=dtype))


@pytest.mark.parametrize("seed", SEEDS)
def test_equals_dense_times_mask_drawn(seed):
    check(make(**draw(seed)), seed)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_every_tile(monkeypatch, dtype):
    shipped = tiles.shipped_tiles(dtype, tiles.Gpu(90, 227 * 1024))
    assert len({tile.bk for tile in shipped}) == (2 if dtype == torch.float32 else 3)
    for tile in shipped:
        monkeypatch.setattr(kernels, "pick_tile", lambda *_, tile=tile: tile)
        check(make(ci=128, co=144, batch=1, size=(3, 3), in_group_size=tile.bk, dtype=dtype))


def test_exact_float32():
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        assert tiles.largest_chunk(torch.float32, 256) == 16
        assert tiles.pick_tile(4096, 256, 16, torch.float32, tiles.Gpu(90, 227 * 1024)).bn == 64
        check(make(in_group_size=32))


def test_tiles_fit_the_gpu():
    for dtype in DTYPES:
        gpu = tiles.Gpu(90, 227 * 1024)
        for tile in tiles.shipped_tiles(dtype, gpu):
            assert tile.shared_bytes(dtype.itemsize) < gpu.shared
        for tile in tiles.shipped_tiles(dtype, tiles.Gpu(89, 99 * 1024)):
            assert tile.shared_bytes(dtype.itemsize) < 99 * 1024 and tile.stages >= 2
    assert tiles.pick_tile(3136, 64, 64, torch.bfloat16, gpu) == tiles.Tile(128, 64, 64, 4, 4)
    assert tiles.pick_tile(196, 256, 32, torch.bfloat16, gpu) == tiles.Tile(64, 128, 32, 4, 4)


def test_plan_sorts_the_open_chunks_first():
    torch.manual_seed(0)
    x = torch.empty(5, 70, 1, 1)
    in_mask, out_mask = torch.rand(5, 5) < 0.5, torch.rand(5, 2) < 0.5
    in_mask[0], in_mask[1] = True, False
    gates = kernels.Gate(in_mask, 16, 70, 16), kernels.Gate(out_mask, 64, 128, 32)
    lists = kernels.list_chunks(x, *gates)
    for mask, (order, count, _) in zip((in_mask, out_mask.repeat_interleave(2, 1)), lists, strict=True):
        assert count.tolist() == mask.sum(1).tolist()
        for bits, row in zip(mask, order.tolist(), strict=True):
            groups = range(len(bits))
            assert row[:-1] == [g for g in groups if bits[g]] + [g for g in groups if not bits[g]]
            assert row[-1] == 0  # loaded ahead of the loop's end, so it must be a chunk
    assert kernels.list_chunks(x, None, None) == [None, None]


def test_operands_of_any_strides():
    torch.manual_seed(0)
    arguments, expected = build(make(scale=True, residual="sliced"))
    arguments["weight"] = lay_out(arguments["weight"], "sliced")
    for name in ("bias", "in_mask", "out_mask", "scale"):
        arguments[name] = arguments[name].repeat_interleave(2, dim=-1)[..., ::2]
        assert not arguments[name].is_contiguous()
    assert_close(gated_conv2d(**arguments), expected)


def test_nan_in_open_channels_comes_out():
    x, weight = torch.ones(1, 16, 3, 3), torch.ones(32, 16, 1, 1)
    x[0, 1, 1, 1] = torch.nan
    gate = torch.tensor([[True, False]])
    y = gated_conv2d(x, weight, out_mask=gate, out_group_size=16, activation="relu")
    assert y[:, :16, 1, 1].isnan().all() and y.isnan().sum() == 16
    assert not y[:, 16:].any()


def test_packed_weights_are_ignored():
    arguments, _ = build(make())
    with backend("auto"):
        packed = prepack_conv2d(arguments["weight"])
    assert torch.equal(gated_conv2d(**arguments), gated_conv2d(**arguments | {"packed": packed}))


UNSUPPORTED = {
    "in_group_size": ({"in_group_size": 8}, "in_group_size is 8.*multiples of 16"),
    "out_group_size": ({"out_group_size": 24}, "out_group_size is 24.*multiples of 16"),
    "float64": ({"dtype": torch.float64}, "float32, float16 and bfloat16"),
    "groups": ({"groups": "two", "in_open": None, "out_open": None}, "groups=2"),
}


@pytest.mark.parametrize("reason", UNSUPPORTED)
def test_what_it_does_not_do_is_said(reason):
    changes, text = UNSUPPORTED[reason]
    arguments, expected = build(make(**changes))
    with pytest.raises(RuntimeError, match=f"gated_conv2d.*'triton'.*{text}"):
        gated_conv2d(**arguments)
    with pytest.raises(RuntimeError, match=f"gated_conv2d: no Triton kernel.*{text}"):
        OP(*direct_arguments(arguments))
    with backend("auto"):
        assert_close(gated_conv2d(**arguments), expected)


def test_auto_leaves_the_interpreter_alone(monkeypatch):
    monkeypatch.setattr(kernels, "launch", lambda *_: pytest.fail("interpreted"))
    arguments, expected = build(make(dtype=torch.bfloat16))
    with backend("auto"):
        assert_close(gated_conv2d(**arguments), expected)


def test_wrong_arguments_are_named():
    x, weight = torch.ones(1, 2, 3, 3), torch.ones(4, 3, 1, 1)
    with pytest.raises(ValueError, match="gated_conv2d: argument 'weight'"):
        gated_conv2d(x, weight)
    assert ddi_kernels.backends.triton_available() == (True, "")


VARIANTS = {
    "plain": make(batch=1, size=(4, 3), in_open=None, out_open=None, bias=False),
    "all": make(batch=2, size=(4, 3), scale=True, residual="contiguous", relu=True, stride=2),
    "empty": make(batch=0, size=(4, 3)),
}


def finite(case: Case, requires_grad: bool) -> dict[str, Any]:
    torch.manual_seed(0)
    arguments = build(case)[0]
    for name, value in arguments.items():
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            arguments[name] = torch.nan_to_num(value, 0.25, 0.5, -0.5).requires_grad_(requires_grad)
    return arguments


@pytest.mark.parametrize("variant", VARIANTS)
def test_opcheck(variant):
    arguments = direct_arguments(finite(VARIANTS[variant], requires_grad=variant == "all"))
    results = torch.library.opcheck(OP, tuple(arguments))
    assert len(results) == 4 and set(results.values()) == {"SUCCESS"}


def test_gradients_are_those_of_the_reference():
    names = ("x", "weight", "bias", "scale", "residual")
    arguments = finite(VARIANTS["all"], requires_grad=True)
    leaves = [arguments[name] for name in names]
    expected = torch.ops.ddi.gated_conv2d(*direct_arguments(arguments))
    y = OP(*direct_arguments(arguments))
    assert_close(y, expected.double())
    direction = torch.randn_like(y)
    for got, want in zip(
        torch.autograd.grad(y, leaves, direction),
        torch.autograd.grad(expected, leaves, direction),
        strict=True,
    ):
        assert_close(got, want.double())


def test_compile_fullgraph():
    arguments = finite(VARIANTS["all"], requires_grad=False)
    seen = []

    def spy(graph, example_inputs):
        seen.extend(node.target for node in graph.graph.nodes)
        return graph.forward

    compiled = torch.compile(gated_conv2d, fullgraph=True, backend=spy)
    assert torch.equal(compiled(**arguments), gated_conv2d(**arguments))
    assert OP in seen


def test_autocast():
    arguments, expected = build(make(scale=True, residual="contiguous", relu=True))
    with torch.autocast("cpu", torch.bfloat16):
        y = gated_conv2d(**arguments)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.double(), expected, atol=6e-2, rtol=6e-2)  # operands are rounded too
