"""resident_stage's CUDA kernel on a GPU: against its steps, twice, at all three shapes, and in a graph."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from on_gpu import needs_gpu
from test_resident_stage import build
from torch import Tensor

from ddi_kernels import backend, backends, resident_stage

SIDES = {16: 32, 32: 16, 64: 8}
pytestmark = needs_gpu


@pytest.fixture(autouse=True)
def native():
    ok, reason = backends.cuda_available()
    if not ok:
        pytest.skip(reason)
    if torch.cuda.get_device_capability()[0] < 9:
        pytest.skip("the kernel needs compute capability 9.0")
    with backend("native"):
        yield


def call(channels: int, n: int, **changes: Any) -> dict[str, Any]:
    arguments = build(channels, n=n, size=SIDES[channels], **{"dtype": torch.bfloat16} | changes)
    del arguments["filters"]
    on_gpu = {k: v.cuda() if isinstance(v, Tensor) else v for k, v in arguments.items()}
    return on_gpu | {k: [w.cuda() for w in v] for k, v in arguments.items() if isinstance(v, list)}


def check(arguments: dict[str, Any], found: tuple[Tensor, ...]) -> None:
    """Samples whose bits are the reference's agree; nearly all are such."""
    with backend("reference"):
        expected = resident_stage(**arguments)
    bits = [(a == b).flatten(1).all(1) for a, b in zip(found[1:3], expected[1:3], strict=True)]
    same = bits[0] & bits[1]
    assert same.double().mean() > 0.9
    for a, b in zip((found[0], *found[3:]), (expected[0], *expected[3:]), strict=True):
        torch.testing.assert_close(a[same].float(), b[same].float(), atol=6e-2, rtol=6e-2)


FORMS = [
    {},
    {"channel": False},
    {"layer": False, "hidden": 0},
    {"layer": False, "channel": False, "hidden": 0},
]


@pytest.mark.parametrize("channels", SIDES)
@pytest.mark.parametrize("n", [1, 5, 300])
def test_equals_its_steps_twice(channels, n):
    for form in FORMS:
        arguments = call(channels, n, blocks=5, **form)
        first, second = resident_stage(**arguments), resident_stage(**arguments)
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
        check(arguments, first)


@pytest.mark.parametrize("channels", [32, 64])
@pytest.mark.parametrize("n", [1, 5, 300])
def test_with_an_entry_block(channels, n):
    for form in FORMS:
        arguments = call(channels, n, blocks=4, entered=True, **form)
        first, second = resident_stage(**arguments), resident_stage(**arguments)
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
        check(arguments, first)


def test_views_that_begin_anywhere():
    arguments = call(64, 3)
    expected = resident_stage(**arguments)
    for name in ("x", "weights"):
        tensor = arguments[name].contiguous(
            memory_format=torch.channels_last if name == "x" else torch.contiguous_format
        )
        shifted = torch.empty(tensor.numel() + 1, dtype=tensor.dtype, device="cuda")[1:]
        arguments[name] = shifted.as_strided(tensor.shape, tensor.stride(), 1).copy_(tensor)
        found = resident_stage(**arguments)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_an_empty_batch():
    y, keep, opened, h, c = resident_stage(**call(16, 0))
    assert y.shape == (0, 16, 32, 32) and keep.shape == (0, 3) and opened.shape == (0, 3, 4)
    assert h.shape == c.shape == (0, 10)


def test_a_graph_replays_with_other_images():
    arguments = call(64, 64)
    resident_stage(**arguments)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = resident_stage(**arguments)
    for _ in range(3):
        arguments["x"].normal_()
        graph.replay()
        check(arguments, found)
