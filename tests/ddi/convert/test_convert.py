"""convert_ and revert_: nothing lost, nothing renamed, wrong models refused."""

import copy

import pytest
import torch
import torch.nn.functional as F
from gated_models import images, mixed_model, tiny_bottlenecks, tiny_densenet
from torch import nn

import ddi
from ddi.backbones.resnet import BasicBlock

MODELS = {
    "basic": (lambda: ddi.create_model("cifar_resnet14"), ddi.DDIConfig(group_size=4)),
    "bottleneck": (tiny_bottlenecks, ddi.DDIConfig(group_size=4)),
    "dense": (tiny_densenet, ddi.DenseDDIConfig(group_size=4)),
}


@pytest.mark.parametrize(("make", "config"), MODELS.values(), ids=MODELS)
def test_starts_fully_open_and_keeps_every_key(make, config):
    model = make().eval()
    keys = set(model.state_dict())
    x = images(3)
    with torch.no_grad():
        before = model(x)
        assert ddi.convert_(model, config, x) is model
        torch.testing.assert_close(model(x), before, rtol=1e-4, atol=1e-5)
    added = set(model.state_dict()) - keys
    assert keys <= set(model.state_dict())
    assert added and all(key.startswith("ddi_gates.") for key in added)
    macs = ddi.count_macs(model, x)
    # Their cost does not depend on the size of the map.
    gates = sum(model.ddi_gates.macs(m.site, x.shape) for m in model.modules() if hasattr(m, "site"))
    assert all(0 < b for b in macs.blocks.values()) and 0 < gates < 0.005 * macs.dense
    assert macs.gated == pytest.approx(macs.dense + gates)


@pytest.mark.parametrize(("make", "config"), MODELS.values(), ids=MODELS)
def test_revert_gives_back_the_plain_model(make, config):
    model = make().eval()
    kinds, keys, x = list(map(type, model.modules())), list(model.state_dict()), images(2)
    with torch.no_grad():
        before = model(x)
        ddi.convert_(model, config)
        assert list(map(type, model.modules())) != kinds
        ddi.revert_(model)
        assert torch.equal(model(x), before)
    assert list(model.state_dict()) == keys
    assert list(map(type, model.modules())) == kinds
    with pytest.raises(ValueError, match="no gates to take off"):
        ddi.revert_(model)


def test_filter_fn_chooses_blocks():
    model = ddi.create_model("cifar_resnet14")
    ddi.convert_(model, ddi.DDIConfig(), filter_fn=lambda module, path: path.startswith("layer3"))
    gated = [p for p, m in model.named_modules() if isinstance(m, ddi.GatedBasicBlock)]
    assert gated == ["layer3.0", "layer3.1"]


def test_refuses_a_second_conversion_and_models_without_blocks():
    model = ddi.create_model("cifar_resnet8", gates=ddi.DDIConfig())
    with pytest.raises(ValueError, match="converted already.*revert_"):
        ddi.convert_(model, ddi.DDIConfig())
    with pytest.raises(ValueError, match="no block to gate"):
        ddi.convert_(nn.Sequential(nn.Conv2d(3, 3, 3)), ddi.DDIConfig())
    with pytest.raises(TypeError, match="gate config"):
        ddi.convert_(ddi.create_model("cifar_resnet8"), {"layers": True})


def test_a_config_for_other_blocks_says_what_to_use():
    with pytest.raises(ValueError, match="denselayer1' is a dense_layer; use ddi.DenseDDIConfig"):
        ddi.create_model("densenet_bc40", gates=ddi.DDIConfig())
    with pytest.raises(ValueError, match="layer1_0' is a residual_block; use ddi.DDIConfig"):
        ddi.create_model("cifar_resnet8", gates=ddi.DenseDDIConfig())


class PreActivation(BasicBlock):
    """Has the attributes of a basic block, but computes something else."""

    def forward(self, x):
        y = self.conv2(F.relu(self.bn2(self.conv1(F.relu(self.bn1(x))))))
        return y + x


def test_foreign_blocks_are_found_out_and_the_model_restored():
    model = nn.Sequential(PreActivation(8, 8), PreActivation(8, 8)).eval()
    x = torch.randn(2, 8, 6, 6)
    before = model(x)
    keys = list(model.state_dict())
    with pytest.raises(ValueError, match="differs.*filter_fn"):
        ddi.convert_(model, ddi.DDIConfig(), example_input=x)
    assert list(model.state_dict()) == keys
    assert torch.equal(model(x), before)


def test_copies_are_independent():
    model = mixed_model()
    other = copy.deepcopy(model)
    x = images(4)
    with torch.inference_mode():
        expected = model(x)
        for p in model.ddi_gates.parameters():
            p.fill_(-1.0)
        torch.testing.assert_close(other(x), expected)
    with ddi.record(other) as rec, torch.inference_mode():
        other(x)
    assert len(rec.passes) == 1


@pytest.mark.parametrize("bad", [dict(group_size=0), dict(threshold=1.0), dict(layers=False, channels=False)])
def test_bad_gate_configs_are_refused(bad):
    with pytest.raises(ValueError, match="DDIConfig"):
        ddi.DDIConfig(**bad)
