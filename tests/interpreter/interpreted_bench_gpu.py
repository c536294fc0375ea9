"""The GPU bench without a GPU: every suite once, small and interpreted, so that what it measures is right.

Graphs are played by calling what they would capture; times are made up, errors are not.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import ddi
from bench.gpu import __main__ as command
from bench.gpu import graphs, networks, operators
from ddi_kernels import backend


@pytest.fixture(autouse=True)
def played(monkeypatch):
    def replayed(run, refresh, calls=2):
        refresh(0)
        for i in range(min(calls, 2)):
            run(i)
        return graphs.Timed(1.0, 0.9, 1.1)

    def convolution(x, weight, bias, stride, padding, dilation, groups):
        return torch.conv2d(x, weight, bias, stride, padding, dilation, groups).relu()

    def added(x, weight, z, alpha, bias, stride, padding, dilation, groups) -> Tensor:
        return (torch.conv2d(x, weight, bias, stride, padding, dilation, groups) + alpha * z).relu()

    monkeypatch.setattr(graphs, "DEVICE", "cpu")
    monkeypatch.setattr(graphs, "POOL", 8)
    for module in (graphs, operators, networks):
        if hasattr(module, "replayed"):
            monkeypatch.setattr(module, "replayed", replayed)
    monkeypatch.setattr(torch, "cudnn_convolution_relu", convolution, raising=False)
    monkeypatch.setattr(torch, "cudnn_convolution_add_relu", added, raising=False)
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    monkeypatch.setattr(operators, "KEEPS", (1.0, 0.5))
    torch.manual_seed(0)
    with torch.inference_mode(), backend("triton"):
        yield


SUITES = {
    "conv": lambda: operators.conv_rows(64, 3, 2),
    "basic, channels": lambda: operators.gated_block_rows("basic", 64, 3, 2),
    "bottleneck, channels": lambda: operators.gated_block_rows("bottleneck", 64, 3, 2),
    "basic, samples": lambda: operators.skip_rows("basic", 32, 3, 2),
    "bottleneck, samples": lambda: operators.skip_rows("bottleneck", 32, 3, 2),
    "dense layer": lambda: operators.dense_layer_rows(64, 3, 2),
}


@pytest.mark.parametrize("suite", SUITES)
def test_rows_are_right(suite):
    rows = list(SUITES[suite]())
    assert len(rows) == 2
    for row in rows:
        assert row["max_rel_err"] < 2e-2 and row["speedup_vs_best_dense"] == 1.0
        assert command.text(row)
    assert rows[0]["mac_ratio"] == 1.0
    ratio = {"conv": 4, "bottleneck, channels": 17 / 6.25, "dense layer": 44 / 40}.get(suite, 2)
    assert rows[1]["mac_ratio"] == pytest.approx(ratio, rel=1e-3)


# DenseNet: the first of each layer's, the transitions' and the last stand before a ReLU.
@pytest.mark.parametrize("name, kept", [("cifar_resnet20", 0), ("resnet18", 0), ("densenet121", 58 + 3 + 1)])
def test_batch_norms_are_folded(name, kept):
    plain = networks.seeded(ddi.create_model(name))
    x = torch.randn(2, 3, 32, 32)
    expected, folded = plain(x), networks.folded(plain)
    torch.testing.assert_close(folded(x), expected, atol=1e-3, rtol=1e-3)
    assert sum(isinstance(m, torch.nn.BatchNorm2d) for m in folded.modules()) == kept


@pytest.mark.parametrize("name", ["cifar_resnet20", "densenet_bc40"])
def test_networks(name):
    config = ddi.DDIConfig(group_size=16) if name == "cifar_resnet20" else ddi.DenseDDIConfig(group_size=4)
    with backend("auto"):  # interpreted they would take minutes
        rows = list(networks.network_rows(name, 32, 2, config, compiled=True))
    assert rows[0]["max_rel_err"] < 5e-2 and rows[0]["mac_ratio"] < 1.001
    assert rows[1]["mac_ratio"] > 1.2 and list(rows[1]["dense_ms"]) == ["cudnn_graph", "compile_graph"]


def test_a_spent_budget_is_said(capsys):
    rows = command.measure(iter([("triton", SUITES["conv"])]), 0.0)
    assert len(rows) == 2 and rows[1] == {"incomplete": True, "reason": "the budget of 0 s is spent"}
    assert "the budget of 0 s is spent" in capsys.readouterr().out
    assert sum(1 for _ in command.suites(compiled=False)) == 88
