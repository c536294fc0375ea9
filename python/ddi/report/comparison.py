"""Rows of `ddi grid` compared: what each gating gives over its seeds, and what the same accuracy costs.

A gating's curve goes through the mean accuracy and MACs of its targets, dearest last, and ends in the dense
network that was trained as long. Between its points it is taken to be straight. Networks with branch
classifiers have a second one, "both, halting": the same networks halt each image at the first classifier that
is certain of it, at several confidences.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..cost import RESOURCES
from ..grid.grid import GATED, GATINGS, read_rows

__all__ = [
    "Point",
    "compare",
    "curve",
    "format_comparison",
    "gatings",
    "macs_needed",
    "points_of",
    "read_results",
]

# A gating that was held to another resource than multiply-adds is one of its own.
_RUN = (*GATINGS, *(f"{gating}, {other}" for gating in GATED for other in RESOURCES if other != "macs"))
HALTING = ", halting"
LABELS = (*_RUN, *(f"{label}{HALTING}" for label in _RUN))
_Group = tuple[str, str, float, float | None]  # network, label, target, confidence
_NUMBERS = ("target", "seed", "accuracy", "macs", "mac_ratio")


@dataclass(frozen=True)
class Point:
    """One network, gating, target and confidence over its seeds.

    Args:
        network, gating, target: see `ddi.grid.Run`; "both, ms" is a gating held to milliseconds, and "both,
            halting" one that halts early.
        confidence: that an image halts at; None: it never does.
        seeds: how many.
        accuracy: mean on the test images, and `low` and `high` its extremes.
        macs, mac_ratio: means.
        ms_b1, ms_b32: means over the seeds that are measured; None: none is.
        to_dense: mean of the differences to the dense network's accuracy of the same seed; None: no seed has
            both.
    """

    network: str
    gating: str
    target: float
    confidence: float | None
    seeds: int
    accuracy: float
    low: float
    high: float
    macs: float
    mac_ratio: float
    ms_b1: float | None
    ms_b32: float | None
    to_dense: float | None


def read_results(path: str | Path) -> list[dict[str, Any]]:
    """The rows of a file of `ddi grid`, each with all that a comparison needs.

    Raises:
        FileNotFoundError, ValueError: there is no such file; it is damaged, has no rows, or a row lacks a
            number.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"report: {path}: no such folder or file")
    rows = read_rows(path)
    if not rows:
        raise ValueError(f"report: {path} has no rows; `ddi grid` adds one for each finished training")
    for number, row in enumerate(rows, 1):
        if wrong := [name for name in _NUMBERS if not isinstance(row.get(name), (int, float))]:
            raise ValueError(f"report: {path}: row {number} has no number for {', '.join(wrong)}")
        if row["gating"] not in GATINGS:
            raise ValueError(
                f"report: {path}: row {number} has gating {row['gating']!r}; allowed: {', '.join(GATINGS)}"
            )
    return rows


def points_of(rows: Sequence[dict[str, Any]]) -> list[Point]:
    """The points of rows, by network as they come, gating, falling target and falling confidence."""
    networks = list(dict.fromkeys(row["network"] for row in rows))
    dense = {(row["network"], row["seed"]): row["accuracy"] for row in rows if row["gating"] == "dense"}
    groups: dict[_Group, list[dict[str, Any]]] = {}
    for row in rows:
        label = _label(row)
        groups.setdefault((row["network"], label, row["target"], None), []).append(row)
        for halting in _halting(row):
            key = (row["network"], f"{label}{HALTING}", row["target"], halting["confidence"])
            groups.setdefault(key, []).append(halting)
    found = [_point(key, group, dense) for key, group in groups.items()]

    def place(p: Point) -> tuple[float, ...]:
        return networks.index(p.network), LABELS.index(p.gating), -p.target, -(p.confidence or 0)

    return sorted(found, key=place)


def _label(row: dict[str, Any]) -> str:
    resource = row.get("resource", "macs")
    return row["gating"] if resource == "macs" else f"{row['gating']}, {resource}"


def _halting(row: dict[str, Any]) -> list[dict[str, Any]]:
    """A row as it is at each of the confidences that it was halted at."""
    dense_macs = row["mac_ratio"] * row["macs"]
    found = row.get("halting") or []
    return [row | {"mac_ratio": dense_macs / one["macs"]} | one for one in found]


def _point(key: _Group, rows: list[dict[str, Any]], dense: dict[tuple[str, int], float]) -> Point:
    accuracy = [row["accuracy"] for row in rows]
    pairs = [(row["accuracy"], dense.get((row["network"], row["seed"]))) for row in rows]
    return Point(
        *key,
        seeds=len(rows),
        accuracy=math.fsum(accuracy) / len(rows),
        low=min(accuracy),
        high=max(accuracy),
        macs=math.fsum(row["macs"] for row in rows) / len(rows),
        mac_ratio=math.fsum(row["mac_ratio"] for row in rows) / len(rows),
        ms_b1=_mean([row.get("ms_b1") for row in rows]),
        ms_b32=_mean([row.get("ms_b32") for row in rows]),
        to_dense=_mean([None if other is None else own - other for own, other in pairs]),
    )


def _mean(values: list[float | None]) -> float | None:
    """Of those that are there; None: none is."""
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else None


def curve(points: Sequence[Point], network: str, gating: str) -> list[Point]:
    """The points of a network's gating and, as their end, its dense one, cheapest first. Of one that halts
    early, which has many for each target, those that no cheaper one is as accurate as.
    """
    own = [p for p in points if p.network == network and p.gating in (gating, "dense")]
    line = sorted(own, key=lambda p: p.macs)
    if not gating.endswith(HALTING):
        return line
    return [p for i, p in enumerate(line) if all(cheaper.accuracy < p.accuracy for cheaper in line[:i])]


def macs_needed(curve: Sequence[Point], accuracy: float) -> float | None:
    """The fewest MACs at which a curve has an accuracy, straight between its points; None: it has it nowhere.

    Where the cheapest point is more accurate than that, its MACs: nothing is known of cheaper ones.

    Args:
        curve: cheapest point first.
        accuracy: in 0..1.
    """
    before: Point | None = None
    for point in curve:
        if point.accuracy >= accuracy:
            if before is None:
                return point.macs
            share = (accuracy - before.accuracy) / (point.accuracy - before.accuracy)
            return before.macs + share * (point.macs - before.macs)
        before = point
    return None


def compare(points: Sequence[Point]) -> list[dict[str, Any]]:
    """For each point that never halts and each other gating of its network what that needs for the same
    accuracy.

    Returns:
        JSON-ready: network, gating and target of the point, its accuracy and macs; by (other gating), macs
        (those needed, None: not reached), fewer (the point's MACs over them), and at_most (whether `by` is
        more accurate than that even at its cheapest).
    """
    found = []
    for point in filter(_compared, points):
        others = [name for name in gatings(points, point.network) if name not in (point.gating, "dense")]
        for other in others:
            line = curve(points, point.network, other)
            needed = macs_needed(line, point.accuracy)
            found.append(
                {
                    **{name: getattr(point, name) for name in ("network", "gating", "target")},
                    **{name: getattr(point, name) for name in ("accuracy", "macs")},
                    "by": other,
                    "needed": needed,
                    "fewer": None if needed is None else point.macs / needed,
                    "at_most": line[0].accuracy > point.accuracy,
                }
            )
    return found


def _compared(point: Point) -> bool:
    return point.gating != "backbone" and point.confidence is None


def gatings(points: Sequence[Point], network: str) -> list[str]:
    """That have a curve, in order."""
    there = {p.gating for p in points if p.network == network} - {"backbone", f"backbone{HALTING}"}
    return [name for name in LABELS if name in there]


def format_comparison(title: str, points: Sequence[Point]) -> str:
    """Both tables of all networks, as text.

    Args:
        title: where the rows come from.
        points: of `points_of`.
    """
    needed = compare(points)
    parts = []
    for network in dict.fromkeys(p.network for p in points):
        own = [p for p in points if p.network == network]
        lines = [f"{title}: {network}", *_results(own)]
        if mine := [one for one in needed if one["network"] == network]:
            lines += ["", *_needed(own, mine)]
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _results(points: Sequence[Point]) -> list[str]:
    head = ("gating", "target", "seeds", "accuracy, %", "to dense", "MMACs", "mac_ratio", "ms, b1", "ms, b32")
    cells = [
        (
            p.gating,
            f"{p.target:g}" if p.confidence is None else f"{p.target:g} at {p.confidence:g}",
            str(p.seeds),
            f"{100 * p.accuracy:.2f} ({100 * p.low:.2f}-{100 * p.high:.2f})",
            "-" if p.to_dense is None or p.gating == "dense" else f"{100 * p.to_dense:+.2f}",
            f"{p.macs / 1e6:.2f}",
            f"{p.mac_ratio:.2f}",
            *("-" if ms is None else f"{ms:.3f}" for ms in (p.ms_b1, p.ms_b32)),
        )
        for p in points
    ]
    return _aligned([head, *cells])


def _needed(points: Sequence[Point], needed: Sequence[dict[str, Any]]) -> list[str]:
    columns = list(dict.fromkeys(one["by"] for one in needed))
    found = {(one["gating"], one["target"], one["by"]): one for one in needed}
    cells = [("MMACs needed for the accuracy of", "MMACs", *columns)]
    for p in filter(_compared, points):
        name = f"{p.gating} {p.target:g}, {100 * p.accuracy:.2f} %"
        others = [_cell(found.get((p.gating, p.target, by))) for by in columns]
        cells.append((name, f"{p.macs / 1e6:.2f}", *others))
    return _aligned(cells)


def _cell(one: dict[str, Any] | None) -> str:
    if one is None:  # of its own gating
        return "."
    if one["needed"] is None:
        return "not reached"
    limit = "<= " if one["at_most"] else ""
    fewer = one["fewer"]
    times = f"{fewer:.2f}x fewer" if fewer >= 1 else f"{1 / fewer:.2f}x more"
    return f"{limit}{one['needed'] / 1e6:.2f} ({times})"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns as wide as their widest cell, the first one to the left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]
