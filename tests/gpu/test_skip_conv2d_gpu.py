"""skip_conv2d_'s Triton kernel on a GPU: a residual block in place, eagerly and in a graph."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from on_gpu import needs_gpu
from tolerances import assert_close

from ddi_kernels import backend, skip_conv2d_

pytestmark = needs_gpu
LAST = torch.channels_last


@pytest.fixture(autouse=True)
def triton_backend():
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False), backend("triton"):
        yield


class Block:
    """Two 3x3 convolutions and a shortcut, on the kept samples, in place."""

    def __init__(self, n: int, channels: int, side: int, dtype: torch.dtype) -> None:
        rng = torch.Generator("cuda").manual_seed(0)
        draw = [(n, channels, side, side), *[(channels, channels, 3, 3)] * 2, *[(channels,)] * 2]
        tensors = [torch.randn(shape, generator=rng, device="cuda").to(dtype) for shape in draw]
        self.x, *weights = (t.contiguous(memory_format=LAST) if t.dim() == 4 else t for t in tensors)
        scale = (9 * channels) ** -0.5
        self.weights, self.biases = [w * scale for w in weights[:2]], weights[2:]
        self.scratch = torch.empty_like(self.x)
        self.keep = torch.rand(n, generator=rng, device="cuda") < 0.5

    def run(self) -> None:
        options = {"keep": self.keep, "padding": 1, "activation": "relu"}
        skip_conv2d_(self.scratch, self.x, self.weights[0], self.biases[0], **options)
        skip_conv2d_(self.x, self.scratch, self.weights[1], self.biases[1], accumulate=True, **options)

    def check(self, before: torch.Tensor) -> None:
        """Kept samples against float64, with the interior rounded as it is stored; others untouched."""
        w, b = [[t.double() for t in ts] for ts in (self.weights, self.biases)]
        interior = F.conv2d(before.double(), w[0], b[0], padding=1).relu().to(before.dtype).double()
        y = (F.conv2d(interior, w[1], b[1], padding=1) + before.double()).relu()
        assert_close(self.x[self.keep], y[self.keep])
        assert torch.equal(self.x[~self.keep], before[~self.keep])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("n, channels, side", [(8, 64, 56), (16, 256, 14), (33, 512, 7), (5, 40, 9)])
def test_a_block_in_place_twice(n, channels, side, dtype):
    block = Block(n, channels, side, dtype)
    before = block.x.clone()
    block.run()
    block.check(before)
    first = block.x.clone()
    block.x.copy_(before)
    block.run()
    assert torch.equal(block.x, first)


def test_skipped_samples_may_hold_nan():
    block = Block(8, 64, 14, torch.bfloat16)
    block.x[~block.keep] = torch.nan
    block.run()
    assert block.x[~block.keep].isnan().all() and not block.x[block.keep].isnan().any()


def test_a_graph_replays_with_other_samples():
    block = Block(32, 64, 28, torch.bfloat16)
    before = block.x.clone()
    block.run()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        block.run()
    for keep in (0.5, 0.0, 1.0, 0.2):
        block.keep.copy_(torch.rand(32, device="cuda") < keep)
        block.x.copy_(before)
        block.scratch.fill_(torch.nan)
        graph.replay()
        block.check(before)
