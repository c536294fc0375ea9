"""The CUDA kernel of gather_samples, built with DDI_BUILD=cuda."""

from __future__ import annotations

import pytest
import torch
from on_gpu import needs_gpu

from ddi_kernels import backend, backends, gather_samples

pytestmark = needs_gpu
DTYPES = [torch.float32, torch.bfloat16, torch.uint8, torch.int64, torch.complex64]


@pytest.fixture(autouse=True)
def native():
    ok, reason = backends.cuda_available()
    if not ok:
        pytest.skip(reason)
    with backend("native"):
        yield


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(5,), (5, 3), (5, 0, 2), (70, 64, 14, 14), (3, 5, 301, 7)], ids=str)
def test_rows_are_those_named(shape, dtype):
    x = torch.randint(0, 100, shape, device="cuda").to(dtype)
    for index in ([], [shape[0] - 1], [2, 0, 0, 1]):
        places = torch.tensor(index, dtype=torch.int64, device="cuda")
        assert torch.equal(gather_samples(x, places), x[places])


def test_layouts():
    x, index = torch.randn(4, 6, 5, 3, device="cuda"), torch.tensor([3, 1], device="cuda")
    last = x.contiguous(memory_format=torch.channels_last)
    for view in (x, last, x.transpose(2, 3), x[:, ::2], last[:, :, 1:], x[:1].expand(4, 6, 5, 3)):
        assert torch.equal(gather_samples(view, index), view[index])
    assert gather_samples(last, index).is_contiguous(memory_format=torch.channels_last)


def test_runs_in_the_current_stream_and_in_graphs():
    x, index = torch.randn(6, 1000, device="cuda"), torch.tensor([0, 1], device="cuda")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        rows = gather_samples(x, index)
    for places in ([5, 2], [3, 3]):
        index.copy_(torch.tensor(places))
        graph.replay()
        assert torch.equal(rows, x[places])
