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
from ddi.blocks import gated_basic_block, gated_bottleneck, gated_residual_block
from ddi.gates import ddi as gates

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


def deciding(name, exits=None):
    """A network whose gates decide differently from image to image."""
    torch.manual_seed(0)
    model = ddi.create_model(name, gates=ddi.DDIConfig(group_size=4), exits=exits).eval()
    for key, parameter in model.ddi_gates.named_parameters():
        nn.init.zeros_(parameter) if "bias" in key else nn.init.normal_(parameter)
    return model


@pytest.mark.parametrize("name", ["cifar_resnet20", "resnet50"])
def test_blocks_hand_means_to_the_next_gates(monkeypatch, name):
    """As they do where an operator pools what it writes: on a GPU."""
    model = deciding(name)
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


@pytest.fixture
def written(monkeypatch):
    """As on a GPU; lists the tensors that blocks wrote over."""
    tensors = []
    monkeypatch.setattr(gated_residual_block, "_hands_on_means", lambda x: True)
    for module, name in ((gated_basic_block, "gated_basic_block_"), (gated_bottleneck, "gated_bottleneck_")):
        run = getattr(module, name)
        monkeypatch.setattr(
            module, name, lambda x, *a, run=run, **k: tensors.append(x.data_ptr()) or run(x, *a, **k)
        )
    return tensors


@pytest.mark.parametrize(
    "name, blocks, stages", [("cifar_resnet20", 9, 3), ("resnet18", 8, 4), ("resnet50", 16, 4)]
)
def test_blocks_write_over_what_the_one_before_returned(written, name, blocks, stages):
    model, x = deciding(name), torch.randn(5, 3, 32, 32)
    with torch.inference_mode():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(gated_residual_block, "_hands_on_means", lambda x: False)
            expected = model(x)
        assert not written
        torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)
    # All but the first of each stage, whose input is the stage's.
    assert len(written) == blocks - stages and len(set(written)) <= stages


def test_nothing_that_others_may_hold_is_written_over(written):
    model, x = deciding("cifar_resnet20", exits="default"), torch.randn(5, 3, 32, 32)
    kept = []
    with torch.inference_mode():
        expected = model(x)
        count = len(written)
        assert count == 6
        model.forward_exits(x)  # reads between the blocks
        handle = model.layer1[0].register_forward_hook(lambda m, inputs, y: kept.append((y, y.clone())))
        torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)
        handle.remove()
        assert len(written) == count + 5
        handle = model.layer1[2].register_forward_pre_hook(
            lambda m, inputs: kept.append((inputs[0], inputs[0].clone()))
        )
        model(x)
        handle.remove()
        assert len(written) == count + 10
        handle = nn.modules.module.register_module_forward_hook(lambda m, inputs, y: None)
        model(x)
        handle.remove()
        assert len(written) == count + 10
        with torch.autocast("cpu", torch.bfloat16):
            model(x)
        assert len(written) == count + 10
        y = model.layer1[0](x[:, :1].expand(5, 16, 32, 32), ddi.Decision())  # outside of a pass
        assert len(written) == count + 10 and y.shape == (5, 16, 32, 32)
    assert len(kept) == 2 and all(torch.equal(a, b) for a, b in kept)
