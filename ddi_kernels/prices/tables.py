"""Which latency table is in force: the user's own, this device's, or the one shipped in ../tables.

`ddi profile` writes the device's into the user's cache. The files there, one an instruction set, are the
defaults of `auto` until it has run; each says on which machine it was measured. Milliseconds are told by a
table of this very device, or by one that was asked for: `pricing_table`.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch

from ddi_kernels import backends
from ddi_kernels.prices.device import current_isa, device_name
from ddi_kernels.prices.latency import ConvShape, Grid, LatencyTable, Row

__all__ = [
    "always_dense",
    "current_table",
    "find_table",
    "pricing_table",
    "read_table",
    "set_table",
    "table_path",
    "use_table",
]

_logger = logging.getLogger(__name__)
SHIPPED = Path(__file__).parents[1] / "tables"


def table_path() -> Path:
    """Where `ddi profile` writes this device's table, and `auto` looks for it."""
    slug = re.sub("[^a-z0-9]+", "-", device_name().lower()).strip("-")
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "ddi" / f"latency-{slug}-{current_isa()}.json"


def read_table(path: str | Path) -> LatencyTable:
    """The table in a file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is none, damaged, or of another version; names the file.
    """
    try:
        return LatencyTable.loads(Path(path).read_text())
    except ValueError as error:
        raise ValueError(
            f"latency table {path}: {error}; write a new one with: ddi profile --fresh"
        ) from error


def _candidates() -> Iterator[tuple[Path, bool]]:
    """Files to look at in turn, and whether the user named them."""
    named = os.environ.get("DDI_LATENCY_TABLE")
    if named:
        yield Path(named), True
    else:
        yield table_path(), False
    yield SHIPPED / f"{current_isa()}.json", False


def find_table() -> LatencyTable:
    """The table of DDI_LATENCY_TABLE, else of this device, else the shipped one, else an empty one.

    A file that cannot be used is passed over with a warning.
    """
    return _find_table()[0]


def _find_table() -> tuple[LatencyTable, bool]:
    """See `find_table`, and whether the user named it."""
    for path, named in _candidates():
        try:
            if not named and not path.is_file():
                continue
            table = read_table(path)
            if table.isa != current_isa():
                raise ValueError(f"latency table {path}: measured on {table.isa}, in use is {current_isa()}")
            return table, named
        except (OSError, ValueError) as error:
            _logger.warning("ignoring a latency table: %s", error)
    return LatencyTable(device_name(), current_isa(), torch.__version__, ""), False


_in_force: tuple[LatencyTable, bool] | None = None  # and whether somebody asked for it
_listeners: list[Callable[[], None]] = []


def on_change(forget: Callable[[], None]) -> None:
    """Has `forget` called whenever another table comes into force."""
    _listeners.append(forget)


def _table_in_force() -> tuple[LatencyTable, bool]:
    global _in_force
    if _in_force is None:
        _in_force = _find_table()
    return _in_force


def current_table() -> LatencyTable:
    """The table in force in this process, found at the first call: see `find_table`."""
    return _table_in_force()[0]


def pricing_table(table: LatencyTable | None = None) -> LatencyTable:
    """The table by which milliseconds are told: the given one, else the one in force if it is this device's.

    One of another device is taken where it was asked for (given, named by DDI_LATENCY_TABLE, or put in force
    with `use_table`), with a warning that names both devices.

    Raises:
        ValueError: nothing was asked for, and there is no table of this device.
    """
    asked = True
    if table is None:
        table, asked = _table_in_force()
    here = device_name(), current_isa()
    if asked:
        if (table.device, table.isa) != here:
            _warn_of_another_device(table.device, table.isa, *here)
    elif table.device != here[0] or not table.rows:
        other = f"; the shipped one is of {table.device} ({table.isa})" if table.rows else ""
        raise ValueError(
            f"latency: there is no table of this device, {here[0]} ({here[1]}){other}. Measure one with: ddi "
            "profile; or ask for another device's: table=read_table(path), latency_table=path in a training, "
            "or the environment variable DDI_LATENCY_TABLE"
        )
    return table


@cache  # once
def _warn_of_another_device(device: str, isa: str, here: str, isa_here: str) -> None:
    _logger.warning(
        "milliseconds are those of another device, %s (%s); this one is %s (%s)", device, isa, here, isa_here
    )


def set_table(table: LatencyTable | None) -> None:
    """Puts a table in force in this process; None looks for one anew, e.g. after `ddi profile`."""
    _put_in_force(None if table is None else (table, True))


def _put_in_force(found: tuple[LatencyTable, bool] | None) -> None:
    global _in_force
    _in_force = found
    for forget in _listeners:
        forget()


@contextmanager
def use_table(table: LatencyTable) -> Iterator[None]:
    """Puts a table in force inside a `with` block, in all threads."""
    before = _in_force
    set_table(table)
    try:
        yield
    finally:
        _put_in_force(before)


@contextmanager
def always_dense() -> Iterator[None]:
    """Has `auto` take the dense kernel inside a `with` block wherever it may, to time it."""
    shape = ConvShape(kernel=3, stride=1, ci=1, co=1, pixels=1, batch=1, threads=1)
    never = Grid([1.0], [1.0], [[1.0]])
    row = Row(shape, 1e-9, 0.0, 0.0, 0.0, 1.0, never, never)
    with backends.backend("auto"), use_table(LatencyTable("", current_isa(), "", "", (row,))):
        yield
