"""Every gate: shapes, straight-through gradients, monotone threshold, state_dict and config round trips."""

import copy

import pytest
import torch
from gated_models import images, mixed_model, tiny_densenet
from torch.utils.flop_counter import FlopCounterMode

import ddi
from ddi import DDIConfig, DenseConvConfig, DenseDDIConfig
from ddi.gates import config_from_dict, config_to_dict
from ddi.gating.site import GateSite

SITES = [
    GateSite("a", 12, (10,), True),
    GateSite("b", 12, (10, 7), True),
    GateSite("c", 20, (20,), False),
]
DENSE_SITES = [
    GateSite("first", 8, (), False, "dense_layer"),
    GateSite("second", 12, (10,), False, "dense_layer"),
    GateSite("third", 16, (10,), False, "dense_layer"),
]
CONFIGS = [
    DDIConfig(group_size=4),
    DDIConfig(channels=False),
    DDIConfig(layers=False, threshold=0.3),
    DenseDDIConfig(group_size=4),
    DenseConvConfig(group_size=4, hidden=9),
]
IDS = ["both", "layers", "channels", "dense", "dense conv"]


def build(config):
    return config.build(sites_of(config))


def sites_of(config):
    return SITES if isinstance(config, DDIConfig) else DENSE_SITES


def run(gates, pooled):
    """Decisions of all sites in order, on means, or on maps that have them: bright on one side."""
    state, decisions = None, []
    for site in sites_of(gates.config):
        x = pooled[:, : site.in_channels]
        if gates.reads == "features":
            x = x[:, :, None, None] * torch.tensor([0.5, 1.5]).expand(3, 2)
        state = gates.initial_state(x) if state is None else state
        decision, state = gates.decide(site, x, state)
        decisions.append(decision)
    return decisions


@pytest.fixture(params=CONFIGS, ids=IDS)
def gates(request):
    torch.manual_seed(0)
    gates = build(request.param)
    with torch.no_grad():
        for parameter in gates.parameters():
            parameter.normal_()
    return gates


def test_shapes_and_dtypes(gates):
    config = gates.config
    for site, decision in zip(sites_of(config), run(gates, torch.rand(6, 20)), strict=True):
        assert (decision.keep is not None) == (site.skippable and config.layers)
        if decision.keep is not None:
            assert decision.keep.shape == (6,) and decision.keep.dtype == torch.bool
        expected = [-(-c // config.group_size) for c in site.interior if getattr(config, "channels", True)]
        assert [m.open.shape for m in decision.masks] == [(6, g) for g in expected]


def test_starts_open():
    for config in CONFIGS:
        for decision in run(build(config), torch.rand(8, 20) * 3):
            assert decision.keep is None or decision.keep.all()
            assert all(mask.open.all() for mask in decision.masks)


def test_straight_through_gradient_reaches_every_parameter(gates):
    total = torch.zeros(())
    for decision in run(gates, torch.rand(6, 20)):
        keep = decision.keep_weights()
        total = total + (0 if keep is None else keep.sum())
        for site_channels, mask in zip((10, 7, 20), decision.masks, strict=False):
            total = total + mask.weights(site_channels).sum()
    total.backward()
    unreached = [n for n, p in gates.named_parameters() if p.grad is None or not p.grad.any()]
    # The projection of a width whose only site has nothing to decide feeds nothing.
    allowed = {"project.20.weight", "project.20.bias"} if gates.config == DDIConfig(channels=False) else set()
    assert set(unreached) <= allowed


def test_lower_threshold_opens_more(gates):
    pooled, counts = torch.rand(64, 20), []
    for threshold in (0.9, 0.6, 0.5, 0.3, 0.1):
        gates.set_threshold(threshold)
        assert config_from_dict(config_to_dict(gates.config)).threshold == threshold  # what checkpoints keep
        with torch.inference_mode():
            decisions = run(gates, pooled)
        bits = [d.keep.sum() for d in decisions if d.keep is not None]
        counts.append(int(sum(bits) + sum(m.open.sum() for d in decisions for m in d.masks)))
    assert counts == sorted(counts) and counts[0] < counts[-1]
    with pytest.raises(ValueError, match="threshold"):
        gates.set_threshold(0)
    assert gates.config.threshold == 0.1


def test_no_soft_values_and_same_bits_without_gradients(gates):
    pooled = torch.rand(6, 20)
    trained = run(gates, pooled)
    with torch.inference_mode():
        inferred = run(gates, pooled)
    for a, b in zip(trained, inferred, strict=True):
        assert b.keep_soft is None and all(m.soft is None for m in b.masks)
        assert (a.keep is None) == (b.keep is None)
        assert a.keep is None or torch.equal(a.keep, b.keep)
        assert all(torch.equal(p.open, q.open) for p, q in zip(a.masks, b.masks, strict=True))


def test_decisions_depend_on_earlier_blocks_through_the_lstm():
    torch.manual_seed(1)
    gates = DDIConfig(channels=False).build(SITES)
    a, b = torch.rand(1, 12, 4, 4), torch.rand(1, 12, 4, 4)
    _, after_a = gates.decide(SITES[0], a, gates.initial_state(a))
    _, after_b = gates.decide(SITES[0], b, gates.initial_state(b))
    assert not torch.equal(gates.decide(SITES[1], a, after_a)[1][0], gates.decide(SITES[1], a, after_b)[1][0])


def test_macs_equal_the_flops_counted(gates):
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        run(gates, torch.rand(1, 20))
    total = counter.get_total_flops() // 2
    sites = [(site, torch.Size((1, site.in_channels, 3, 2))) for site in sites_of(gates.config)]
    assert sum(gates.macs(*one) for one in sites) == total
    assert sum(layer.macs for one in sites for layer in gates.layers(*one)) == total


def test_state_dict_round_trip(gates):
    other = build(gates.config)
    other.load_state_dict(gates.state_dict())
    pooled = torch.rand(3, 20)
    for a, b in zip(run(gates, pooled), run(other, pooled), strict=True):
        assert all(torch.equal(p.open, q.open) for p, q in zip(a.masks, b.masks, strict=True))


@pytest.mark.parametrize("config", CONFIGS, ids=IDS)
def test_config_round_trip(config):
    assert config_from_dict(config_to_dict(config)) == config


def test_a_config_of_no_known_kind():
    with pytest.raises(ValueError, match=r"str is none of the kinds \['ddi', 'dense_conv', 'dense_ddi'\]"):
        config_to_dict("ddi")


def test_unknown_config_kind_and_key():
    with pytest.raises(ValueError, match="unknown kind 'skipnet'.*ddi"):
        config_from_dict({"kind": "skipnet"})
    with pytest.raises(ValueError, match="unknown keys.*'grups'.*allowed"):
        config_from_dict({"kind": "ddi", "grups": 3})


@pytest.mark.parametrize(
    ("name", "config"),
    [("cifar_resnet8", DDIConfig), ("densenet_bc40", DenseDDIConfig), (tiny_densenet, DenseConvConfig)],
)
def test_gates_stay_in_full_precision_under_autocast(name, config):
    model, x = mixed_model(name, gates=config, group_size=4), images(8)
    with ddi.record(model) as plain, torch.inference_mode():
        expected = model(x)
    with ddi.record(model) as rec, torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        logits = model(x)
    bits = [
        torch.cat([m.open.flatten() for b in r.passes[0] for m in b.decision.masks]) for r in (plain, rec)
    ]
    assert (bits[0] == bits[1]).float().mean() > 0.98
    same = (plain.macs - rec.macs).abs() == 0
    torch.testing.assert_close(logits.float()[same], expected[same], rtol=0.1, atol=0.1)
    with ddi.record(model) as rec, torch.autocast("cpu", torch.bfloat16):
        model.train()(x)
    softs = [mask.soft for block in rec.passes[0] for mask in block.decision.masks]
    assert softs and all(soft.dtype == torch.float32 for soft in softs)


@pytest.mark.parametrize("name", ["cifar_resnet20", "densenet_bc40"])
def test_gates_of_a_half_precision_model_stay_full(name):
    config = ddi.DDIConfig(group_size=4) if name == "cifar_resnet20" else ddi.DenseDDIConfig(group_size=4)
    torch.manual_seed(0)
    model = ddi.create_model(name, gates=config).eval()
    images = torch.randn(4, 3, 32, 32)
    before = copy.deepcopy(model.ddi_gates.state_dict())
    model.bfloat16()
    assert {p.dtype for p in model.ddi_gates.parameters()} == {torch.float32}
    assert {p.dtype for n, p in model.named_parameters() if "ddi_gates" not in n} == {torch.bfloat16}
    assert all(torch.equal(before[key], value) for key, value in model.ddi_gates.state_dict().items())
    with torch.inference_mode(), ddi.record(model) as rec:
        assert model(images.bfloat16()).dtype == torch.bfloat16
    assert rec.mac_ratio == pytest.approx(1, abs=0.01)  # as they are initialised, all open
    assert {p.dtype for p in model.double().parameters()} == {torch.float64}
