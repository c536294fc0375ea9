"""Resources by name."""

from __future__ import annotations

from pathlib import Path

from ddi_kernels.prices.energy import HOROWITZ_45NM, EnergyModel
from ddi_kernels.prices.latency import LatencyTable
from ddi_kernels.prices.tables import read_table

from .energy import Joules
from .latency import Milliseconds
from .macs import Macs
from .resource import Resource

__all__ = ["RESOURCES", "as_resource"]

RESOURCES = ("macs", "ms", "joules")


def as_resource(
    resource: str | Resource,
    table: LatencyTable | str | Path | None = None,
    model: EnergyModel | None = None,
) -> Resource:
    """The resource of a name; a `Resource` as it is.

    Args:
        resource: "macs", "ms", "joules", or a `Resource`.
        table: for "ms", or the path of one; default: this device's own. See `Milliseconds`.
        model: for "joules"; default: `ddi_kernels.prices.energy.HOROWITZ_45NM`.

    Raises:
        ValueError: another name; a table or model for a resource that takes none; no table of this device.
        OSError: the table cannot be read.

    Example:
        >>> as_resource("joules").name
        'joules'
    """
    if isinstance(resource, str) and resource not in RESOURCES:
        raise ValueError(f"unknown resource {resource!r}; allowed: {', '.join(RESOURCES)}")
    for given, kind, what in ((table, "ms", "a table"), (model, "joules", "a model")):
        if given is not None and resource != kind:
            raise ValueError(f'{what} was given with resource {resource!r}; it belongs to "{kind}"')
    if isinstance(resource, Resource):
        return resource
    if resource == "ms":
        return Milliseconds(read_table(table) if isinstance(table, (str, Path)) else table)
    return Macs() if resource == "macs" else Joules(model or HOROWITZ_45NM)
