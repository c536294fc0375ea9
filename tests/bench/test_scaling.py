"""Linearity curves: their points, their lines, their rows. No time is asserted."""

import json
from functools import partial

import pytest

from bench import __main__, scaling
from bench.cases import Case
from ddi.measure import turns
from ddi_kernels import backends


def test_line_of_exact_points():
    line = scaling.Line.fit([1.0, 2.0, 4.0], [5.0, 7.0, 11.0])
    assert (line.slope_ms, line.intercept_ms, line.r2) == pytest.approx((2, 3, 1))
    assert line.at(10) == pytest.approx(23)


def test_line_of_a_cloud_has_a_low_r2():
    # By hand: both means 1.5, Sxy = 2, Sxx = Syy = 5.
    line = scaling.Line.fit([0.0, 1.0, 2.0, 3.0], [1.0, 2.0, 0.0, 3.0])
    assert (line.slope_ms, line.intercept_ms) == pytest.approx((0.4, 0.9))
    assert line.r2 == pytest.approx(0.16)


@pytest.mark.parametrize("curve", scaling.CURVES)
def test_points_are_linear_in_macs(curve):
    points = scaling.curve_points(Case(1, 32, 32, 4), curve)
    macs = [gating.case.macs / gating.mac_ratio for gating in points.values()]
    line = scaling.Line.fit(list(points), macs)
    assert line.r2 == pytest.approx(1) and abs(line.intercept_ms) < 1e-6 * macs[-1]
    expected = [*range(1, 33)] if curve == "samples" else [i / 16 for i in range(1, 17)]
    assert list(points) == expected


def test_rows_and_figure(monkeypatch, tmp_path, capsys):
    if not backends.native_available()[0]:
        pytest.skip(backends.native_available()[1])
    monkeypatch.setattr(scaling, "CASES", [Case(1, 16, 16, 4)])
    monkeypatch.setattr(scaling, "SAMPLES", 4)
    monkeypatch.setattr(scaling, "time_in_turns", partial(turns.time_in_turns, rounds=3, seconds=1e-4))
    files = ["--json", str(tmp_path / "s.jsonl"), "--plot", str(tmp_path / "s.png")]
    assert __main__.main(["scaling", *files]) == 0
    rows = [json.loads(line) for line in (tmp_path / "s.jsonl").read_text().splitlines()]
    assert rows[0]["header"] and (tmp_path / "s.png").read_bytes().startswith(b"\x89PNG")
    assert len(rows) == 1 + 16 + 1 + 16 + 1 + 4 + 1
    for curve in scaling.CURVES:
        *points, fit = [row for row in rows[1:] if row["curve"] == curve]
        line = scaling.Line.fit([p["x"] for p in points], [p["median_ms"] for p in points])
        assert fit["fit"] and fit["r2"] == pytest.approx(line.r2)
        assert fit["intercept_ms"] == pytest.approx(line.intercept_ms)
        assert fit["intercept_share"] == pytest.approx(line.intercept_ms / line.at(points[-1]["x"]))
    assert capsys.readouterr().out.count(" r2 ") == 3
