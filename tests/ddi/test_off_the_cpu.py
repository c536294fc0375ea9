"""Gated inference away from the CPU: the host reads no value, and blocks hand means to the next gates.

Reading would stop a GPU's queue, and end a graph's capture. Meta tensors have no values, so that whatever
asks for one fails.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

import ddi
from ddi import Decision, GatedBottleneck, Mask
from ddi.backbones.resnet import Bottleneck
from ddi.gates import ddi as gates
from ddi.nn import gated_residual_block

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


@pytest.mark.parametrize("name", ["cifar_resnet20", "resnet50"])
def test_blocks_hand_means_to_the_next_gates(monkeypatch, name):
    """As they do where an operator pools what it writes: on a GPU."""
    torch.manual_seed(0)
    model = ddi.create_model(name, gates=ddi.DDIConfig(group_size=4)).eval()
    for key, parameter in model.ddi_gates.named_parameters():
        nn.init.zeros_(parameter) if "bias" in key else nn.init.normal_(parameter)
    x, seen, plan = torch.randn(5, 3, 32, 32), [], gates.gate_plan
    with torch.inference_mode(), ddi.record(model) as rec:
        expected = model(x)
        monkeypatch.setattr(gated_residual_block, "_hands_on_means", lambda x: True)
        monkeypatch.setattr(gates, "gate_plan", lambda x, *a, **k: seen.append(x.dim()) or plan(x, *a, **k))
        found = model(x)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert seen == [4] + [2] * (len(rec.passes[0]) - 1)
    keeps = [block.decision.keep for block in rec.passes[0] if block.decision.keep is not None]
    assert any(0 < keep.sum() < len(keep) for keep in keeps)  # means are passed on, too
