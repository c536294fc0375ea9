"""Profiling: what is measured, in pieces as in one go, and the command."""

from __future__ import annotations

import importlib
import json

import pytest
import torch
from native import require_native

from ddi.cli import main
from ddi.measure.profile import CASES, Case, ProfileConfig, _counts, _masks, measure_case, profile
from ddi_kernels.prices import tables
from ddi_kernels.prices.device import current_isa
from ddi_kernels.prices.tables import find_table, read_table, set_table, table_path

module = importlib.import_module("ddi.measure.profile")
SMALL = "3x3 N1 C64-64 H8"
TWO = "1x1s2 N1 C"  # more than two, of which fakes cost nothing


@pytest.fixture(autouse=True)
def quick(monkeypatch, tmp_path):
    """A cache of its own, and timings as short as they go."""
    require_native()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("DDI_LATENCY_TABLE", raising=False)
    for name, value in (("_ROUNDS", 1), ("_ROUND_SECONDS", 0.0), ("_MASKS", 3)):
        monkeypatch.setattr(module, name, value)
    set_table(None)
    yield
    set_table(None)


@pytest.fixture
def fakes(monkeypatch):
    """Cases instead of measurements: the list of those that were asked for."""
    asked = []
    row = measure_case(Case(1, 16, 16, 8), 1)

    def fake(case, threads):
        asked.append(case.name)
        return module.replace(row, shape=case.shape(threads))

    monkeypatch.setattr(module, "measure_case", fake)
    return asked


def shapes(cases, threads=1):
    return [case.shape(threads) for case in cases]


def names(part):
    return [case.name for case in CASES if part in case.name]


def test_a_real_run_is_found_by_auto():
    result = profile(ProfileConfig(threads=1, cases=SMALL))
    assert (result.path, result.measured, result.left) == (str(table_path()), 1, 0)
    table = read_table(result.path)
    assert find_table() == table == tables.current_table()
    assert table.isa == current_isa() and table.torch_version == torch.__version__
    (row,) = table.rows
    assert row.shape == Case(1, 64, 64, 8).shape(1)
    assert row.fine.shares_in == [0.25, 0.5, 1.0] and row.fine.shares_out == [0.25, 0.5, 60 / 64, 1.0]
    assert row.aligned.shares_in == [0.25, 0.5, 1.0] and row.aligned.shares_out == [0.25, 0.5, 0.75, 1.0]


def test_each_provider_runs_the_kernel_that_it_is_named_for(monkeypatch):
    operator = importlib.import_module("ddi_kernels.ops.gated_conv2d")
    dense, native = [], []
    real_dense, real_kernel = operator.dense_conv2d, operator.call_kernel
    monkeypatch.setattr(operator, "dense_conv2d", lambda *a: dense.append(a) or real_dense(*a))
    monkeypatch.setattr(operator, "call_kernel", lambda *a: native.append(a[2]) or real_kernel(*a))
    measure_case(Case(2, 16, 32, 8, kernel=1), 1)
    assert {(a[5] is None, a[6] is None, a[9][9] == 1) for a in dense} == {
        (True, True, False),
        (False, True, False),
        (True, False, False),
        (True, True, True),
    }
    counts = {None if a[4] is None else (a[8][7], int(a[4].sum()) // 2, int(a[5].sum()) // 2) for a in native}
    fine = {(1, i, o) for i in (4, 8, 16) for o in (8, 16, 30, 32)}
    assert counts == {None} | fine | {(16, 1, 1), (16, 1, 2)}


def test_masks_differ_and_have_their_count():
    masks = _masks(2, 64, 16)
    assert len(masks) == 3 and all(m.sum(1).tolist() == [16, 16] for m in masks)
    assert not torch.equal(masks[0], masks[1])


@pytest.mark.parametrize(
    "channels,size,almost,counts",
    [(64, 1, True, [16, 32, 60, 64]), (16, 16, True, [1]), (32, 16, False, [1, 2]), (3, 1, True, [1, 2, 3])],
)
def test_counts(channels, size, almost, counts):
    assert _counts(channels, size, almost) == counts


def test_the_grid_has_no_shape_twice_and_what_backbones_use():
    assert len(set(shapes(CASES))) == len(CASES)
    assert {(c.kernel, c.stride) for c in CASES} == {(3, 1), (3, 2), (1, 1), (1, 2)}
    assert {c.batch for c in CASES} == {1, 8, 32}
    assert Case(1, 64, 128, 56, 1, 2).shape(4).pixels == 28 * 28


def test_a_budget_ends_between_shapes_and_the_next_run_goes_on(fakes):
    minutes = iter(range(1000))
    first = profile(ProfileConfig(1, cases=TWO, budget_minutes=1.5), clock=lambda: 60 * next(minutes))
    assert first.measured == 2 and first.left == len(names(TWO)) - 2
    assert "run the same command again" in first.describe()
    second = profile(ProfileConfig(1, cases=TWO))
    assert (second.measured, second.left) == (first.left, 0)
    assert fakes == names(TWO)
    assert len(read_table(second.path).rows) == len(fakes)


def test_even_a_tiny_budget_makes_progress(fakes):
    for _ in range(2):
        profile(ProfileConfig(1, cases=TWO, budget_minutes=1e-9))
    assert fakes == names(TWO)[:2]


def test_an_interrupted_run_keeps_what_it_has(fakes, monkeypatch):
    fake = module.measure_case

    def interrupted(case, threads):
        if len(fakes) == 2:
            raise KeyboardInterrupt
        return fake(case, threads)

    monkeypatch.setattr(module, "measure_case", interrupted)
    with pytest.raises(KeyboardInterrupt):
        profile(ProfileConfig(1, cases=TWO))
    assert [row.shape for row in read_table(table_path()).rows] == shapes(c for c in CASES if TWO in c.name)[
        :2
    ]
    monkeypatch.setattr(module, "measure_case", fake)
    profile(ProfileConfig(1, cases=TWO))
    assert fakes == names(TWO)


def test_fresh_starts_over_and_other_threads_add(fakes, tmp_path):
    out = str(tmp_path / "table.json")
    profile(ProfileConfig(1, out, cases=SMALL))
    profile(ProfileConfig(2, out, cases=SMALL))
    assert [row.shape.threads for row in read_table(out).rows] == [1, 2]
    profile(ProfileConfig(2, out, cases=SMALL, fresh=True))
    assert [row.shape.threads for row in read_table(out).rows] == [2] and len(fakes) == 3


@pytest.mark.parametrize("field", ["device", "isa", "torch_version"])
def test_another_machines_table_is_left_alone(fakes, field, tmp_path):
    out = tmp_path / "table.json"
    profile(ProfileConfig(1, str(out), cases=SMALL))
    foreign = module.replace(read_table(out), **{field: "other"}).dumps()
    out.write_text(foreign)
    with pytest.raises(ValueError, match=f"{field} 'other'.*--fresh"):
        profile(ProfileConfig(1, str(out), cases=SMALL))
    assert out.read_text() == foreign
    profile(ProfileConfig(1, str(out), cases=SMALL, fresh=True))
    assert getattr(read_table(out), field) != "other"


def test_the_command(capsys, tmp_path):
    out, report = tmp_path / "deep" / "table.json", tmp_path / "report.json"
    arguments = ["profile", "--threads", "1", "--dtype", "fp32", "--cases", SMALL]
    arguments += ["--out", str(out), "--json", str(report)]
    assert main(arguments) == 0
    assert len(read_table(out).rows) == 1
    found = json.loads(report.read_text())
    assert found["path"] == str(out) and found["measured"] == 1 and found["left"] == 0
    text = capsys.readouterr().out
    assert text.startswith(f"Measured 1 shapes; the table is {out}")
    assert main(arguments) == 0
    assert "Measured 0 shapes" in capsys.readouterr().out


MISTAKES = {
    "cases": (["--cases", "7x7"], "no shape has '7x7' in its name"),
    "threads": (["--threads", "0"], "threads must be at least 1, got 0"),
    "budget": (["--budget-minutes", "0"], "budget_minutes must be positive"),
    "nan": (["--budget-minutes", "nan"], "budget_minutes must be positive"),
    "damaged": (["--out", "{damaged}"], "no latency table, or damaged"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_give_one_line_and_status_2(mistake, capsys, tmp_path):
    damaged = tmp_path / "damaged.json"
    damaged.write_text("{")
    arguments, says = MISTAKES[mistake]
    assert main(["profile", *(a.replace("{damaged}", str(damaged)) for a in arguments)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("ddi profile: error: ") and says in error and error.count("\n") == 1
    assert damaged.read_text() == "{" and not table_path().exists()
