"""A table of measured times of dense and gated convolutions, and what it says of shapes and masks.

It holds, for convolutions of many shapes on channels_last input, the milliseconds of the dense kernel and of
the gated one at a grid of open shares (inputs x outputs). Between the grid's knots times are bilinear, and so
differentiable; a shape that was not measured takes the nearest one's times, scaled by multiply-adds. Where
tables come from is in tables.py; `auto` chooses by them (ops/dense_conv2d.py) and `ddi.latency` adds them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from itertools import product
from typing import Any

from torch import Tensor

from ddi_kernels.prices.versioned import read_versioned

__all__ = ["ConvShape", "Estimate", "Grid", "LatencyTable", "Row"]

VERSION = 1
FINE, ALIGNED = 1, 16  # group sizes that are measured; masks by whole weight panels are faster

# Dense must win by this much: times repeat to about a percent, and native needs no second copy of weights.
_MARGIN = 0.98


@dataclass(frozen=True)
class ConvShape:
    """One call: a square kernel and stride, channels, output pixels per sample, batch, threads, dtype."""

    kernel: int
    stride: int
    ci: int
    co: int
    pixels: int
    batch: int
    threads: int
    dtype: str = "float32"

    @property
    def macs(self) -> int:
        """Multiply-adds of the dense call."""
        return self.kernel**2 * self.ci * self.co * self.pixels * self.batch

    def distance(self, other: ConvShape) -> float:
        """How unlike two shapes are: octaves apart, weighted by how much each matters to the ratio."""
        weights = {"kernel": 4, "stride": 2, "threads": 2, "ci": 1, "co": 1, "pixels": 1, "batch": 1}
        return sum(w * abs(math.log2(getattr(self, f) / getattr(other, f))) for f, w in weights.items())


@dataclass(frozen=True)
class Grid:
    """Milliseconds of the gated kernel at open shares of inputs (rows of ms) x outputs (columns).

    Args:
        shares_in, shares_out: ascending, the last one 1.
        ms: ms[i][j] belongs to shares_in[i], shares_out[j].
    """

    shares_in: list[float]
    shares_out: list[float]
    ms: list[list[float]]

    @property
    def rising(self) -> Grid:
        """Without what was measured between half and all of the outputs open.

        There the gated kernel may take longer than with all open, and `auto` goes another way. Left out, time
        grows with the share, as what holds a network to a time must: a falling end would keep gates open.
        """
        kept = [j for j, share in enumerate(self.shares_out) if not 0.5 < share < 1]
        ms = [[times[j] for j in kept] for times in self.ms]
        return Grid(self.shares_in, [self.shares_out[j] for j in kept], ms)

    def at(self, share_in: Any, share_out: Any) -> Any:
        """Milliseconds at open shares, numbers or tensors of one shape; differentiable.

        Below the first knots the first slope goes on, to a tenth of the smallest time at least.
        """
        columns = _weights(self.shares_out, share_out)
        total: Any = 0.0
        for weight, times in zip(_weights(self.shares_in, share_in), self.ms, strict=True):
            total = total + weight * sum(w * t for w, t in zip(columns, times, strict=True))
        return _clamp(total, self.ms[0][0] / 10, None)


def _weights(knots: Sequence[float], share: Any) -> list[Any]:
    """Of each knot in a piecewise linear interpolation at `share`."""
    ramps: list[Any] = [1.0]
    for i, (low, high) in enumerate(zip(knots, knots[1:], strict=False)):
        ramps.append(_clamp((share - low) / (high - low), None if i == 0 else 0.0, 1.0))
    ramps.append(0.0)
    return [one - following for one, following in zip(ramps, ramps[1:], strict=False)]


def _clamp(value: Any, low: float | None, high: float | None) -> Any:
    if isinstance(value, Tensor):
        return value.clamp(low, high)
    value = value if low is None else max(low, value)
    return value if high is None else min(high, value)


@dataclass(frozen=True)
class Row:
    """Measured milliseconds per call of one shape.

    Args:
        shape: of the call.
        dense_ms: the dense kernel, weights prepacked, without masks.
        in_mask_ms, out_mask_ms: what masking by selection adds to it.
        pass_ms: what a scale, a residual or a ReLU adds to it, each.
        plain_ms: the gated kernel without masks.
        fine, aligned: the gated kernel with masks by single channels, and by groups of 16.
    """

    shape: ConvShape
    dense_ms: float
    in_mask_ms: float
    out_mask_ms: float
    pass_ms: float
    plain_ms: float
    fine: Grid
    aligned: Grid

    def grid(self, group_size: int) -> Grid:
        """The grid of masks over groups of so many channels."""
        return self.fine if group_size % ALIGNED else self.aligned


@dataclass(frozen=True)
class Estimate:
    """A row's times for another shape: scaled by multiply-adds."""

    row: Row
    factor: float

    @property
    def dense_ms(self) -> float:
        """The dense kernel, without masks."""
        return self.factor * self.row.dense_ms

    @property
    def plain_ms(self) -> float:
        """The gated kernel, without masks."""
        return self.factor * self.row.plain_ms

    def gated_ms(self, share_in: Any, share_out: Any, group_size: int = FINE) -> Any:
        """The gated kernel at open shares (numbers or tensors); differentiable, see `Grid.rising`."""
        return self.factor * self.row.grid(group_size).rising.at(share_in, share_out)

    def dense_wins(
        self, share_in: float | None, share_out: float | None, passes: int = 0, group_size: int = FINE
    ) -> bool:
        """Whether the dense kernel is faster; a share is None where there is no mask."""
        row = self.row
        dense = row.dense_ms + passes * row.pass_ms
        # Masks that are all open need no masking.
        dense += row.in_mask_ms * (share_in is not None and share_in < 1)
        dense += row.out_mask_ms * (share_out is not None and share_out < 1)
        if share_in is None and share_out is None:
            return dense < _MARGIN * row.plain_ms
        one, other = (1.0 if share is None else share for share in (share_in, share_out))
        return dense < _MARGIN * float(row.grid(group_size).at(one, other))

    @cached_property
    def dense_can_win(self) -> bool:
        """Whether there are any masks at which `dense_wins`."""
        if self.dense_wins(None, None):
            return True
        return any(
            self.dense_wins(share_in, share_out, 0, size)
            for size, grid in ((FINE, self.row.fine), (ALIGNED, self.row.aligned))
            for share_in, share_out in product(grid.shares_in, grid.shares_out)
        )


@dataclass(frozen=True)
class LatencyTable:
    """Rows of one device and instruction set.

    Args:
        device: the processor's name.
        isa: the instruction set that our kernels used.
        torch_version, date: of the measurement.
        rows: at least one dtype's; empty means that nothing is known.

    Example:
        >>> from ddi_kernels.prices.latency import ConvShape, Grid, LatencyTable, Row
        >>> shape = ConvShape(kernel=3, stride=1, ci=64, co=64, pixels=64, batch=1, threads=1)
        >>> grid = Grid([0.5, 1.0], [0.5, 1.0], [[1.0, 2.0], [2.0, 4.0]])
        >>> row = Row(shape, 3.0, 0.1, 0.1, 0.1, 3.9, grid, grid)
        >>> table = LatencyTable("a CPU", "avx2", "2.13", "2026-01-01", (row,))
        >>> table.estimate(shape).gated_ms(0.75, 1.0)
        3.0
    """

    device: str
    isa: str
    torch_version: str
    date: str
    rows: tuple[Row, ...] = ()

    def estimate(self, shape: ConvShape) -> Estimate | None:
        """Times of a shape by the most similar row; None where the table has none of its dtype."""
        rows = [row for row in self.rows if row.shape.dtype == shape.dtype]
        if not rows:
            return None
        row = min(rows, key=lambda row: shape.distance(row.shape))
        return Estimate(row, shape.macs / row.shape.macs)

    def dumps(self) -> str:
        """The table as JSON, a line for each row."""
        header = {"version": VERSION} | {f.name: getattr(self, f.name) for f in fields(self)[:-1]}
        rows = ",\n".join(json.dumps(asdict(row)) for row in self.rows)
        return json.dumps(header)[:-1] + f', "rows": [\n{rows}\n]}}\n'

    @classmethod
    def loads(cls, text: str) -> LatencyTable:
        """What `dumps` wrote.

        Raises:
            ValueError: it is none, damaged, or of another version.
        """

        def table(content: dict[str, Any]) -> LatencyTable:
            rows = tuple(_row(values) for values in content.pop("rows"))
            return cls(**content, rows=rows)

        return read_versioned(text, VERSION, "latency table", table)


def _row(values: dict[str, Any]) -> Row:
    grids = {name: Grid(**values[name]) for name in ("fine", "aligned")}
    row = Row(**values | grids | {"shape": ConvShape(**values["shape"])})
    sizes = [v for f, v in asdict(row.shape).items() if f != "dtype"]
    times = [row.dense_ms, row.plain_ms, 1 + row.in_mask_ms, 1 + row.out_mask_ms, 1 + row.pass_ms]
    for grid in grids.values():
        knots = (grid.shares_in, grid.shares_out)
        form = [len(grid.shares_out)] * len(grid.shares_in)
        if (
            any(k != sorted(set(k)) or k[0] <= 0 or k[-1] != 1 for k in knots)
            or list(map(len, grid.ms)) != form
        ):
            raise ValueError(f"the grid of {row.shape} is damaged")
        times += [t for line in grid.ms for t in line]
    if not all(0 < number < math.inf for number in [*sizes, *times]):
        raise ValueError(f"the row of {row.shape} holds a number that is not positive and finite")
    return row
