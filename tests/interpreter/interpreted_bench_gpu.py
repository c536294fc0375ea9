"""The GPU bench without a GPU: every suite once, small and interpreted, so that what it measures is right.

Graphs are played by calling what they would capture; times are made up, errors are not.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import ddi
from bench.gpu import __main__ as command
from bench.gpu import graphs, networks, operators, tune
from ddi_kernels import backend, backends
from ddi_kernels.tiles import tuned_tiles
from ddi_kernels.tiles.tiles import Gpu, shipped_tiles
from ddi_kernels.triton import gated_conv2d as gated_kernels
from ddi_kernels.triton import skip_conv2d as skip_kernels


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
    for module in (graphs, operators, networks, tune):
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
    cuda = 4 if backends.cuda_available()[0] else 0
    assert sum(1 for _ in command.suites(compiled=False)) == 88 + cuda


@pytest.fixture
def tiles(monkeypatch):
    """Those that convolutions ran with; the GPU's table is empty again behind a test."""
    used = []
    for kernels, place in ((gated_kernels, 5), (skip_kernels, 4)):
        run = kernels.convolve

        def convolve(*args, run=run, place=place, **options):
            used.append(args[place])
            return run(*args, **options)

        monkeypatch.setattr(kernels, "convolve", convolve)
    monkeypatch.setattr(tuned_tiles, "_tables", {})
    return used


def test_the_fastest_tile_is_found_and_taken(monkeypatch, tiles, tmp_path):
    def timed(run, refresh):
        refresh(0)
        run(0)
        return graphs.Timed(float(tiles[-1].bm * tiles[-1].bn == 128 * 64), 0, 0)  # all others are as fast

    monkeypatch.setattr(tune, "replayed", timed)
    gpu = Gpu(90, 227 * 1024)
    cases = {
        "gated_conv2d bfloat16 rows8 co64 bk32 taps9": lambda: tune.gated_case(64, 64, 3, 3, 2, 32),
        "skip_conv2d bfloat16 rows16 co128 bk64 taps1": lambda: tune.skip_case(64, 128, 3, 1, 2),
    }
    table = tune.tune(gpu, iter([*cases.values(), *cases.values()]))  # the second ones are known by then
    assert list(table) == list(cases)
    expected = [tile for bk in (32, 64) for tile in shipped_tiles(graphs.DTYPE, gpu) if tile.bk == bk]
    assert tiles == expected and len(expected) >= 6
    for key, tile in table.items():
        assert f"bk{tile.bk} " in key and tile.bm * tile.bn != 128 * 64
    path = tmp_path / "tiles" / "some-gpu.json"
    tune.write_tiles(path, {"device": "some GPU"}, table)
    assert tuned_tiles.read_tiles(path) == table and not list(tmp_path.glob("*.json"))

    slowest = {
        key: next(t for t in expected if t.bk == tile.bk and t.bm * t.bn == 128 * 64)
        for key, tile in table.items()
    }
    tuned_tiles.use_tiles(gpu.name, slowest)
    for build in cases.values():
        build().run(0)
    assert tiles[-2:] == list(slowest.values())


def test_tables_lie_where_a_gpu_looks(monkeypatch, tmp_path):
    monkeypatch.setattr(tuned_tiles, "_FOLDER", tmp_path)
    monkeypatch.setattr(tuned_tiles, "_tables", {})
    path, gpu = tuned_tiles.table_path("NVIDIA H100 80GB HBM3"), Gpu(90, 0, "NVIDIA H100 80GB HBM3")
    assert path == tmp_path / "nvidia-h100-80gb-hbm3.json"
    assert tuned_tiles.tuned_tile("some key", gpu) is None
    tune.write_tiles(path, {"device": gpu.name}, {"some key": shipped_tiles(graphs.DTYPE, gpu)[0]})
    assert tuned_tiles.tuned_tile("some key", gpu) is None  # looked for once
    tuned_tiles._tables.clear()
    assert tuned_tiles.tuned_tile("some key", gpu) == shipped_tiles(graphs.DTYPE, gpu)[0]
    path.write_text('{"tiles": {"some key": [1, 2]}}')
    tuned_tiles._tables.clear()
    with pytest.raises(ValueError, match="nvidia-h100-80gb-hbm3.json is no table of tiles.*measure it anew"):
        tuned_tiles.tuned_tile("some key", gpu)
