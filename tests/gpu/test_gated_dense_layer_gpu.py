"""gated_dense_layer's Triton kernels on a GPU, both forms: DenseNet's sizes, twice, and in a graph."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from gated_conv2d_cases import per_channel
from gated_dense_layer_cases import Case, build, with_buffer
from on_gpu import needs_gpu
from tolerances import TOLERANCES, assert_close
from torch import Tensor

from ddi_kernels import backend, gated_dense_layer, gated_dense_layer_

pytestmark = needs_gpu
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
SIZES: dict[str, dict[str, Any]] = {
    "121, 56x56": {"batch": 3, "ci": 192, "middle": 128, "growth": 32, "size": (56, 56), "group_size": 32},
    "121, 7x7": {"batch": 9, "ci": 992, "middle": 128, "growth": 32, "size": (7, 7), "group_size": 32},
    "161, 14x14": {"batch": 3, "ci": 480, "middle": 192, "growth": 48, "size": (14, 14), "group_size": 16},
    "BC-40, 32x32": {"batch": 4, "ci": 84, "middle": 48, "growth": 12, "size": (32, 32), "group_size": 4},
    "odd": {"batch": 3, "ci": 17, "middle": 33, "growth": 5, "size": (9, 11), "group_size": 2},
}


@pytest.fixture(autouse=True)
def triton_backend():
    # float32 is compared at its own tolerance, not at TensorFloat-32's.
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False), backend("triton"):
        yield


def on_gpu(arguments: dict[str, Any]) -> dict[str, Any]:
    return {k: v.cuda() if isinstance(v, Tensor) else v for k, v in arguments.items()}


def same(a: Tensor, b: Tensor) -> bool:
    return bool(((a == b) | (a.isnan() & b.isnan())).all())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", SIZES)
def test_equals_dense_times_mask_twice(size, dtype):
    torch.manual_seed(0)
    case = Case(**SIZES[size], layout="channels_last", pool=True, dtype=dtype)
    arguments, expected, means = build(case)
    call, in_place = on_gpu(arguments), on_gpu(with_buffer(arguments, case))
    y, pooled = gated_dense_layer(**call)
    assert_close(y.cpu(), expected)
    atol, rtol = TOLERANCES[dtype]
    torch.testing.assert_close(pooled.double().cpu(), means, atol=atol, rtol=rtol)
    assert all(torch.equal(a, b) for a, b in zip(gated_dense_layer(**call), (y, pooled), strict=True))
    buffer = in_place["buffer"]
    before = buffer.clone()
    assert torch.equal(gated_dense_layer_(**in_place), pooled)
    new = buffer[:, case.ci : case.ci + case.growth]
    opened = per_channel(in_place["out_mask"], case.growth, case.group_size)
    assert torch.equal(torch.where(opened, new, 0), y)
    written = torch.zeros_like(buffer, dtype=torch.bool)
    written[:, case.ci : case.ci + case.growth] = opened
    assert same(torch.where(written, 0, buffer), torch.where(written, 0, before))


def test_a_graph_replays_with_other_masks():
    torch.manual_seed(0)
    case = Case(**SIZES["121, 56x56"], in_open="all", out_open="all", layout="channels_last", pool=True)
    call = on_gpu(build(case)[0])
    call = {
        k: v.bfloat16() if isinstance(v, Tensor) and v.is_floating_point() else v for k, v in call.items()
    }
    gated_dense_layer(**call)  # compiles; nothing can be loaded while capturing
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y, pooled = gated_dense_layer(**call)
    for keep in (0.5, 0.0, 1.0):
        for name in ("in_mask", "out_mask"):
            call[name].copy_(torch.rand(call[name].shape, device="cuda") < keep)
        y.fill_(torch.nan)
        graph.replay()
        again = gated_dense_layer(**call)
        assert torch.equal(y, again[0]) and torch.equal(pooled, again[1])
        with backend("reference"):
            wide = {
                k: v.double() if isinstance(v, Tensor) and v.is_floating_point() else v
                for k, v in call.items()
            }
            torch.testing.assert_close(y.double(), gated_dense_layer(**wide)[0], atol=3e-2, rtol=3e-2)
