"""Gated inference reads no value on the host: on a GPU that would stop the queue, and end a graph's capture.

Meta tensors have no values, so that whatever asks for one fails.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

import ddi
from ddi import Decision, GatedBottleneck, Mask
from ddi.backbones.resnet import Bottleneck

NETWORKS = {
    "cifar_resnet20": ddi.DDIConfig(group_size=16),
    "resnet50": ddi.DDIConfig(group_size=64),
    "densenet_bc40": ddi.DenseDDIConfig(group_size=4),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_networks(name):
    with torch.device("meta"), torch.inference_mode():
        model = ddi.create_model(name, gates=NETWORKS[name]).eval()
        assert model(torch.empty(2, 3, 32, 32)).shape[0] == 2


@pytest.mark.parametrize("groups", [1, 4])
def test_a_block_that_no_operator_runs(groups):
    with torch.device("meta"), torch.inference_mode():
        plain = Bottleneck(32, 8)
        plain.conv2 = nn.Conv2d(8, 8, 3, padding=1, groups=groups, bias=False)
        block = GatedBottleneck(plain).eval()
        masks = tuple(Mask(torch.empty(5, 8, dtype=torch.bool)) for _ in range(2))
        decision = Decision(keep=torch.empty(5, dtype=torch.bool), masks=masks)
        assert block(torch.empty(5, 32, 4, 4), decision).shape == (5, 32, 4, 4)
        assert block.prepared().fused == (groups == 1)


def test_the_check_can_fail():
    keep = torch.empty(3, dtype=torch.bool, device="meta")
    with pytest.raises((NotImplementedError, RuntimeError)):
        keep.nonzero()
    with pytest.raises(RuntimeError):
        keep.sum().item()
