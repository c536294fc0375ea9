"""The decisions that networks are timed with, and the rows that come of it."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import ddi
from bench.decisions import draw_decisions, find_keep, forced, mean_macs
from bench.model import Ours, add_arguments, call_percentiles, gated_calls, own_calls, row
from bench.networks import Case, Network, make_case
from ddi.measure.timing import Timing
from ddi.measure.turns import Measured, Provider
from ddi_kernels import engine

pytest.importorskip("ddi_kernels._engine", reason="ddi_kernels._engine is not built")

NETWORKS = {
    "resnet": Network("cifar_resnet8", 32, ddi.DDIConfig(group_size=4)),
    "densenet": Network("densenet_bc40", 32, ddi.DenseDDIConfig(group_size=4)),
}


def frozen_case(kind: str, tmp_path: Path, batch: int = 1) -> tuple[Case, engine.Engine]:
    torch.manual_seed(0)
    case = make_case(NETWORKS[kind], batch, 1, "fp32")
    return case, case.freeze(case.gated, tmp_path / "net.ddi")


@pytest.mark.parametrize("kind", NETWORKS)
def test_decisions_open_more_and_more(kind: str, tmp_path: Path) -> None:
    case, frozen = frozen_case(kind, tmp_path)
    shares = [draw_decisions(frozen, 200, keep, keep).float() for keep in (0.0, 0.3, 0.6, 1.0)]
    assert shares[0].sum() == 0 and shares[-1].mean() == 1
    for less, more in zip(shares, shares[1:], strict=False):
        assert (less <= more).all() and less.sum() < more.sum()
    half = draw_decisions(frozen, 400, 1.0, 0.5).float()
    layers = [gate["keep"] for gate in frozen.gates if gate["keep"]]
    assert half.mean().item() == pytest.approx(0.5 + 0.5 * len(layers) / half.shape[1], abs=0.02)


def test_a_closed_layer_of_a_densenet_closes_its_channels(tmp_path: Path) -> None:
    _, frozen = frozen_case("densenet", tmp_path)
    bits = draw_decisions(frozen, 300, 0.5, 1.0)
    at = 0
    for gate in frozen.gates:
        groups = bits[:, at : at + gate["groups"][0]]
        at += gate["groups"][0]
        assert ((groups.sum(1) == 0) | (groups.sum(1) == groups.shape[1])).all()
    assert at == bits.shape[1]


def test_call_percentiles() -> None:
    slow = iter([False] * 195 + [True] * 5 + [False] * 2000)
    seen = call_percentiles(Provider([lambda: time.sleep(0.02 if next(slow) else 0.0002)]), 1000.0)
    assert 0.2 < seen["call_p50_ms"] < 5
    assert 19 < seen["call_p99_ms"] < 60


def test_find_keep() -> None:
    assert find_keep(lambda keep: 1 / max(keep * keep, 1e-9), 4.0) == pytest.approx(0.5, abs=1e-3)


@torch.inference_mode()
@pytest.mark.parametrize("layers", [True, False])
def test_gated_calls_meet_their_ratio(layers: bool, tmp_path: Path) -> None:
    case, frozen = frozen_case("resnet", tmp_path)
    ours = gated_calls(case, frozen, 2.0, layers)
    assert ours.mac_ratio == pytest.approx(2.0, rel=0.15)
    assert (ours.keep_layers == ours.keep_channels) if layers else ours.keep_layers == 1
    bits = draw_decisions(frozen, 256, ours.keep_layers, ours.keep_channels)
    mean = mean_macs(frozen, case.images, bits)
    assert ours.mac_ratio == pytest.approx(frozen.dense_macs / mean)
    assert ours.provider.least_calls == len(ours.provider.calls) == 256  # each with its own masks
    with forced(case.gated, bits[:1]):
        torch.testing.assert_close(ours.provider.output(0), case.gated(case.images[0]), atol=1e-4, rtol=1e-4)


@torch.inference_mode()
@pytest.mark.parametrize("name", NETWORKS)
def test_own_calls_count_what_the_gates_decide(name: str, tmp_path: Path) -> None:
    case, frozen = frozen_case(name, tmp_path, batch=2)
    ours = own_calls(case, frozen)
    assert ours.keep_layers == ours.keep_channels == 1  # fresh gates are open
    assert ours.mac_ratio == pytest.approx(frozen.dense_macs / frozen.exit_worst_macs[-1])


def test_rows_compare_with_the_fastest(tmp_path: Path) -> None:
    case, _ = frozen_case("resnet", tmp_path)

    def timed(ms: float) -> Measured:
        return Measured(Timing.of([ms]), 3)

    nothing: Any = Provider([lambda: None])
    ours = Ours(nothing, 0.5, 0.5, 4.0, 1e-6)
    times = {"a": timed(3.0), "b": timed(2.0), "gated": timed(0.625)}
    got = row(case, "gated", ours, times, {"a": nothing, "b": nothing})
    assert got["best_dense_provider"] == "b" and got["dense_ms"] == {"a": 3.0, "b": 2.0}
    assert got["speedup_vs_best_dense"] == 3.2 and got["realised"] == 0.8


def save(path: Path, gates: Any = None, exits: Any = None) -> Path:
    torch.manual_seed(0)
    model = ddi.create_model("cifar_resnet8", gates=gates, exits=exits)
    ddi.save_model(path, model, "cifar_resnet8", {"dataset": "digits32"}, exits=exits)
    return path


@torch.inference_mode()
def test_trained_networks_run_on_their_own_test_images(tmp_path: Path) -> None:
    files = save(tmp_path / "dense"), save(tmp_path / "gated", ddi.DDIConfig(group_size=4))
    network = Network.of_checkpoints("trained", *files)
    case = make_case(network, 32, 1, "fp32")
    data = ddi.data.get_dataset("digits32")
    assert len(case.images) == 8 and network.gates == ddi.DDIConfig(group_size=4)
    assert torch.equal(case.images[0][:1], data.normalize(data.test().images[:1]))
    torch.testing.assert_close(case.gated(case.images[0]), case.plain(case.images[0]))  # open gates
    with pytest.raises(ValueError, match="holds no gated network; give the plain checkpoint first"):
        Network.of_checkpoints("trained", files[1], files[0])


@torch.inference_mode()
def test_own_calls_halt_where_they_are_certain(tmp_path: Path) -> None:
    files = save(tmp_path / "dense"), save(tmp_path / "gated", ddi.DDIConfig(group_size=4), exits=[1, 2])
    case = make_case(Network.of_checkpoints("trained", *files), 1, 1, "fp32")
    frozen = case.freeze(case.gated, tmp_path / "gated.ddi")
    first = torch.cat([frozen(x, confidence=0.01) for x in case.images])  # no class of ten is less certain
    usual = first.softmax(1).amax(1).median().item()
    never, halting, at_once = (own_calls(case, frozen, confidence) for confidence in (1.0, usual, 0.01))
    asked = [frozen(x, confidence=usual, report=True)[1] for x in case.images]
    assert 100 < [report.exit for report in asked].count(0) < 156
    assert halting.mac_ratio == pytest.approx(256 * frozen.dense_macs / sum(one.macs[0] for one in asked))
    assert torch.equal(halting.provider.output(3), frozen(case.images[3], confidence=usual))
    assert never.mac_ratio < halting.mac_ratio < at_once.mac_ratio
    assert at_once.mac_ratio == pytest.approx(frozen.dense_macs / frozen.exit_worst_macs[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--confidence", "0.9"], "--confidence is 0.9; it is for --trained, add that"),
        (["--confidence", "0.9", "--trained", "dense", "gated"], "no branch classifiers to halt at"),
    ],
)
def test_confidence_needs_classifiers(options: list[str], message: str, tmp_path: Path) -> None:
    files = {"dense": save(tmp_path / "dense"), "gated": save(tmp_path / "gated", ddi.DDIConfig())}
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    given = [str(files.get(word, word)) for word in options]
    args = parser.parse_args([*given, "--no-compile"])
    args.seed, args.threads, args.json = 0, 1, None
    with pytest.raises(ValueError, match=message):
        args.run(args)
