"""Limits of the machine, bytes of a gated call."""

import pytest
import torch

from bench import roofline
from bench.cases import Case
from bench.gated import POOL, Gating


def test_attainable_is_the_lower_of_peak_and_bandwidth():
    machine = roofline.Machine(peak_gflops=100.0, bandwidth_gb_s=20.0)
    assert machine.attainable(1.0) == 20 and machine.attainable(5.0) == machine.attainable(50.0) == 100


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
def test_limits_are_measured(monkeypatch, dtype):
    monkeypatch.setattr(roofline, "_MATMUL", 64)
    monkeypatch.setattr(roofline, "_COPY_BYTES", 4096)
    monkeypatch.setattr(roofline, "_DENSE_CASES", [Case(1, 8, 8, 4)])
    taken = iter([64**3 * 2e-9, *[1.0] * 8])
    monkeypatch.setattr(roofline, "_best_seconds", lambda call: call() is None or next(taken))
    machine = roofline.measure_machine(dtype, threads=1)
    # One GFLOP/s for the product, the slow convolutions do not lower it; 8192 bytes in a second.
    assert machine.peak_gflops == pytest.approx(1)
    assert machine.bandwidth_gb_s == pytest.approx(8192 / 1e9)


def test_best_seconds_is_positive_and_the_least():
    assert 0 < roofline._best_seconds(lambda: sum(range(1000))) < 1


def test_bytes_of_a_dense_call():
    case = Case(2, 4, 6, 5)
    gating = Gating.draw(case, 1.0, 1.0, 1)
    elements = 2 * 4 * 25 + 2 * 6 * 25 + 4 * 6 * 9
    assert roofline.gated_bytes(gating, 4) == pytest.approx(4 * elements)


def test_closed_inputs_and_unused_weights_are_not_read():
    # Half the pairs are open in each sample: of two samples, three quarters in at least one.
    gating = Gating.draw(Case(2, 4, 6, 4, kernel=1), 0.5, 1.0, 1)
    assert len(gating.in_masks) == POOL and gating.mac_ratio == pytest.approx(2)
    elements = 2 * 4 * 16 * 0.5 + 2 * 6 * 16 + 4 * 6 * 0.75
    assert roofline.gated_bytes(gating, 4) == pytest.approx(4 * elements)


def test_plot_has_a_point_for_every_row_and_the_roof():
    pytest.importorskip("matplotlib")
    shared = dict(provider="native", dtype="fp32", group_size=16, threads=1, attainable_gflops=100.0)
    rows = [
        dict(shared, case=case, keep=keep, intensity=x, gflops=x)
        for case, x in (("a", 1.0), ("b", 50.0))
        for keep in ("1x1", "0.5x0.5")
    ]
    roof, shares = roofline.plot_roofline(roofline.Machine(100.0, 10.0), rows).axes
    points = [line for line in roof.lines if line.get_marker() == "o"]
    assert sorted(x for line in points for x in line.get_xdata()) == [1.0, 1.0, 50.0, 50.0]
    (line,) = [line for line in roof.lines if line.get_label() == "attainable"]
    assert list(line.get_xdata()) == [0.5, 10.0, 100.0] and list(line.get_ydata()) == [5.0, 100.0, 100.0]
    assert [label.get_text() for label in shares.get_yticklabels()] == ["a", "b"]
