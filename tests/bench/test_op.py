"""The operator bench: its rows are complete and agree with themselves. No figure is asserted."""

import json

import pytest

from bench import __main__, op
from ddi_kernels.backends import native_available


@pytest.fixture
def rows(tmp_path, monkeypatch, capsys):
    if not native_available()[0]:
        pytest.skip(native_available()[1])
    monkeypatch.setattr(op, "CASES", [(2, 20, 6)])
    monkeypatch.setattr(op, "ROUNDS", 3)
    monkeypatch.setattr(op, "ROUND_SECONDS", 0.001)
    assert __main__.main(["op", "--json", str(tmp_path / "op.jsonl")]) == 0
    assert "realised" in capsys.readouterr().out
    return [json.loads(line) for line in (tmp_path / "op.jsonl").read_text().splitlines()]


def test_header_rows_and_summaries(rows):
    header, cases = rows[0], [r for r in rows if "case" in r]
    assert header["header"] and "torch" in json.dumps(header)
    assert len(cases) == 2 * len(op.KEEPS) and len(rows) == 1 + 2 * len(cases)
    for row in cases:
        dense = row["dense_ms"]
        assert row["best_dense_provider"] == min(dense, key=dense.get) and len(dense) == 3
        speedup = min(dense.values()) / row["median_ms"]
        assert row["speedup_vs_best_dense"] == pytest.approx(speedup, abs=1e-3)
        assert row["realised"] == pytest.approx(speedup / row["mac_ratio"], abs=2e-3)
        assert row["p20_ms"] <= row["median_ms"] <= row["p80_ms"]
        assert row["max_rel_err"] < 1e-5


def test_mac_ratio_follows_the_masks(rows):
    ratios = {(r["keep"], r["group_size"]): r["mac_ratio"] for r in rows if "case" in r}
    assert ratios["1x1", 1] == 1
    assert ratios["0.5x0.5", 1] == pytest.approx(4)
    assert ratios["0.25x0.25", 1] == pytest.approx(16)
    # 20 channels in groups of 16: one group of two stays, sometimes the short one.
    assert 1 < ratios["1x0.5", 16] < 5
