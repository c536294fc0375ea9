"""The operator bench: its rows are complete and agree with themselves. No figure is asserted."""

import json
from functools import partial

import pytest
import torch

from bench import __main__, cases, gated, op, roofline
from bench.gated import Gating
from ddi.measure import turns
from ddi_kernels import backends

KEEPS = {"1x1", "0.75x0.75", "0.5x0.5", "0.25x0.25", "1x0.5", "0.5x1"}
# Of design section 3, and what this bench adds.
FIELDS = {"case", "device", "dtype", "batch", "threads", "provider", "keep", "group_size", "keep_layers"}
FIELDS |= {"keep_channels", "mac_ratio", "median_ms", "p20_ms", "p80_ms", "best_dense_provider"}
FIELDS |= {"speedup_vs_best_dense", "realised", "max_rel_err", "rounds", "calls_per_round", "dense_ms"}
FIELDS |= {"gflops", "intensity", "attainable_gflops", "incomplete", "missing"}


@pytest.fixture
def quick(monkeypatch):
    """Tiny cases and rounds; skips where nothing native can be measured."""
    if not backends.native_available()[0]:
        pytest.skip(backends.native_available()[1])
    tiny = [cases.Case(2, 20, 20, 6), cases.Case(1, 8, 40, 5, kernel=1)]
    monkeypatch.setitem(cases.SUITES, "cpu", tiny)
    monkeypatch.setattr(op, "time_in_turns", partial(turns.time_in_turns, rounds=3, seconds=1e-4))
    monkeypatch.setattr(op, "measure_machine", lambda dtype, threads: roofline.Machine(100.0, 10.0))


@pytest.fixture
def rows(quick, tmp_path, capsys):
    files = ["--json", str(tmp_path / "op.jsonl"), "--plot", str(tmp_path / "op.png")]
    assert __main__.main(["op", "--suite", "cpu", "--threads", "1", *files]) == 0
    assert "realised median" in capsys.readouterr().out
    assert (tmp_path / "op.png").read_bytes().startswith(b"\x89PNG")
    return [json.loads(line) for line in (tmp_path / "op.jsonl").read_text().splitlines()]


def test_header_machine_rows_and_summaries(rows):
    assert rows[0]["header"] and "torch" in json.dumps(rows[0])
    assert rows[1] == {"machine": True, "peak_gflops": 100.0, "bandwidth_gb_s": 10.0}
    measured, summaries = rows[2:50], rows[50:]
    assert len(measured) == 2 * 2 * 2 * len(KEEPS) and len(summaries) == 2 * 2 * len(KEEPS)
    keys = ("case", "group_size", "keep", "provider")
    assert len({tuple(row[key] for key in keys) for row in measured}) == len(measured)
    assert {row["keep"] for row in measured} == KEEPS
    assert {row["provider"] for row in measured} == {"native", "auto"}
    assert all(row["summary"] and row["cases"] == 2 for row in summaries)


def test_a_row_agrees_with_itself(rows):
    for row in rows[2:50]:
        assert row.keys() == FIELDS
        dense = row["dense_ms"]
        assert row["best_dense_provider"] == min(dense, key=dense.get)
        assert row["incomplete"] == bool(row["missing"])
        speedup = min(dense.values()) / row["median_ms"]
        assert row["speedup_vs_best_dense"] == pytest.approx(speedup, abs=1e-3)
        assert row["realised"] == pytest.approx(speedup / row["mac_ratio"], abs=2e-3)
        assert row["p20_ms"] <= row["median_ms"] <= row["p80_ms"]
        assert row["calls_per_round"] >= 3 and row["rounds"] == 3
        assert row["max_rel_err"] < 1e-5
        macs = {"conv3x3 N2 C20 H6": 2 * 400 * 9 * 36, "conv1x1 N1 C8-40 H5": 320 * 25}[row["case"]]
        flops = 2 * macs / row["mac_ratio"]
        assert row["gflops"] == pytest.approx(flops / row["median_ms"] / 1e6, rel=1e-3)
        assert row["attainable_gflops"] == pytest.approx(min(100, 10 * row["intensity"]))


def test_mac_ratio_is_the_real_one_of_the_pool(rows):
    ratios = {(r["keep"], r["group_size"]): r for r in rows[2:50] if r["case"] == "conv3x3 N2 C20 H6"}
    assert ratios["1x1", 1]["mac_ratio"] == 1
    assert ratios["0.5x0.5", 1]["mac_ratio"] == pytest.approx(4)
    assert ratios["0.25x0.25", 1]["mac_ratio"] == pytest.approx(16)
    assert ratios["0.25x0.25", 1]["keep_channels"] == pytest.approx(1 / 16)
    # 20 channels in groups of 16: one group of two stays, sometimes the short one.
    assert 1 < ratios["1x0.5", 16]["mac_ratio"] < 5


def fabricated(case, median_ms, mac_ratio, **other):
    """A row with the times of four dense providers, the fastest of them 2 ms."""

    def taking(milliseconds):
        return turns.Measured(turns.Timing.of([milliseconds] * 3), 10)

    dense = {"eager": taking(8.0), "channels_last": taking(2.0), "onnxruntime": taking(3.0)}
    row = dict(provider="native", dtype="fp32", keep="0.5x0.5", group_size=1, threads=1, incomplete=False)
    fields = op.time_fields(taking(median_ms), dense, mac_ratio)
    return row | fields | {"case": case} | other


def test_realised_is_speedup_over_mac_ratio():
    row = fabricated("a", 0.8, 4.0)
    assert row["best_dense_provider"] == "channels_last"
    assert row["speedup_vs_best_dense"] == 2.5 and row["realised"] == 0.625
    assert row["dense_ms"] == {"eager": 8.0, "channels_last": 2.0, "onnxruntime": 3.0}
    assert row["calls_per_round"] == 10 and row["rounds"] == 3


def test_summaries_have_median_and_worst():
    rows = [fabricated("a", 1.0, 4.0), fabricated("b", 4.0, 4.0), fabricated("c", 0.5, 4.0)]
    rows += [fabricated("a", 2.0, 1.0, provider="auto", incomplete=True)]
    native, auto = op.summarise(rows)
    assert (native["provider"], native["cases"]) == ("native", 3)
    # Speedups 2, 0.5 and 4.
    assert native["speedup_median"] == 2.0 and native["realised_median"] == 0.5
    assert native["realised_worst"] == 0.125 and native["worst_case"] == "b"
    assert not native["incomplete"] and auto["incomplete"] and auto["speedup_median"] == 1.0


def test_a_missing_opponent_marks_rows_and_summaries(quick, monkeypatch):
    real = op.make_opponents

    def without(*args):
        providers, missing = real(*args)
        del providers["eager"]
        return providers, missing | {"eager": "ImportError: gone"}

    monkeypatch.setattr(op, "make_opponents", without)
    with torch.inference_mode():
        rows = op.measure_case(cases.SUITES["cpu"][1], "fp32", 1, 1, roofline.Machine(1.0, 1.0))
    assert all(row["incomplete"] and row["missing"]["eager"] == "ImportError: gone" for row in rows)
    assert all(summary["incomplete"] for summary in op.summarise(rows))
    assert "incomplete: eager" in op.format_row(rows[0])


def test_a_wrong_result_of_ours_is_not_timed(quick, monkeypatch):
    expected = Gating.expected
    monkeypatch.setattr(Gating, "expected", lambda *args: expected(*args) + 1)
    with pytest.raises(RuntimeError, match="would not be comparable"):
        op.measure_case(cases.SUITES["cpu"][0], "fp32", 1, 1, roofline.Machine(1.0, 1.0))


@pytest.mark.parametrize("name", ("native", "auto"))
def test_calls_run_in_their_backend_with_the_next_masks(name):
    gating = Gating.draw(cases.Case(1, 6, 6, 3), 0.5, 0.5, 1)
    inputs, weight = cases.make_inputs(gating.case, torch.float64)
    calls = gating.calls(inputs, weight)
    assert len(calls) == gated.POOL == 256
    seen = []
    spies = [lambda: seen.append(backends.current_backend()) or torch.ones(1)]
    gated.our_provider(name, spies).output(0)
    expected_name = name if name == "native" else backends.current_backend()
    assert seen == [expected_name]
    for index in (0, 9, 255):
        torch.testing.assert_close(calls[index](), gating.expected(index, inputs, weight))
    assert {len(gating.in_masks[i][0].nonzero()) for i in range(256)} == {3}


@pytest.mark.parametrize("dtype", ("bf16", "fp16", "int8"))
def test_a_dtype_without_native_kernels_is_an_error(dtype, monkeypatch, capsys):
    def refuse(x, weight):
        raise RuntimeError(f"it does not compute in {x.dtype}")

    monkeypatch.setattr(gated, "gated_conv2d", refuse)
    monkeypatch.setattr(op, "measure_machine", None)  # before anything is measured
    assert __main__.main(["op", "--dtype", dtype]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1
    assert printed.err.startswith(f"bench op: error: --dtype {dtype} cannot be measured")


def test_the_native_kernels_refuse_int8():
    with pytest.raises(RuntimeError, match="--dtype int8 .* 'native' cannot run this call"):
        gated.require_native("int8")


def test_no_matplotlib_is_said_before_measuring(quick, monkeypatch, capsys):
    def missing(width, height):
        raise ImportError("figures need matplotlib: pip install ddi-kernels[report]")

    monkeypatch.setattr(op, "new_figure", missing)
    monkeypatch.setattr(op, "measure_machine", None)
    assert __main__.main(["op", "--plot", "x.png"]) == 2
    assert "ddi-kernels[report]" in capsys.readouterr().err
