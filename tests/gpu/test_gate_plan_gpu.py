"""gate_plan's Triton kernel on a GPU: against float64, twice, and in a graph with other means."""

from __future__ import annotations

import pytest
import torch
from on_gpu import needs_gpu
from torch import Tensor

from ddi_kernels import backend, gate_logits, gate_plan

pytestmark = needs_gpu
SIZES = {"CIFAR": (128, 16, 10, 16, 4), "ImageNet": (64, 2048, 10, 16, 32), "no LSTM": (7, 100, 0, 16, 3)}


@pytest.fixture(autouse=True)
def triton_backend():
    with backend("triton"):
        yield


def build(n: int, channels: int, hidden: int, reduced: int, groups: int) -> list:
    rng = torch.Generator("cuda").manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=rng, device="cuda")

    lstm = [normal(hidden, channels) / channels**0.5, normal(hidden)]
    lstm += [normal(4 * hidden, hidden), normal(4 * hidden, hidden), normal(4 * hidden), normal(4 * hidden)]
    layer = [normal(1, hidden), normal(1)]
    wide = channels + hidden
    channel = [normal(reduced, wide) / wide**0.5, normal(reduced), normal(groups, reduced), normal(groups)]
    heads = [lstm if hidden else [], layer if hidden else [], channel]
    return [normal(n, channels), normal(n, hidden), normal(n, hidden), *heads]


def check(arguments: list, found: tuple[Tensor, ...]) -> None:
    wide = [[w.double() for w in a] if isinstance(a, list) else a.double() for a in arguments]
    keep, opened, h, c = gate_logits(*wide)
    for a, b in ((found[2], h), (found[3], c)):
        torch.testing.assert_close(a.double(), b, atol=1e-5, rtol=1e-5)
    for bits, logits in ((found[0], keep), (found[1], opened)):
        if logits is None:
            assert bits.all()
            continue
        clear = (logits.cpu() > 0)[logits.abs().cpu() > 1e-4]
        assert len(clear) > 0 and torch.equal(bits.cpu()[logits.abs().cpu() > 1e-4], clear)


@pytest.mark.parametrize("size", SIZES)
def test_equals_float64_twice(size):
    arguments = build(*SIZES[size])
    first, second = gate_plan(*arguments), gate_plan(*arguments)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    check(arguments, first)


def test_an_image_is_pooled():
    x, *others = build(*SIZES["CIFAR"])
    image = x[:, :, None, None].expand(-1, -1, 2, 2).contiguous()
    for a, b in zip(gate_plan(image, *others), gate_plan(x, *others), strict=True):
        torch.testing.assert_close(a, b)


def test_a_graph_replays_with_other_means():
    arguments = build(*SIZES["ImageNet"])
    gate_plan(*arguments)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = gate_plan(*arguments)
    for _ in range(3):
        arguments[0].normal_()
        graph.replay()
        check(arguments, found)
