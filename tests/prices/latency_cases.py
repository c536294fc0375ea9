"""A latency table that tests know every entry of; importing `no_table_of_the_user` leaves out all others."""

from __future__ import annotations

import pytest

from ddi_kernels.prices.device import current_isa
from ddi_kernels.prices.latency import ConvShape, Grid, LatencyTable, Row
from ddi_kernels.prices.tables import set_table

SHAPE = ConvShape(kernel=3, stride=1, ci=64, co=64, pixels=64, batch=1, threads=1)
# Twice as long for each doubling, and almost all outputs dearer than all.
FINE = Grid([0.5, 1.0], [0.5, 0.9, 1.0], [[1.0, 3.0, 2.0], [2.0, 6.0, 4.0]])
ALIGNED = Grid([1.0], [0.25, 0.5, 1.0], [[0.5, 1.0, 2.0]])
ROW = Row(
    SHAPE,
    dense_ms=3.0,
    in_mask_ms=0.5,
    out_mask_ms=0.25,
    pass_ms=0.1,
    plain_ms=2.0,
    fine=FINE,
    aligned=ALIGNED,
)


def table_of(*rows):
    return LatencyTable("a CPU", current_isa(), "2.13", "2026-01-01", rows)


@pytest.fixture(autouse=True)
def no_table_of_the_user(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("DDI_LATENCY_TABLE", raising=False)
    set_table(None)
    yield
    set_table(None)
