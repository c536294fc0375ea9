"""Milliseconds of networks by a table that was made by hand."""

from __future__ import annotations

import pytest
import torch
import torch.nn as nn
from gated_models import images, mixed_model, tiny_densenet

import ddi
from ddi.backbones.resnet import BasicBlock
from ddi.blocks.gated_basic_block import GatedBasicBlock
from ddi.cost import Milliseconds, block_ms, latency
from ddi_kernels.prices import tables
from ddi_kernels.prices.latency import ConvShape, Grid, LatencyTable, Row
from ddi_kernels.prices.tables import use_table

# Times of a 1x1x1 convolution on one pixel: per multiply-add, with every shape in proportion to it.
SHAPE = ConvShape(kernel=1, stride=1, ci=1, co=1, pixels=1, batch=1, threads=1)
GRID = Grid([0.5, 1.0], [0.5, 1.0], [[1.0, 2.0], [2.0, 4.0]])
TABLE = LatencyTable("a CPU", "none", "", "", (Row(SHAPE, 3.0, 0.0, 0.0, 0.0, 5.0, GRID, GRID),))


def by_hand(model, rec, index):
    """Of one sample of a ResNet-8: 3 for each MAC outside the blocks, 4 in them and 5 in their shortcuts.

    With all closed a tenth of the least time in the table remains: nothing takes no time.
    """
    sizes = {"layer1_0": 32, "layer2_0": 16, "layer3_0": 8}
    total = 3 * (3 * 16 * 9 * 32 * 32)
    for block in rec.passes[0]:
        module = model.get_submodule(block.name.replace("_", "."))
        width = module.conv1.out_channels
        opened = block.decision.masks[0].open_channels(width)[index].item()
        ms = max(4 * opened, 0.1 * width) * 9 * (module.conv1.in_channels + width) * sizes[block.name] ** 2
        if block.decision.keep is not None and not block.decision.keep[index]:
            ms = 0
        if module.downsample is not None:
            ms += 5 * module.conv1.in_channels * width * sizes[block.name] ** 2
        total += ms
    return total


@pytest.mark.parametrize("group_size", [1, 5, 16])
def test_a_gated_network_by_hand(group_size):
    model, x = mixed_model(group_size=group_size), images(6)
    found = latency(model, x, TABLE)
    with ddi.record(model) as rec, torch.inference_mode():
        model(x)
    expected = [by_hand(model, rec, i) for i in range(6)]
    assert found.per_sample.tolist() == pytest.approx(expected, rel=1e-5) and len(set(expected)) > 1
    assert found.gated == pytest.approx(sum(expected), rel=1e-5)
    convs = ddi.count_macs(model, x).dense - 64 * 10
    assert found.dense == pytest.approx(3 * 6 * convs, rel=1e-6)
    assert set(found.blocks) == {"layer1_0", "layer2_0", "layer3_0"}
    stem = 6 * 3 * (3 * 16 * 9 * 32 * 32)
    assert sum(found.blocks.values()) == pytest.approx(found.gated - stem, rel=1e-5)


def test_a_plain_network_is_the_sum_of_its_convolutions():
    model = ddi.create_model("cifar_resnet8").train()
    found = latency(model, images(2), TABLE)
    assert found.dense == found.gated == pytest.approx(3 * 2 * (ddi.count_macs(model, images(2)).dense - 640))
    assert found.blocks == {} and found.per_sample.tolist() == pytest.approx([found.dense / 2] * 2)
    assert model.training


def test_a_densenet_counts_its_layers_and_transitions():
    model, x = mixed_model(tiny_densenet), images(3)
    found = latency(model, x, TABLE)
    macs = ddi.count_macs(model, x)
    stem = 3 * 8 * 9 * 1024
    # Every convolution outside the gated layers and transitions takes 3 for a MAC, the plain ones in them 5.
    assert found.dense == pytest.approx(3 * 3 * (macs.dense - model.classifier.weight.numel()))
    assert sum(found.blocks.values()) == pytest.approx(found.gated - 3 * 3 * stem, rel=1e-5)
    first = (8 * 24 + 24 * 9 * 6) * 1024
    assert found.blocks["features_denseblock1_denselayer1"] == pytest.approx(5 * 3 * first)
    assert len(found.blocks) == 9 and found.per_sample.unique().numel() == 3


def test_convolution_groups_and_oblong_kernels_count_by_their_macs():
    model = nn.Sequential(nn.Conv2d(8, 8, (1, 3), groups=4), nn.Conv2d(8, 2, 3, 2, 1))
    found = latency(model, torch.zeros(2, 8, 5, 7), TABLE)
    assert found.dense == pytest.approx(3 * 2 * (8 * 2 * 3 * 25 + 8 * 2 * 9 * 3 * 3))


@pytest.mark.parametrize("network", ["cifar_resnet8", tiny_densenet])
def test_a_record_tells_the_milliseconds_of_its_passes(network):
    model, x = mixed_model(network), images(5)
    with torch.inference_mode(), ddi.record(model) as rec:
        model(x[:3])
        model(x[3:])
    cost = rec.cost("ms", table=TABLE)
    assert cost.per_sample.tolist() == pytest.approx(latency(model, x, TABLE).per_sample.tolist())
    assert cost.dense == pytest.approx(latency(model, x, TABLE).dense / 5)
    with use_table(TABLE):
        assert torch.equal(rec.cost("ms").per_sample, cost.per_sample)


def test_the_table_in_force_is_the_default():
    model, x = mixed_model(), images(2)
    with use_table(TABLE):
        assert latency(model, x).gated == latency(model, x, TABLE).gated


def test_a_dtype_that_the_table_has_not():
    with pytest.raises(ValueError, match="no row for float64.*ddi profile"):
        latency(ddi.create_model("cifar_resnet8").double(), images(1).double(), TABLE)


def test_without_masks_or_gate_a_block_takes_the_plain_kernels_time():
    block = GatedBasicBlock(BasicBlock(16, 32, 2))
    ms = block_ms(block, (3, 16, 8, 8), ddi.Decision(), TABLE)
    assert ms.tolist() == pytest.approx([5.0 * 16 * 32 * (9 * (16 + 32) / 16 + 1) * 16 / 1] * 3)


def test_time_of_a_block_has_a_gradient_for_its_gates():
    block = GatedBasicBlock(BasicBlock(16, 16))
    soft = torch.full((2, 16), 0.7, requires_grad=True)
    keep_soft = torch.full((2,), 0.6, requires_grad=True)
    mask = ddi.Mask(torch.arange(16).expand(2, 16) < 8, soft=soft)
    decision = ddi.Decision(torch.tensor([True, False]), masks=(mask,), keep_soft=keep_soft)
    ms = block_ms(block, (2, 16, 4, 4), decision, TABLE)
    per_channel = 4 * 9 * 2 * 16 * 16
    assert ms.tolist() == pytest.approx([8 * per_channel, 0.0], abs=1e-2)
    ms.sum().backward()
    assert soft.grad[0].tolist() == pytest.approx([per_channel] * 16)
    assert soft.grad[1].tolist() == pytest.approx([0.0] * 16)  # skipped whatever its channels do
    assert keep_soft.grad.tolist() == pytest.approx([8 * per_channel] * 2)


def test_time_can_be_trained_down():
    model, x = mixed_model().train(), images(4)
    with ddi.record(model) as rec:
        model(x)
    share = rec.cost("ms", table=TABLE).share.item()
    ddi.budget_loss(rec, share * 0.9, Milliseconds(TABLE)).backward()
    grads = [gate.expand.bias.grad for gate in model.ddi_gates.channel.values()]
    assert all((grad >= 0).all() for grad in grads) and any(grad.any() for grad in grads)  # descending closes


def test_a_table_in_a_file(tmp_path):
    (tmp_path / "table.json").write_text(TABLE.dumps())
    with torch.inference_mode(), ddi.record(model := mixed_model()) as rec:
        model(images(2))
    from_file = rec.cost("ms", table=tmp_path / "table.json").per_sample
    assert torch.equal(from_file, rec.cost("ms", table=TABLE).per_sample)


def test_another_devices_table_is_not_taken_unasked(monkeypatch, tmp_path):
    monkeypatch.setattr(tables, "device_name", lambda: "a new CPU")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("DDI_LATENCY_TABLE", raising=False)
    tables.set_table(None)
    with pytest.raises(ValueError, match="no table of this device, a new CPU.*ddi profile.*read_table"):
        latency(mixed_model(), images(1))
    tables.set_table(None)
