"""The CUDA kernels of gather_samples, scatter_samples and active_channels, built with DDI_BUILD=cuda."""

from __future__ import annotations

import pytest
import torch
from on_gpu import needs_gpu

from ddi_kernels import (
    active_channels,
    backend,
    backends,
    gather_samples,
    scatter_samples,
    scatter_samples_,
)

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


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(5,), (5, 3), (5, 0, 2), (70, 64, 14, 14), (5, 5, 301, 7)], ids=str)
def test_rows_go_where_they_are_named(dtype, shape):
    x = torch.randint(0, 100, shape, device="cuda").to(dtype)
    for index in ([], [shape[0] - 1], [2, 0, 4]):
        places = torch.tensor(index, dtype=torch.int64, device="cuda")
        rows = torch.randint(0, 100, (len(index), *shape[1:]), device="cuda").to(dtype)
        expected = x.index_copy(0, places, rows)
        assert torch.equal(scatter_samples(x, rows, places), expected)
        y = x.clone()
        assert scatter_samples_(y, rows, places) is y and torch.equal(y, expected)


def test_scatter_layouts():
    x, index = torch.randn(4, 6, 5, 3, device="cuda"), torch.tensor([3, 1], device="cuda")
    last = x.contiguous(memory_format=torch.channels_last)
    views = (x, last, x.transpose(2, 3), x[:, ::2], last[:, :, 1:])
    for view in views:
        rows = torch.randn(2, *view.shape[1:], device="cuda")
        expected = view.index_copy(0, index, rows)
        y = scatter_samples(view, rows.contiguous(memory_format=torch.channels_last), index)
        assert torch.equal(y, expected)
        scatter_samples_(view, rows, index)
        assert torch.equal(view, expected)
    assert scatter_samples(last, last[:2], index).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("channels, group_size", [(1, 1), (5, 2), (256, 1), (300, 7), (4096, 16)])
@pytest.mark.parametrize("keep", [0.0, 0.5, 1.0])
def test_open_channels_are_listed(channels, group_size, keep):
    opened = torch.rand(33, -(-channels // group_size), device="cuda") < keep
    for bits in (opened, opened.T.contiguous().T, opened[:0]):
        found = active_channels(bits, channels, group_size)
        with backend("reference"):
            expected = active_channels(bits, channels, group_size)
        assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])
