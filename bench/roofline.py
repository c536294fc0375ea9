"""What the machine could attain on each case, and how near gated_conv2d comes.

attainable = min(peak, intensity * bandwidth): the peak is that of the fastest large matrix product or
dense convolution in the same dtype and threads, the bandwidth that of copying a buffer larger than any
cache, the intensity the gated FLOPs over the bytes that must move once. Cases that fit into a cache may
exceed the bandwidth's line.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ddi.report.figures import new_figure

from .cases import Case, make_inputs
from .gated import Gating
from .opponents import make_opponents

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MATMUL = 1024
# The same product as a 1x1 convolution, and a 3x3 one that has everything in the second-level cache.
_DENSE_CASES = [Case(1, _MATMUL, _MATMUL, 32, kernel=1), Case(1, 256, 256, 14)]
_COPY_BYTES = 256 * 2**20
_REPEATS = 20


@dataclass(frozen=True)
class Machine:
    """Measured limits: FLOPs (two a multiply-add) and bytes per nanosecond."""

    peak_gflops: float
    bandwidth_gb_s: float

    def attainable(self, intensity: float) -> float:
        """GFLOP/s at an intensity in FLOPs per byte."""
        return min(self.peak_gflops, intensity * self.bandwidth_gb_s)


def measure_machine(dtype: torch.dtype, threads: int) -> Machine:
    """Measures the limits in torch's current number of threads, which is `threads`, best of several.

    The peak is the fastest of torch.mm and the dense providers: on some CPUs the library behind
    torch.mm does not use the widest vectors, and the roof would lie below what convolutions attain.
    """
    a = torch.randn(_MATMUL, _MATMUL).to(dtype)
    out = torch.empty_like(a)
    rates = [2 * _MATMUL**3 / _best_seconds(lambda: torch.mm(a, a, out=out))]
    for case in _DENSE_CASES:
        inputs, weight = make_inputs(case, dtype)
        for provider in make_opponents(inputs, weight, case, threads)[0].values():
            rates.append(2 * case.macs / _best_seconds(provider.calls[0]))
    source = torch.ones(_COPY_BYTES, dtype=torch.uint8)
    target = torch.ones_like(source)
    copy = _best_seconds(lambda: target.copy_(source))
    # A copy reads and writes each byte.
    return Machine(max(rates) / 1e9, 2 * _COPY_BYTES / copy / 1e9)


def _best_seconds(call: Callable[[], object]) -> float:
    call()
    times = []
    for _ in range(_REPEATS):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def gated_bytes(gating: Gating, element_size: int) -> float:
    """Bytes that a gated call moves at least once, on average over the pool.

    Open input channels are read, the whole output is written (closed channels as zeros), and of the
    weights each pair of channels is read that is open together in at least one sample of the batch.
    """
    case = gating.case
    inputs = case.batch * case.channels_in * case.side**2 * gating.share_in
    outputs = case.batch * case.channels_out * case.side_out**2
    pairs = case.channels_in * case.channels_out * (1 - (1 - 1 / gating.mac_ratio) ** case.batch)
    return element_size * (inputs + outputs + pairs * case.kernel**2)


def plot_roofline(machine: Machine, rows: Sequence[dict[str, Any]]) -> Figure:
    """Left the roof and every case below it, right the attained part of the attainable by case.

    Args:
        machine: the limits.
        rows: of `bench op`, one provider and group size.
    """
    cases = list(dict.fromkeys(row["case"] for row in rows))
    figure = new_figure(13, max(4.0, 1.5 + 0.25 * len(cases)))
    roof, shares = figure.subplots(1, 2)
    for i, keep in enumerate(dict.fromkeys(row["keep"] for row in rows)):
        some, color = [row for row in rows if row["keep"] == keep], f"C{i}"
        roof.plot([r["intensity"] for r in some], [r["gflops"] for r in some], "o", ms=4, c=color)
        parts = [r["gflops"] / r["attainable_gflops"] for r in some]
        shares.plot(parts, [cases.index(r["case"]) for r in some], "o", ms=4, c=color, label=f"keep {keep}")
    _draw_roof(roof, machine, [r["intensity"] for r in rows])
    shares.axvline(1, color="0.6", lw=1)
    shares.set_yticks(range(len(cases)), cases, fontsize=7)
    shares.invert_yaxis()
    shares.set_xlim(left=0)
    shares.set(xlabel="attained / attainable", title="by case")
    shares.legend(fontsize=7)
    first = rows[0]
    figure.suptitle(
        f"gated_conv2d, {first['provider']}, {first['dtype']}, group_size {first['group_size']}, "
        f"threads {first['threads']}"
    )
    return figure


def _draw_roof(axes: Axes, machine: Machine, intensities: Sequence[float]) -> None:
    ridge = machine.peak_gflops / machine.bandwidth_gb_s
    ends = [min(*intensities, ridge) / 2, ridge, max(*intensities, ridge) * 2]
    axes.loglog(ends, [machine.attainable(x) for x in ends], color="0.3", label="attainable")
    axes.set(
        xlabel="gated FLOPs per byte",
        ylabel="GFLOP/s",
        title=f"peak {machine.peak_gflops:.0f} GFLOP/s, {machine.bandwidth_gb_s:.1f} GB/s",
    )
    axes.legend(fontsize=7)
