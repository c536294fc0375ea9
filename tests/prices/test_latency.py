"""Latency tables: reading, looking up, what ships."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from latency_cases import ALIGNED, FINE, ROW, SHAPE, no_table_of_the_user, table_of  # noqa: F401
from native import require_native

from ddi_kernels.prices import tables
from ddi_kernels.prices.device import current_isa, device_name
from ddi_kernels.prices.latency import Grid, LatencyTable
from ddi_kernels.prices.tables import find_table, pricing_table, read_table, use_table

# Tables.


def test_round_trip(tmp_path):
    table = table_of(ROW, replace(ROW, shape=replace(SHAPE, threads=2)))
    (tmp_path / "table.json").write_text(table.dumps())
    assert read_table(tmp_path / "table.json") == table
    assert LatencyTable.loads(table_of().dumps()) == table_of()


def spoilt(**changes):
    content = json.loads(table_of(ROW).dumps())
    for path, value in changes.items():
        *names, last = path.split("__")
        place = content
        for name in names:
            place = place[int(name) if name.isdigit() else name]
        place[last] = value
    return json.dumps(content)


DAMAGE = {
    "empty": ("", "damaged"),
    "truncated": (table_of(ROW).dumps()[:200], "damaged"),
    "list": ("[1]", "damaged"),
    "foreign": ('{"name": "something else"}', "'version'"),
    "old": (spoilt(version=0), "version 0, this package reads version 1"),
    "column": (spoilt(rows__0__surprise=1), "surprise"),
    "text": (spoilt(rows__0__dense_ms="fast"), "damaged"),
    "zero": (spoilt(rows__0__dense_ms=0.0), "not positive"),
    "nan": (spoilt(rows__0__plain_ms=float("nan")), "not positive"),
    "ragged": (spoilt(rows__0__fine__ms=[[1.0, 2.0, 3.0], [1.0]]), "grid of .* damaged"),
    "order": (spoilt(rows__0__fine__shares_in=[1.0, 0.5]), "grid of .* damaged"),
    "no-end": (spoilt(rows__0__fine__shares_in=[0.25, 0.5]), "grid of .* damaged"),
    "no-knots": (spoilt(rows__0__fine__shares_in=[], rows__0__fine__ms=[]), "damaged"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_file_that_is_no_table_is_named_with_the_reason(damage, tmp_path):
    text, says = DAMAGE[damage]
    (tmp_path / "table.json").write_text(text)
    with pytest.raises(ValueError, match=f"latency table .*table.json: .*{says}.*ddi profile --fresh"):
        read_table(tmp_path / "table.json")


@pytest.mark.parametrize("damage", ["truncated", "old"])
def test_a_damaged_file_is_warned_of_once_and_the_default_is_used(damage, tmp_path, monkeypatch, caplog):
    (tmp_path / "table.json").write_text(DAMAGE[damage][0])
    default = find_table()
    monkeypatch.setenv("DDI_LATENCY_TABLE", str(tmp_path / "table.json"))
    with caplog.at_level(logging.WARNING):
        assert [tables.current_table() for _ in range(3)] == [default] * 3
    assert len(caplog.records) == 1 and "table.json" in caplog.text


def test_a_missing_or_foreign_named_file_is_warned_of(tmp_path, monkeypatch, caplog):
    default = find_table()
    monkeypatch.setenv("DDI_LATENCY_TABLE", str(tmp_path / "none.json"))
    assert find_table() == default and "none.json" in caplog.text
    (tmp_path / "other.json").write_text(replace(table_of(ROW), isa="mmx").dumps())
    monkeypatch.setenv("DDI_LATENCY_TABLE", str(tmp_path / "other.json"))
    assert find_table() == default and "measured on mmx" in caplog.text


def test_named_file_before_the_devices_before_the_default(tmp_path, monkeypatch, caplog):
    require_native()
    default = find_table()
    mine, named = table_of(ROW), table_of(replace(ROW, dense_ms=9.0))
    path = tables.table_path()
    assert path.parent == tmp_path / "cache" / "ddi" and current_isa() in path.name
    path.parent.mkdir(parents=True)
    path.write_text(mine.dumps())
    assert find_table() == mine != default
    (tmp_path / "named.json").write_text(named.dumps())
    monkeypatch.setenv("DDI_LATENCY_TABLE", str(tmp_path / "named.json"))
    assert find_table() == named
    assert caplog.text == ""


def test_shipped_tables_are_whole_and_say_where_they_were_measured():
    files = sorted(tables.SHIPPED.glob("*.json"))
    assert "avx512" in [file.stem for file in files]
    for file in files:
        table = read_table(file)
        assert table.isa == file.stem and table.device and table.date and len(table.rows) > 20


def test_without_any_table_nothing_is_known(monkeypatch, tmp_path):
    monkeypatch.setattr(tables, "SHIPPED", tmp_path)
    assert find_table().rows == () and find_table().estimate(SHAPE) is None


# Which one tells milliseconds.


def test_this_devices_table_is_taken_without_a_word(monkeypatch, caplog):
    mine = replace(table_of(ROW), device=device_name())
    assert pricing_table(mine) is mine
    path = tables.table_path()
    path.parent.mkdir(parents=True)
    path.write_text(mine.dumps())
    assert pricing_table() == mine and caplog.text == ""


def test_another_devices_table_is_taken_where_it_is_asked_for_with_one_warning(tmp_path, monkeypatch, caplog):
    other = table_of(ROW)
    tables._warn_of_another_device.cache_clear()
    assert [pricing_table(other) for _ in range(3)] == [other] * 3
    assert len(caplog.records) == 1
    assert "another device, a CPU" in caplog.text and f"this one is {device_name()}" in caplog.text
    tables._warn_of_another_device.cache_clear()
    with use_table(other):
        assert pricing_table() == other and len(caplog.records) == 2
    (tmp_path / "named.json").write_text(other.dumps())
    monkeypatch.setenv("DDI_LATENCY_TABLE", str(tmp_path / "named.json"))
    tables.set_table(None)
    tables._warn_of_another_device.cache_clear()
    assert pricing_table() == other and len(caplog.records) == 3


def test_another_devices_table_is_not_taken_unasked(monkeypatch):
    require_native()
    monkeypatch.setattr(tables, "device_name", lambda: "a new CPU")
    monkeypatch.setattr(tables, "current_isa", lambda: "avx512")  # for which a table ships
    assert tables.current_table().rows  # `auto` chooses by the shipped one
    shipped = "the shipped one is of AMD EPYC.*Measure one with: ddi profile; or ask.*latency_table=path"
    with pytest.raises(ValueError, match=f"no table of this device, a new CPU .*{shipped}"):
        pricing_table()
    with use_table(table_of(ROW)):
        pricing_table()
    with pytest.raises(ValueError, match="no table of this device"):
        pricing_table()


def test_without_any_table_nothing_is_told(monkeypatch, tmp_path):
    monkeypatch.setattr(tables, "SHIPPED", tmp_path)
    with pytest.raises(ValueError, match=r"no table of this device, .*\)\. Measure one"):
        pricing_table()


# Interpolation.


def test_times_at_and_between_knots():
    assert [FINE.at(i, o) for i in (0.5, 1.0) for o in (0.5, 0.9, 1.0)] == pytest.approx([1, 3, 2, 2, 6, 4])
    assert FINE.at(0.75, 1.0) == pytest.approx(3.0)
    assert FINE.at(0.75, 0.7) == pytest.approx(1.5 * 2.0)
    assert ALIGNED.at(0.3, 0.75) == pytest.approx(1.5)  # one knot of inputs: no slope is known


def test_below_the_first_knot_the_slope_goes_on_but_never_to_nothing():
    grid = Grid([0.5, 1.0], [1.0], [[2.0], [3.0]])
    assert grid.at(0.25, 1.0) == pytest.approx(1.5)
    assert FINE.at(0.0, 0.0) == pytest.approx(0.1)


def test_tensors_give_what_numbers_give_with_a_gradient():
    shares = torch.tensor([[0.1, 0.6], [0.75, 0.7], [0.9, 0.99], [0.6, 0.3]], dtype=torch.float64)
    shares.requires_grad_()
    got = FINE.at(shares[:, 0], shares[:, 1])
    assert got.tolist() == pytest.approx([FINE.at(i, o) for i, o in shares.tolist()])
    assert torch.autograd.gradcheck(lambda s: FINE.at(s[:, 0], s[:, 1]), shares)


def test_what_rises_has_no_falling_end():
    assert FINE.rising == Grid([0.5, 1.0], [0.5, 1.0], [[1.0, 2.0], [2.0, 4.0]])
    estimate = table_of(ROW).estimate(SHAPE)
    assert estimate.gated_ms(1.0, 0.9) == pytest.approx(3.6)
    assert estimate.gated_ms(1.0, 0.5, group_size=16) == pytest.approx(1.0)


# Shapes that were not measured.


def test_unknown_shapes_take_the_nearest_row_scaled_by_macs():
    other = replace(ROW, shape=replace(SHAPE, kernel=1, ci=256), dense_ms=5.0)
    table = table_of(ROW, other, replace(ROW, shape=replace(SHAPE, threads=8)))
    estimate = table.estimate(replace(SHAPE, ci=80, pixels=100))
    assert estimate.row == ROW
    assert estimate.dense_ms == pytest.approx(3.0 * 80 / 64 * 100 / 64)
    assert estimate.plain_ms == pytest.approx(2.0 * 80 / 64 * 100 / 64)
    assert table.estimate(replace(SHAPE, kernel=1)).row == other
    assert table.estimate(replace(SHAPE, threads=6)).row.shape.threads == 8
    assert table.estimate(replace(SHAPE, kernel=7, stride=2, ci=3, pixels=112 * 112)) is not None
    assert table.estimate(replace(SHAPE, dtype="bfloat16")) is None


@pytest.mark.parametrize("isa", ["avx512", "avx512_vnni", "avx512_bf16", "avx512_amx"])
def test_a_table_ships_for_every_level_of_avx512(isa, monkeypatch, tmp_path):
    monkeypatch.delenv("DDI_LATENCY_TABLE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(tables.backends, "native_library", SimpleNamespace(cpu_isa=lambda: isa))
    assert tables.find_table().rows
