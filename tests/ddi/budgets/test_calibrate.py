"""calibrate: the wanted cost is met, the threshold stays where users expect it, and odd cases are told."""

import math

import pytest
import torch
from gated_models import images, mixed_model, tiny_densenet

import ddi
from ddi.budgets.calibrate import _search

KINDS = {
    "resnet": ("cifar_resnet8", ddi.DDIConfig, 1.7),
    "dense": (tiny_densenet, ddi.DenseDDIConfig, 1.25),
    "dense conv": (tiny_densenet, ddi.DenseConvConfig, 1.1),
}


def bits(model, x):
    """bool[N, bits]: all that the gates decide."""
    with ddi.record(model) as rec, torch.inference_mode():
        model(x)
    found = []
    for decision in (block.decision for block in rec.passes[0]):
        found += [] if decision.keep is None else [decision.keep[:, None]]
        found += [mask.open for mask in decision.masks]
    return torch.cat(found, 1)


@pytest.mark.parametrize(("name", "config", "wanted"), KINDS.values(), ids=KINDS)
def test_hits_the_wanted_ratio(name, config, wanted):
    model, x = mixed_model(name, gates=config), images(32)
    ratio, before = ddi.count_macs(model, x).mac_ratio, bits(model, x)
    assert abs(ratio - wanted) > 0.05 * wanted
    found = ddi.calibrate(model, x, wanted, tolerance=0.02)
    assert found.mac_ratio == pytest.approx(wanted, rel=0.02)
    assert ddi.count_macs(model, x).mac_ratio == pytest.approx(found.mac_ratio, rel=1e-6)
    assert model.ddi_gates.config.threshold == found.threshold != 0.5
    assert not torch.equal(bits(model, x), before)
    assert (found.threshold, found.mac_ratio) in found.evaluations and 3 <= len(found.evaluations) < 23
    assert ddi.calibrate(model, x, wanted, tolerance=0.02) == found  # wherever it starts


def test_takes_what_a_loader_yields_and_leaves_modes_alone():
    model, x = mixed_model(), images(40)
    model.train().layer2.eval()
    modes = [module.training for module in model.modules()]
    expected = ddi.calibrate(model, x, 1.7)
    pairs = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, torch.zeros(40)), 40)
    for form in (pairs, [x[:7], x[:0], x[7:]], (part.double() for part in x.split(40))):
        found = ddi.calibrate(model, form, 1.7)
        assert (found.threshold, found.mac_ratio) == pytest.approx(
            (expected.threshold, expected.mac_ratio), rel=1e-6
        )
    ddi.calibrate(torch.nn.DataParallel(model), x, 1.7)
    assert [module.training for module in model.modules()] == modes


@pytest.mark.parametrize("name", ["cifar_resnet8", "densenet_bc40"])
def test_checkpoints_and_plans_keep_the_threshold(name, tmp_path):
    model, x = mixed_model(name, group_size=4), images(6)
    found = ddi.calibrate(model, x, 1.3 if name == "cifar_resnet8" else 1.2, tolerance=0.1)
    expected = bits(model, x)
    ddi.save_model(tmp_path / "net", model, name)
    loaded, _ = ddi.load_model(tmp_path / "net")
    assert loaded.ddi_gates.config.threshold == found.threshold
    assert torch.equal(bits(loaded, x), expected)
    pytest.importorskip("ddi_kernels._engine", reason="ddi_kernels._engine is not built")
    ddi.freeze(loaded, x[:1], tmp_path / "plan")
    report = ddi.FrozenModel(tmp_path / "plan", max_batch=6).engine(x, report=True)[1]
    assert torch.equal(report.decisions.bool(), expected)


def test_out_of_reach_names_the_range_and_restores_the_threshold():
    model, x = mixed_model(), images(8)
    model.ddi_gates.set_threshold(0.4)
    says = (
        r"mac_ratio 500 is out of reach: .* from [01]\.\d+ \(at threshold 1e-06\) to \d+\S* \(at 0.999999\)"
    )
    with pytest.raises(ValueError, match=says):
        ddi.calibrate(model, x, 500)
    assert model.ddi_gates.config.threshold == 0.4
    with pytest.raises(ValueError, match="out of reach"):
        ddi.calibrate(model, x, 0.5)  # cheaper than nothing closed, dearer than dense


def test_an_error_in_the_model_restores_the_threshold():
    model = mixed_model()
    with pytest.raises(ValueError, match="expected input"):
        ddi.calibrate(model, torch.zeros(2, 5, 32, 32), 1.5)
    assert model.ddi_gates.config.threshold == 0.5


BAD = [
    ({"mac_ratio": 0}, "mac_ratio must be positive and finite, got 0"),
    ({"mac_ratio": float("nan")}, "mac_ratio must be positive"),
    ({"mac_ratio": float("inf")}, "mac_ratio must be positive"),
    ({"tolerance": 1.0}, r"tolerance must lie in \[0, 1\), got 1.0"),
    ({"tolerance": -0.1}, "tolerance"),
    ({"loader": []}, "calibrate: loader has no images"),
    ({"loader": torch.zeros(0, 3, 32, 32)}, "loader has no images"),
    ({"loader": 3}, r"loader is int, expected images float\[N, C, H, W\]"),
    ({"loader": ["x"]}, "loader yields str"),
    ({"loader": torch.zeros(3, 32, 32)}, r"loader yields float32\[3, 32, 32\], expected"),
    ({"loader": torch.zeros(1, 3, 32, 32).byte()}, r"loader yields uint8\[1, 3, 32, 32\], expected"),
    (
        {"loader": [torch.zeros(1, 3, 32, 32), torch.zeros(1, 3, 16, 16)]},
        r"loader yields float32\[1, 3, 16, 16\], expected images float\[N, 3, 32, 32\]",
    ),
    ({"loader": torch.full((1, 3, 32, 32), torch.nan)}, "NaN or infinity"),
    ({"model": ddi.create_model("cifar_resnet8")}, "not a gated model; call ddi.convert_"),
]


@pytest.mark.parametrize(("change", "message"), BAD)
def test_bad_arguments(change, message):
    values = {"model": mixed_model(), "loader": images(2), "mac_ratio": 1.5}
    with pytest.raises(ValueError, match=message):
        ddi.calibrate(**values | change)


def test_gates_without_a_threshold():
    model = mixed_model()
    model.ddi_gates = torch.nn.Identity()
    with pytest.raises(ValueError, match="gates of type Identity have no threshold to move"):
        ddi.calibrate(model, images(2), 1.5)


# The search, on functions whose answers are known.


def test_search_finds_a_smooth_crossing():
    tried, (threshold, ratio) = _search(lambda t: 1 + 9 * t, 4.0, 1e-3)
    assert threshold == pytest.approx(1 / 3, abs=1e-3) and ratio == pytest.approx(4, rel=1e-3)
    assert len(tried) < 15 and tried[0][0] < 1e-5 and tried[1][0] > 1 - 1e-5


def test_search_ends_at_a_step_with_the_nearer_side():
    tried, (threshold, ratio) = _search(lambda t: 1.0 if t < 0.3 else 5.0, 4.0, 0.01)
    assert ratio == 5.0 and 0.3 <= threshold < 0.3 + 2e-6 and 20 < len(tried) < 25


def test_search_finds_a_crossing_of_what_is_not_monotone():
    def ratio_at(t):
        return 1 + 4 * t + 2 * math.sin(12 * t)  # 2.5 three times

    _, (threshold, ratio) = _search(ratio_at, 2.5, 1e-3)
    assert ratio == ratio_at(threshold) and ratio == pytest.approx(2.5, rel=1e-3)


@pytest.mark.parametrize(("wanted", "end"), [(1.0, 0), (9.99, 1)])
def test_search_takes_an_end_that_is_near_enough(wanted, end):
    tried, nearest = _search(lambda t: 1.005 + 9 * t, wanted, 0.01)
    assert len(tried) == 2 and nearest == tried[end]
