"""gated_conv2d's kernels on a GPU, Triton's and CUDA's, at the sizes they are for; each call twice: races."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from on_gpu import needs_gpu
from tolerances import assert_close

from ddi_kernels import backend, backends, gated_conv2d
from ddi_kernels.tiles.tiles import shipped_tiles

pytestmark = needs_gpu
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
LAST = torch.channels_last


@pytest.fixture(autouse=True)
def chosen(request):
    """The backend: Triton, or that of the parameter."""
    name = getattr(request, "param", "triton")
    ok, reason = backends.cuda_available()
    if name == "native" and not ok:
        pytest.skip(reason)
    # float32 is compared at its own tolerance, not at TensorFloat-32's.
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False), backend(name):
        yield


both = pytest.mark.parametrize("chosen", ["triton", "native"], indirect=True)


def call(
    n: int, ci: int, co: int, side: int, group: int, dtype: torch.dtype, keep: float = 0.5,
    kernel: int = 3, stride: int = 1, residual: bool = True, seed: int = 0,
) -> dict[str, Any]:  # fmt: skip
    """Keyword arguments with NaN in all closed inputs."""
    rng = torch.Generator("cuda").manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=rng, device="cuda").to(dtype)

    def mask(channels: int) -> torch.Tensor:
        return torch.rand(n, -(-channels // group), generator=rng, device="cuda") < keep

    in_mask, out_mask = mask(ci), mask(co)
    x = normal(n, ci, side, side)
    x = torch.where(per_channel(in_mask, ci, group), x, torch.nan)
    weight = normal(co, ci, kernel, kernel) / (ci * kernel * kernel) ** 0.5
    out_side = (side + 2 * (kernel // 2) - kernel) // stride + 1
    return {
        "x": x.contiguous(memory_format=LAST),
        "weight": weight.contiguous(memory_format=LAST),
        "bias": normal(co),
        "in_mask": in_mask,
        "out_mask": out_mask,
        "residual": normal(n, co, out_side, out_side).contiguous(memory_format=LAST) if residual else None,
        "stride": stride,
        "padding": kernel // 2,
        "in_group_size": group,
        "out_group_size": group,
        "activation": "relu",
    }


def per_channel(mask: torch.Tensor, channels: int, group: int) -> torch.Tensor:
    return mask.repeat_interleave(group, 1)[:, :channels, None, None]


def expected(a: dict[str, Any]) -> torch.Tensor:
    """Dense times mask in float64."""
    weight, group = a["weight"].double(), a["in_group_size"]
    x = torch.where(per_channel(a["in_mask"], a["x"].shape[1], group), a["x"].double(), 0)
    y = F.conv2d(x, weight, a["bias"].double(), a["stride"], a["padding"])
    y = torch.where(per_channel(a["out_mask"], y.shape[1], group), y, 0)
    return (y if a["residual"] is None else y + a["residual"].double()).relu()


def test_unwritten_memory_holds_nan():
    assert torch.empty(3, device="cuda").isnan().all()  # tests/conftest.py, on this device too


SIZES = {
    "56x56x64": (4, 64, 64, 56, 32),
    "28x28x128": (4, 128, 128, 28, 64),
    "14x14x256": (8, 256, 256, 14, 64),
    "7x7x512": (8, 512, 512, 7, 32),
    "narrow": (8, 64, 64, 16, 16),
    "tails": (3, 120, 200, 13, 16),
    "odd": (3, 17, 33, 9, 16),
}


@both
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", SIZES)
def test_equals_dense_times_mask_twice(size, dtype):
    arguments = call(*SIZES[size], dtype)
    first, second = gated_conv2d(**arguments), gated_conv2d(**arguments)
    assert torch.equal(first, second)
    assert_close(first, expected(arguments))


@both
@pytest.mark.parametrize("keep", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("kernel, stride", [(1, 1), (3, 2), (5, 1)])
def test_geometry_and_density(keep, kernel, stride):
    arguments = call(4, 96, 160, 19, 32, torch.bfloat16, keep, kernel, stride, residual=False)
    assert_close(gated_conv2d(**arguments), expected(arguments))


def test_every_tile_runs(monkeypatch):
    from ddi_kernels.triton import gated_conv2d as kernels
    from ddi_kernels.triton.implicit_gemm import gpu_of

    for dtype in (torch.bfloat16, torch.float32):
        for tile in shipped_tiles(dtype, gpu_of(torch.empty(1, device="cuda"))):
            arguments = call(2, 128, 192, 20, tile.bk, dtype)
            monkeypatch.setattr(kernels, "pick_tile", lambda *_, tile=tile: tile)
            assert_close(gated_conv2d(**arguments), expected(arguments))


def test_tensor_float_32():
    arguments = call(*SIZES["28x28x128"], torch.float32)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=True):
        y = gated_conv2d(**arguments)
    torch.testing.assert_close(y.double(), expected(arguments), atol=4e-3, rtol=4e-3)


@both
def test_without_masks_and_contiguous():
    arguments = call(*SIZES["28x28x128"], torch.bfloat16, keep=1.0) | {"in_mask": None, "out_mask": None}
    arguments["x"] = arguments["x"].contiguous()
    y = gated_conv2d(**arguments)
    exact = F.conv2d(*(arguments[n].double() for n in ("x", "weight", "bias")), padding=1)
    assert_close(y, (exact + arguments["residual"].double()).relu())
    assert y.is_contiguous()


@both
def test_a_graph_replays_with_other_masks():
    arguments = call(*SIZES["28x28x128"], torch.bfloat16, keep=1.0)
    gated_conv2d(**arguments)  # compiles; nothing can be loaded while capturing
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = gated_conv2d(**arguments)
    for keep in (0.5, 0.0, 0.9, 1.0):
        for name in ("in_mask", "out_mask"):
            arguments[name].copy_(torch.rand_like(arguments[name], dtype=torch.float32) < keep)
        y.fill_(torch.nan)
        graph.replay()
        assert_close(y, expected(arguments))


@pytest.mark.parametrize("chosen", ["native"], indirect=True)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("group", [1, 3, 8])
def test_groups_finer_than_tritons(group, dtype):
    arguments = call(3, 40, 72, 11, group, dtype)
    assert_close(gated_conv2d(**arguments), expected(arguments))
    x = torch.empty(arguments["x"].numel() + 1, dtype=dtype, device="cuda")[1:]
    shifted = x.as_strided(arguments["x"].shape, arguments["x"].stride()).copy_(arguments["x"])
    assert_close(gated_conv2d(**arguments | {"x": shifted}), expected(arguments))


def test_auto_takes_triton_for_what_it_supports(monkeypatch):
    from ddi_kernels.triton import gated_conv2d as kernels

    calls, launch = [], kernels.launch
    monkeypatch.setattr(kernels, "launch", lambda *args: calls.append(1) or launch(*args))
    arguments = call(*SIZES["narrow"], torch.bfloat16)
    with backend("auto"):
        gated_conv2d(**arguments)
        assert len(calls) == 1
        small = {"in_group_size": 8, "in_mask": arguments["in_mask"].repeat_interleave(2, 1)}
        y = gated_conv2d(**arguments | small)
    assert len(calls) == 1
    assert_close(y, expected(arguments))


def test_compile_fullgraph():
    arguments = call(*SIZES["narrow"], torch.bfloat16)
    with backend("auto"):
        compiled = torch.compile(gated_conv2d, fullgraph=True, backend="aot_eager")
        assert torch.equal(compiled(**arguments), gated_conv2d(**arguments))
