"""Joules and their work: against counts by loops over channels, for every kind of block, and in records."""

from __future__ import annotations

import zlib
from dataclasses import replace

import pytest
import torch
import torch.nn as nn
from gated_models import images, mixed_model, tiny_bottlenecks, tiny_densenet

import ddi
import ddi_kernels
from ddi.backbones.resnet import Bottleneck
from ddi.blocks.gated_basic_block import GatedBasicBlock
from ddi.blocks.gated_block import GatedBlock
from ddi.blocks.gated_bottleneck import GatedBottleneck
from ddi.cost import Cost, Joules, Macs, Resource, as_resource, conv_work, dense_macs
from ddi_kernels.prices.energy import HOROWITZ_45NM, RELATIVE_MAC_L1_L2, EnergyModel


def only(mac=0.0, weight=0.0, activation=0.0):
    """1 picojoule for each of what is named, and nothing for the rest."""
    dtypes = dict.fromkeys(("fp32", "bf16", "fp16", "int8"), mac)
    return EnergyModel("only", "", dtypes, {"l1": 0, "w": weight, "a": activation}, "w", "a", 0)


NETWORKS = {"basic": "cifar_resnet8", "bottlenecks": tiny_bottlenecks, "densenet": tiny_densenet}
COUNTS = (only(mac=1.0), only(weight=1.0), only(activation=1.0))
PJ = 1e-12


def counts(resource_of, dtype=None):
    """Multiply-adds, weight bytes and activation bytes by the three models."""
    return [resource_of(Joules(model, dtype)) / PJ for model in COUNTS]


# A convolution.


def test_work_of_a_convolution_by_hand():
    conv = nn.Conv2d(6, 8, 3, stride=2, padding=1, bias=True)  # 9x7 -> 5x4
    work = conv_work(conv, (9, 7))
    assert work == (6 * 8 * 9 * 20, 6 * 8 * 9 * 4, (6 * 63 + 8 * 20) * 4)
    before = ddi.Mask(torch.tensor([[True, False], [False, False]]), group_size=4)  # 4 and none of 6
    after = ddi.Mask(torch.tensor([[True, False, True], [True, True, True]]), group_size=3)  # 5 and 8 of 8
    work = conv_work(conv, (9, 7), before, after, "bf16")
    assert work.macs.tolist() == pytest.approx([4 * 5 * 9 * 20, 0])
    assert work.weight_bytes.tolist() == pytest.approx([4 * 5 * 9 * 2, 0])
    assert work.activation_bytes.tolist() == pytest.approx([(4 * 63 + 5 * 20) * 2, 8 * 20 * 2])


@pytest.mark.parametrize("dtype, size", [("fp32", 4), ("bf16", 2), ("fp16", 2), ("int8", 1)])
def test_bytes_follow_the_dtype(dtype, size):
    conv, linear = nn.Conv2d(4, 4, 1), nn.Linear(10, 3)
    found = counts(lambda joules: joules.layer(conv, (1, 4, 5, 5)), dtype)
    assert found == pytest.approx([400, 16 * size, 200 * size])
    found = counts(lambda joules: joules.layer(linear, (1, 10)), dtype)
    assert found == pytest.approx([30, 30 * size, 13 * size])
    found = counts(lambda joules: joules.layer(linear, (2, 7, 10)), dtype)  # seven rows a sample
    assert found == pytest.approx([210, 30 * size, 91 * size])


def test_layers_have_the_bytes_of_their_own_dtype():
    conv = nn.Conv2d(4, 4, 1).bfloat16()
    assert counts(lambda joules: joules.layer(conv, (1, 4, 5, 5))) == pytest.approx([400, 32, 400])
    double = nn.Conv2d(4, 4, 1).double()
    with pytest.raises(ValueError, match=r'torch.float64, expected one of torch.float32.*dtype="fp32"'):
        Joules().layer(double, (1, 4, 5, 5))
    assert Joules(dtype="fp32").layer(double, (1, 4, 5, 5)) > 0
    with pytest.raises(ValueError, match="no multiply-add of dtype 'int8'"):
        Joules(RELATIVE_MAC_L1_L2, dtype="int8")


# Networks, by loops.


def by_loops(conv, shape, out, bits_in, bits_out):
    """Multiply-adds, bytes of weights and of activations of one sample: fp32, a channel after the other."""
    area, ins, outs = conv.kernel_size[0] * conv.kernel_size[1], shape[2] * shape[3], out[2] * out[3]
    per_group = conv.in_channels // conv.groups, conv.out_channels // conv.groups
    open_in = [i for i in range(conv.in_channels) if bits_in[i]]
    open_out = [o for o in range(conv.out_channels) if bits_out[o]]
    macs = weights = 0
    for o in open_out:
        for i in open_in:
            if i // per_group[0] == o // per_group[1]:
                macs, weights = macs + area * outs, weights + area * 4
    activations = 4 * (ins * len(open_in) + outs * len(open_out))
    return torch.tensor([macs, weights, activations], dtype=torch.float64)


def bits(mask, channels, sample):
    if mask is None:
        return [True] * channels
    return mask.open[sample].repeat_interleave(mask.group_size)[:channels].tolist()


def masks_of(block, decision):
    """Each convolution of a block with the masks on its two sides."""
    masks = decision.masks
    if isinstance(block, GatedBasicBlock):
        return [(block.conv1, None, masks[0]), (block.conv2, masks[0], None)]
    if isinstance(block, GatedBottleneck):
        sides = (None, masks[0]), (masks[0], masks[1]), (masks[1], None)
        return [
            (conv, *side) for conv, side in zip((block.conv1, block.conv2, block.conv3), sides, strict=True)
        ]
    if hasattr(block, "conv2"):
        return [(block.conv1, decision.in_mask, None), (block.conv2, None, masks[0] if masks else None)]
    return [(block.conv, decision.in_mask, None)]


def runs(block, decision, sample):
    if decision.keep is not None:
        return bool(decision.keep[sample])
    dense_layer = hasattr(block, "conv2") and block.site.kind == "dense_layer"
    return not (dense_layer and decision.masks) or bool(decision.masks[0].open[sample].any())


def random_model(network, **config):
    """A gated model that draws its decisions, the same ones in every pass."""
    model = mixed_model(NETWORKS[network], **config)
    decide = model.ddi_gates.decide

    def drawn(site, x, state):
        decision, state = decide(site, x, state)
        generator = torch.Generator().manual_seed(zlib.crc32(site.name.encode()))
        masks = tuple(
            replace(mask, open=torch.rand(mask.open.shape, generator=generator) > 0.6)
            for mask in decision.masks
        )
        keep = decision.keep
        keep = None if keep is None else torch.rand(len(keep), generator=generator) > 0.5
        return replace(decision, masks=masks, keep=keep), state

    model.ddi_gates.decide = drawn
    return model


def run_dense(model, x):
    """The record of a pass, and the input and output shapes of every convolution."""
    dense_macs(model, x.shape)  # runs a copy, once
    shapes = {}
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda m, a, y: shapes.update({m: (a[0].shape, y.shape)}))
    with torch.no_grad(), ddi_kernels.backend("reference"), ddi.record(model) as rec:
        model(x)
    return rec, shapes


def network_by_loops(rec, shapes, sample):
    """The three counts of one sample by gated block, and those of what is outside."""
    parts, inside = {}, set()
    for record in rec.passes[0]:
        block, total = record.block, torch.zeros(3, dtype=torch.float64)
        for conv, before, after in masks_of(block, record.decision):
            inside.add(conv)
            if runs(block, record.decision, sample):
                both = bits(before, conv.in_channels, sample), bits(after, conv.out_channels, sample)
                total += by_loops(conv, *shapes[conv], *both)
        for conv in block.modules():
            if isinstance(conv, nn.Conv2d) and conv not in inside:  # the projection shortcut
                inside.add(conv)
                total += by_loops(conv, *shapes[conv], [True] * conv.in_channels, [True] * conv.out_channels)
        for matrix in gate_matrices(rec.model.ddi_gates, block.site):
            total += torch.tensor([matrix.numel(), 4 * matrix.numel(), 4 * sum(matrix.shape)])
        parts[record.name] = total
    rest = torch.zeros(3, dtype=torch.float64)
    for conv in set(shapes) - inside:
        rest += by_loops(conv, *shapes[conv], [True] * conv.in_channels, [True] * conv.out_channels)
    head = next(m for m in rec.model.children() if isinstance(m, nn.Linear)).weight
    rest += torch.tensor([head.numel(), 4 * head.numel(), 4 * sum(head.shape)])
    return parts, rest


def gate_matrices(gates, site):
    if not site.interior:
        return []
    channel = gates.channel[site.name]
    found = [channel.reduce.weight, channel.expand.weight]
    if hasattr(gates, "lstm"):
        found += [gates.project[str(site.in_channels)].weight, gates.lstm.weight_ih, gates.lstm.weight_hh]
        found += [gates.layer[site.name].weight] if site.skippable else []
    return found


@pytest.mark.parametrize("network, group_size", [*((n, 1) for n in NETWORKS), ("bottlenecks", 5)])
def test_a_gated_network_equals_loops_over_its_channels(network, group_size):
    model, x = random_model(network, group_size=group_size), images(3)[:, :, ::2, ::2]
    rec, shapes = run_dense(model, x)
    expected = [network_by_loops(rec, shapes, sample) for sample in range(3)]
    assert len({str(parts) for parts, _ in expected}) == 3  # each sample takes its own path
    for k, price in enumerate(COUNTS):
        with ddi_kernels.backend("reference"):
            found = ddi.energy(model, x, price)
        totals = [(sum(parts.values()) + rest)[k].item() * PJ for parts, rest in expected]
        assert found.per_sample.tolist() == pytest.approx(totals, rel=1e-5)
        assert found.gated == pytest.approx(sum(totals) / 3, rel=1e-5)
        for name, joules in found.blocks.items():
            mean = sum(parts[name][k].item() for parts, _ in expected) / 3
            assert joules == pytest.approx(mean * PJ, rel=1e-5)
        assert set(found.blocks) == set(expected[0][0])


def test_a_grouped_convolution_counts_its_own_pairs():
    plain = Bottleneck(32, 8)
    plain.conv2 = nn.Conv2d(8, 8, 3, padding=1, groups=4, bias=False)
    block = GatedBottleneck(plain)
    masks = tuple(
        ddi.Mask(torch.rand(4, 8, generator=torch.Generator().manual_seed(i)) > 0.5) for i in (0, 1)
    )
    decision = ddi.Decision(torch.tensor([True, True, False, True]), masks=masks)
    found = counts(lambda joules: joules.block(block, (4, 32, 3, 3), decision))
    for sample in range(4):
        expected = torch.zeros(3, dtype=torch.float64)
        for conv, before, after in masks_of(block, decision) if decision.keep[sample] else ():
            both = bits(before, conv.in_channels, sample), bits(after, conv.out_channels, sample)
            expected += by_loops(conv, (1, 0, 3, 3), (1, 0, 3, 3), *both)
        assert [one[sample].item() for one in found] == pytest.approx(expected.tolist())


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("resource", ["macs", "joules"])
def test_with_all_open_a_network_costs_its_dense_cost_and_its_gates(network, resource):
    torch.manual_seed(0)
    name = NETWORKS[network]
    plain = name() if callable(name) else ddi.create_model(name)
    config = ddi.DenseDDIConfig() if network == "densenet" else ddi.DDIConfig()
    model = ddi.convert_(plain, config).eval()
    price = as_resource(resource)
    with torch.no_grad(), ddi.record(model) as rec:
        model(images(2))
    cost = rec.cost(price)
    sites = [m.site for m in model.modules() if isinstance(m, GatedBlock)]
    gates = sum(price.gate(model.ddi_gates, site, images(2).shape) for site in sites)
    assert gates > 0 and cost.per_sample.tolist() == pytest.approx([cost.dense + gates] * 2, rel=1e-6)
    dense = price.dense(ddi.revert_(model), (1, 3, 32, 32))
    assert cost.dense == pytest.approx(dense, rel=1e-9)


def test_dense_work_has_the_macs_that_torch_counts():
    for network in NETWORKS.values():
        model = network() if callable(network) else ddi.create_model(network)
        macs = ddi.energy(model, images(1), COUNTS[0])
        assert macs.dense == pytest.approx(PJ * ddi.count_macs(model, images(1)).dense)
        assert macs.gated == macs.dense and macs.blocks == {} and macs.per_sample.shape == (1,)


def test_gates_stay_in_their_dtype():
    model, x = mixed_model(), images(2)
    gates = sum(
        layer.weight.numel()
        for b in model.modules()
        if isinstance(b, GatedBlock)
        for layer in model.ddi_gates.layers(b.site, x.shape)
    )
    full, half = ddi.energy(model, x, COUNTS[1]), ddi.energy(model, x, COUNTS[1], dtype="int8")
    bytes_of_gates = 4 * gates * PJ
    assert half.gated - bytes_of_gates == pytest.approx((full.gated - bytes_of_gates) / 4, rel=1e-5)
    assert half.dense == pytest.approx(full.dense / 4)


def test_a_models_dtype_is_seen_after_it_changed():
    model = ddi.create_model("cifar_resnet8")
    full = ddi.energy(model, images(1), COUNTS[1]).dense
    assert ddi.energy(model.bfloat16(), images(1).bfloat16(), COUNTS[1]).dense == pytest.approx(full / 2)


def test_the_default_model_is_horowitz():
    model, x = mixed_model(), images(2)
    assert ddi.energy(model, x).gated == ddi.energy(model, x, HOROWITZ_45NM).gated
    relative = ddi.energy(model, x, RELATIVE_MAC_L1_L2)
    assert 0.2 < relative.gated / relative.dense < 1


# Records, and training for it.


def test_a_record_tells_the_cost_in_each_resource():
    model, x = mixed_model(), images(5)
    with torch.no_grad(), ddi.record(model) as rec:
        model(x[:3])
        model(x[3:])
    macs, joules = rec.cost(), rec.cost("joules")
    assert torch.equal(macs.per_sample, rec.macs) and macs.dense == rec.dense_macs
    assert macs.share.item() == pytest.approx(1 / rec.mac_ratio)
    assert joules.per_sample.tolist() == pytest.approx(ddi.energy(model, x).per_sample.tolist())
    assert joules.dense == pytest.approx(ddi.energy(model, x).dense)
    assert joules.share.item() == pytest.approx(joules.per_sample.mean().item() / joules.dense)
    other = rec.cost("joules", model=COUNTS[0])
    assert other.per_sample.tolist() == pytest.approx((PJ * rec.macs).tolist())


def test_passes_on_images_of_two_sizes():
    model = mixed_model()
    small, large = images(1), torch.nn.functional.interpolate(images(1), 48)
    with torch.no_grad(), ddi.record(model) as rec:
        model(small)
        model(large)
    each = [ddi.count_macs(model, x) for x in (small, large)]
    assert rec.macs.tolist() == pytest.approx([one.gated for one in each])
    assert rec.cost().dense == pytest.approx(sum(one.dense for one in each) / 2)


@pytest.mark.parametrize("network", NETWORKS)
def test_joules_can_be_trained_down(network):
    model, x = mixed_model(NETWORKS[network], seed=1).train(), images(4)
    with ddi.record(model) as rec:
        model(x)
    share = rec.cost("joules").share.item()
    above = ddi.budget_loss(rec, share * 0.9, "joules")
    below = ddi.budget_loss(rec, min(1.0, share * 1.1), "joules")
    assert above.item() == pytest.approx(share) and below.item() == pytest.approx(-share)
    above.backward()
    grads = [gate.expand.bias.grad for gate in model.ddi_gates.channel.values()]
    assert all((grad >= 0).all() for grad in grads) and any(grad.any() for grad in grads)  # descending closes
    if network != "densenet":
        assert all(gate.bias.grad.item() > 0 for gate in model.ddi_gates.layer.values())


def test_gradient_of_a_block_is_what_its_bits_decide_over():
    block = mixed_model().layer1[0]
    soft = torch.full((1, 16), 0.7, requires_grad=True)
    keep_soft = torch.full((1,), 0.6, requires_grad=True)
    mask = ddi.Mask(torch.arange(16)[None] < 8, soft=soft)
    decision = ddi.Decision(torch.tensor([True]), masks=(mask,), keep_soft=keep_soft)
    joules = Joules().block(block, (1, 16, 4, 4), decision)
    mac, weight, activation = HOROWITZ_45NM.coefficients("fp32")
    channel = 2 * 9 * 16 * (16 * mac + 4 * weight) + 2 * 16 * 4 * activation  # in both convolutions
    always = 2 * 16 * 16 * 4 * activation  # the chain's input and output
    assert joules.item() == pytest.approx(8 * channel + always)
    joules.backward()
    assert soft.grad[0].tolist() == pytest.approx([channel] * 16)
    assert keep_soft.grad.item() == pytest.approx(8 * channel + always)


def test_the_penalty_of_macs_is_unchanged():
    model, x = mixed_model().train(), images(4)
    with ddi.record(model) as rec:
        model(x)
    share = rec.macs.mean() / rec.dense_macs
    assert torch.equal(ddi.budget_loss(rec, 0.01), share)
    assert torch.equal(ddi.budget_loss(rec, 0.01, Macs()), share)


def test_a_resource_of_ones_own():
    class Layers(Resource):
        """Layers that run."""

        name = "layers"

        def layer(self, layer, shape):
            return 1

        def conv(self, conv, shape, before, after):
            return 1

        def gate(self, gates, site, shape):
            return 0

    model, x = random_model("basic"), images(6)
    with torch.no_grad(), ddi.record(model) as rec:
        model(x)
    cost = rec.cost(Layers())
    assert isinstance(cost, Cost) and cost.dense == 10  # stem, classifier, 6 in blocks, 2 shortcuts
    kept = rec.passes[0][0].decision.keep
    assert cost.per_sample.tolist() == [10 if keep else 8 for keep in kept] and kept.any() and not kept.all()


def test_bad_resources_are_named():
    with torch.no_grad(), ddi.record(model := mixed_model()) as rec:
        model(images(1))
    with pytest.raises(ValueError, match="unknown resource 'flops'; allowed: macs, ms, joules"):
        rec.cost("flops")
    with pytest.raises(ValueError, match="a model was given with resource 'macs'; it belongs to \"joules\""):
        rec.cost("macs", model=HOROWITZ_45NM)
    with pytest.raises(ValueError, match="a table was given with resource 'joules'"):
        rec.cost("joules", table="table.json")
    with pytest.raises(FileNotFoundError):
        rec.cost("ms", table="none.json")
    with ddi.record(model) as rec, pytest.raises(RuntimeError, match="no forward pass"):
        rec.cost("joules")
