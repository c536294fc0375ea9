"""Stages that run as one operator: the same answers, decisions and costs as block by block."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import ddi
from ddi.blocks import resident_stage as resident

CLOSE = {"rtol": 1e-4, "atol": 1e-5}
CONFIGS = {
    "both": ddi.DDIConfig(group_size=4),
    "layers": ddi.DDIConfig(channels=False),
    "channels": ddi.DDIConfig(layers=False, group_size=6, hidden=7),
}


def network(config, exits=None):
    """Gates that decide differently from image to image."""
    torch.manual_seed(0)
    model = ddi.create_model("cifar_resnet20", gates=config, exits=exits).eval()
    for key, parameter in model.ddi_gates.named_parameters():
        nn.init.zeros_(parameter) if "bias" in key else nn.init.normal_(parameter)
    return model


@pytest.fixture
def calls(monkeypatch):
    """As on a GPU that has the kernel; counts the calls."""
    seen, run = [], resident.resident_stage
    monkeypatch.setattr(resident, "resident_stage_unsupported", lambda *a: None)
    monkeypatch.setattr(resident, "resident_stage", lambda *a: seen.append(len(a)) or run(*a))
    return seen


@pytest.mark.parametrize("name", CONFIGS)
def test_equals_block_by_block(monkeypatch, name):
    model, x = network(CONFIGS[name]), torch.randn(6, 3, 32, 32)
    with torch.inference_mode(), ddi.record(model) as expected:
        answer = model(x)
    monkeypatch.setattr(resident, "resident_stage_unsupported", lambda *a: None)
    with torch.inference_mode(), ddi.record(model) as found:
        torch.testing.assert_close(model(x), answer, **CLOSE)
    assert [b.name for b in found.passes[0]] == [b.name for b in expected.passes[0]]
    torch.testing.assert_close(found.macs, expected.macs)
    assert 1.05 < found.mac_ratio == pytest.approx(expected.mac_ratio)


def test_a_stage_is_one_call(calls):
    model, x = network(CONFIGS["both"]), torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        model(x)
    assert calls == [10, 12, 12]  # arguments: two stages begin with an entry block


def test_without_its_entry_where_that_has_no_kernel(monkeypatch, calls):
    monkeypatch.setattr(resident, "resident_stage_unsupported", lambda *a: "no" if a[3] else None)
    model, x = network(CONFIGS["both"]), torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        found = model(x)
        assert calls == [10, 10, 10]
        monkeypatch.setattr(resident, "resident_stage_unsupported", lambda *a: None)
        torch.testing.assert_close(found, model(x), **CLOSE)
    model = ddi.create_model("cifar_resnet20", depths=(1, 1, 2), gates=CONFIGS["both"]).eval()
    with torch.inference_mode():
        model(x)
    assert calls[3:] == [10, 12, 12, 12]


def test_block_by_block_where_someone_watches(calls):
    model, x = network(CONFIGS["both"], exits="default"), torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        model.forward_exits(x)  # between the blocks
    ddi.budget(model, x, ddi.Budget(macs=10**9))
    plain = ddi.create_model("cifar_resnet20").eval()
    with torch.inference_mode():
        plain(x)
    model.train()(x)
    partial = ddi.create_model("cifar_resnet8").eval()  # one block in a stage
    ddi.convert_(partial, CONFIGS["both"])
    with torch.inference_mode():
        partial(x)
    assert not calls


@pytest.mark.parametrize("change", ["weight", "gate", "threshold", "loaded"])
def test_prepared_weights_never_go_stale(calls, change):
    model, x = network(CONFIGS["both"]), torch.randn(6, 3, 32, 32)
    with torch.inference_mode():
        before = model(x)
    with torch.no_grad():
        if change == "threshold":
            model.ddi_gates.set_threshold(0.9)
        elif change == "loaded":
            norms = {k: torch.randn_like(v) for k, v in model.state_dict().items() if "bn1.bias" in k}
            model.load_state_dict(model.state_dict() | norms)
        else:
            for key, parameter in model.named_parameters():
                if key.endswith("conv1.weight" if change == "weight" else "expand.bias"):
                    parameter.sub_(10 if change == "gate" else 2 * parameter)
    with torch.inference_mode():
        after = model(x)
        assert not torch.allclose(before, after)
        resident.resident_stage_unsupported = lambda *a: "not now"  # the fixture restores it
        torch.testing.assert_close(after, model(x), **CLOSE)


def test_a_stage_whose_gates_were_taken_off(calls):
    model, x = network(CONFIGS["both"]), torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        model(x)
        assert len(calls) == 3
        ddi.prepare_(ddi.revert_(model).train())
        assert model(x).shape == (2, 10) and len(calls) == 3


def test_weights_that_have_the_keys_they_had():
    keys = list(ddi.create_model("cifar_resnet20", gates=CONFIGS["both"]).state_dict())
    assert "layer1.0.conv1.weight" in keys and not [key for key in keys if "resident" in key]
