"""The gated residual blocks' Triton chains on a GPU, at the sizes they are for; twice, and in graphs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from on_gpu import needs_gpu
from tolerances import TOLERANCES, assert_close
from torch import Tensor

from ddi_kernels import backend, gated_basic_block, gated_basic_block_, gated_bottleneck, gated_bottleneck_

pytestmark = needs_gpu
LAST = torch.channels_last
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
# Samples, channels in, interior, channels out, pixels, stride; ImageNet's blocks first.
SIZES = {
    "basic 56x56x64": ((3, 3), 4, 64, 64, 64, 56, 1),
    "basic 7x7x512": ((3, 3), 9, 512, 512, 512, 7, 1),
    "basic stride": ((3, 3), 4, 64, 128, 128, 28, 2),
    "basic odd": ((3, 3), 5, 17, 70, 17, 9, 1),
    "bottleneck 14x14x1024": ((1, 3, 1), 8, 1024, 256, 1024, 14, 1),
    "bottleneck stride": ((1, 3, 1), 4, 256, 128, 512, 28, 2),
}


@pytest.fixture(autouse=True)
def triton_backend():
    # float32 is compared at its own tolerance, not at TensorFloat-32's.
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False), backend("triton"):
        yield


class Block:
    """A call with random weights, and what must come out of it."""

    def __init__(self, size: str, dtype: torch.dtype, masked: bool, group: int = 32) -> None:
        self.kernels, self.n, ci, interior, co, side, self.stride = SIZES[size]
        self.rng, self.group, self.dtype = torch.Generator("cuda").manual_seed(0), group, dtype
        widths = [ci, *[interior] * (len(self.kernels) - 1), co]
        self.x = self.normal(self.n, ci, side, side)
        self.weights = [
            self.normal(o, i, k, k, scale=(i * k * k) ** -0.5)
            for i, o, k in zip(widths, widths[1:], self.kernels, strict=False)
        ]
        self.biases = [self.normal(o) for o in widths[1:]]
        projects = self.stride != 1 or ci != co
        self.shortcut = self.normal(co, ci, 1, 1, scale=ci**-0.5) if projects else None
        self.masks = [self.bits(-(-interior // group)) for _ in widths[1:-1]] if masked else []
        self.keep = None if projects else self.bits(1)[:, 0].contiguous()
        self.keep_scale = self.normal(self.n)
        self.passed_on = None if projects else self.normal(self.n, ci).float()

    def normal(self, *shape: int, scale: float = 1.0) -> Tensor:
        value = (torch.randn(shape, generator=self.rng, device="cuda") * scale).to(self.dtype)
        return value.contiguous(memory_format=LAST) if value.dim() == 4 else value

    def bits(self, entries: int) -> Tensor:
        return torch.rand(self.n, entries, generator=self.rng, device="cuda") < 0.5

    def options(self) -> dict[str, Any]:
        """Of the form in place, too."""
        options: dict[str, Any] = {"keep": self.keep, "keep_scale": self.keep_scale, "pool": True}
        options["x_pooled"] = self.passed_on
        for i, mask in enumerate(self.masks, 1):
            number = i if len(self.kernels) == 3 else ""
            options |= {f"mask{number}": mask, f"group_size{number}": self.group}
        return options

    def convs(self) -> list[Tensor]:
        return [t for pair in zip(self.weights, self.biases, strict=True) for t in pair]

    def run(self) -> tuple[Tensor, Tensor]:
        function: Callable[..., tuple[Tensor, Tensor]] = gated_bottleneck
        if len(self.kernels) == 2:
            function = gated_basic_block
        around = {"shortcut_weight": self.shortcut, "stride": self.stride}
        return function(self.x, *self.convs(), **around, **self.options())

    def run_in_place(self, x: Tensor) -> Tensor:
        function = gated_basic_block_ if len(self.kernels) == 2 else gated_bottleneck_
        return function(x, *self.convs(), **self.options())

    def check(self, y: Tensor, pooled: Tensor) -> None:
        """Against float64, interiors rounded as they are stored; skipped samples bit for bit."""
        x = self.x.double()
        shortcut = x if self.shortcut is None else F.conv2d(x, self.shortcut.double(), stride=self.stride)
        h, last = x, len(self.kernels) - 1
        for i, (kernel, weight, bias) in enumerate(zip(self.kernels, self.weights, self.biases, strict=True)):
            stride = self.stride if i == self.kernels.index(3) else 1
            h = F.conv2d(h, weight.double(), bias.double(), stride, kernel // 2)
            if i < last:
                if self.masks:
                    mask = self.masks[i].repeat_interleave(self.group, 1)[:, : h.shape[1], None, None]
                    h = torch.where(mask, h, 0)
                h = h.relu().to(self.dtype).double()
        if self.shortcut is not None:
            shortcut = shortcut.to(self.dtype).double()
        exact = (h * self.keep_scale.double()[:, None, None, None] + shortcut).relu()
        means = exact.mean((2, 3))
        if self.keep is not None:
            exact = torch.where(self.keep[:, None, None, None], exact, x)
            means = torch.where(self.keep[:, None], means, self.passed_on.double())
            assert torch.equal(y[~self.keep], self.x[~self.keep])
        assert_close(y, exact)
        atol, rtol = TOLERANCES[self.dtype]
        torch.testing.assert_close(pooled.double(), means, atol=atol, rtol=rtol)


@pytest.mark.parametrize("masked", [True, False], ids=["masks", "skips"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", SIZES)
def test_equals_dense_times_mask_twice(size, dtype, masked):
    block = Block(size, dtype, masked)
    first, second = block.run(), block.run()
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])
    block.check(*first)


@pytest.mark.parametrize("masked", [True, False], ids=["masks", "skips"])
@pytest.mark.parametrize("size", ["basic 56x56x64", "bottleneck 14x14x1024"])
def test_a_graph_replays_with_other_decisions(size, masked):
    block = Block(size, torch.bfloat16, masked)
    block.run()  # compiles; nothing can be loaded while capturing
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y, pooled = block.run()
    for keep in (0.5, 0.0, 1.0, 0.2):
        for bits in (block.keep, *block.masks):
            bits.copy_(torch.rand(bits.shape, device="cuda") < keep)
        y.fill_(torch.nan)
        pooled.fill_(torch.nan)
        graph.replay()
        block.check(y, pooled)


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("size", [size for size in SIZES if "stride" not in size])
def test_in_place(size, masked):
    block = Block(size, torch.bfloat16, masked, group=16)
    y, pooled = block.run()
    for means in (block.passed_on, None):  # without them skipped samples are read
        block.passed_on, x = means, block.x.clone()
        found = block.run_in_place(x)
        assert torch.equal(x, y)
        torch.testing.assert_close(found[block.keep], pooled[block.keep])
        expected = pooled if means is not None else y.float().mean((2, 3))
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
