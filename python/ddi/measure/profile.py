"""Measures dense and gated convolutions over the shapes of common backbones, for the latency table.

Dense is what `auto` would run in place of the gated kernel, called the same way. The gated kernel takes
random masks at a grid of open shares, by single channels and by whole weight panels; the grid is not a corner
each, because a list of almost all outputs costs more than having all. All providers of a shape take turns
(turns.py). The table is written after every shape, so that an interrupted run goes on where it stopped, and
runs with other numbers of threads add to the same file.
"""

from __future__ import annotations

import datetime
import itertools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ddi_kernels import backend, gated_conv2d, prepack_conv2d
from ddi_kernels.geometry import output_size
from ddi_kernels.prices.device import current_isa, device_name
from ddi_kernels.prices.latency import ConvShape, Estimate, Grid, LatencyTable, Row
from ddi_kernels.prices.tables import always_dense, read_table, set_table, table_path

from ..files import write_atomic
from .timing import num_threads
from .turns import Provider, time_in_turns

__all__ = ["CASES", "Case", "ProfileConfig", "ProfileResult", "profile"]

_ROUNDS = 5
_ROUND_SECONDS = 0.008
_INPUTS = 4
_MASKS = 32
_FINE, _ALIGNED = 1, 16


@dataclass(frozen=True)
class Case:
    """A convolution with "same" padding on a batch of square maps."""

    batch: int
    ci: int
    co: int
    side: int
    kernel: int = 3
    stride: int = 1

    @property
    def name(self) -> str:
        """E.g. "conv3x3 N1 C16-16 H32" or "conv1x1s2 N8 C64-128 H56"."""
        stride = f"s{self.stride}" if self.stride > 1 else ""
        return f"conv{self.kernel}x{self.kernel}{stride} N{self.batch} C{self.ci}-{self.co} H{self.side}"

    def shape(self, threads: int) -> ConvShape:
        """What the table files it under."""
        kernel, stride, pad = [self.kernel] * 2, [self.stride] * 2, [self.kernel // 2] * 2
        pixels = math.prod(output_size((self.side, self.side), kernel, stride, pad))
        return ConvShape(self.kernel, self.stride, self.ci, self.co, pixels, self.batch, threads)


# (Ci, Co, side, kernel, stride): stages and transitions of the CIFAR ResNets ...
_CIFAR = [(16, 16, 32, 3, 1), (32, 32, 16, 3, 1), (64, 64, 8, 3, 1)]
_CIFAR += [(16, 32, 32, 3, 2), (32, 64, 16, 3, 2), (16, 32, 32, 1, 2), (32, 64, 16, 1, 2)]
# ... and of the ImageNet ones, basic and bottleneck blocks.
_IMAGENET = [(64, 64, 56, 3, 1), (128, 128, 28, 3, 1), (256, 256, 14, 3, 1), (512, 512, 7, 3, 1)]
_IMAGENET += [(64, 128, 56, 3, 2), (128, 256, 28, 3, 2), (256, 512, 14, 3, 2)]
_IMAGENET += [(64, 256, 56, 1, 1), (128, 512, 28, 1, 1), (256, 1024, 14, 1, 1), (512, 2048, 7, 1, 1)]
_IMAGENET += [(256, 64, 56, 1, 1), (512, 128, 28, 1, 1), (1024, 256, 14, 1, 1), (2048, 512, 7, 1, 1)]
_IMAGENET += [(64, 128, 56, 1, 2), (256, 512, 56, 1, 2), (512, 1024, 28, 1, 2), (1024, 2048, 14, 1, 2)]
# One sample first, so that a budget that ends early has seen every layer.
CASES = [
    *(Case(1, *layer) for layer in _CIFAR + _IMAGENET),
    *(Case(32, *layer) for layer in _CIFAR),
    *(Case(8, *layer) for layer in _IMAGENET),
]


@dataclass(frozen=True)
class ProfileConfig:
    """What `profile` measures.

    Args:
        threads: torch's number of threads; None: what is set.
        out: the table's file; None: where `auto` looks for this device's.
        budget_minutes: no further shape is begun after so many minutes.
        fresh: measure anew what the file has already.
        cases: only shapes with this in their name.
        seed: of inputs and masks.
    """

    threads: int | None = None
    out: str | None = None
    budget_minutes: float = 5
    fresh: bool = False
    cases: str = ""
    seed: int = 0


@dataclass(frozen=True)
class ProfileResult:
    """What a run did.

    Args:
        path: the table's file.
        measured: shapes that this run measured.
        left: wanted shapes that its budget left.
        dense_can_win: names of the wanted shapes at which `auto` may take the dense kernel.
    """

    path: str
    measured: int
    left: int
    dense_can_win: list[str]

    def describe(self) -> str:
        """What the command prints."""
        text = f"Measured {self.measured} shapes; the table is {self.path}"
        if self.left:
            text += f"\n{self.left} shapes are left: run the same command again to go on"
        names = ", ".join(self.dense_can_win) or "no shape"
        return f"{text}\nauto takes the dense kernel, where enough is open, at: {names}"


def profile(
    config: ProfileConfig = ProfileConfig(), clock: Callable[[], float] = time.monotonic
) -> ProfileResult:
    """Measures this machine and writes its latency table.

    Without `out` it is in force from then on, here and elsewhere, unless DDI_LATENCY_TABLE names another.

    Raises:
        ValueError: no such case, a budget or thread count that is not positive, or a file that holds
            something else than this device's table.
        RuntimeError: the compiled kernels are missing.

    Example:
        >>> profile(ProfileConfig(threads=1, budget_minutes=2)).left
        0
    """
    threads = torch.get_num_threads() if config.threads is None else config.threads
    cases = [case for case in CASES if config.cases in case.name]
    _check(config, threads, cases)
    path = table_path() if config.out is None else Path(config.out)
    table = _begin(path, config.fresh)
    known = {row.shape for row in table.rows}
    todo = [case for case in cases if case.shape(threads) not in known]
    torch.manual_seed(config.seed)
    end = clock() + 60 * config.budget_minutes
    measured = 0
    with tqdm(total=len(todo), desc=f"profile, threads {threads}", disable=None) as bar:
        for case in todo:
            if measured and clock() > end:
                break
            bar.set_postfix_str(case.name)
            table = replace(table, rows=(*table.rows, measure_case(case, threads)))
            write_atomic(path, table.dumps().encode())
            measured += 1
            bar.update()
    set_table(None)
    return ProfileResult(str(path), measured, len(todo) - measured, _dense_can_win(table, cases, threads))


def _dense_can_win(table: LatencyTable, cases: list[Case], threads: int) -> list[str]:
    estimates = {row.shape: Estimate(row, 1.0) for row in table.rows}
    known = [(case.name, estimates.get(case.shape(threads))) for case in cases]
    return [name for name, estimate in known if estimate is not None and estimate.dense_can_win]


def _check(config: ProfileConfig, threads: int, cases: list[Case]) -> None:
    with backend("native"):  # says why where there is nothing to measure
        gated_conv2d(torch.ones(1, 1, 1, 1), torch.ones(1, 1, 1, 1))
    if not cases:
        raise ValueError(f"profile: no shape has {config.cases!r} in its name; one is {CASES[0].name!r}")
    if threads < 1:
        raise ValueError(f"profile: threads must be at least 1, got {threads}")
    if not config.budget_minutes > 0:
        raise ValueError(f"profile: budget_minutes must be positive, got {config.budget_minutes}")


def _begin(path: Path, fresh: bool) -> LatencyTable:
    """What the file has of this machine, or an empty table."""
    today = datetime.date.today().isoformat()
    table = LatencyTable(device_name(), current_isa(), torch.__version__, today)
    if fresh or not path.exists():
        return table
    old = read_table(path)
    for name in ("device", "isa", "torch_version"):
        was, now = getattr(old, name), getattr(table, name)
        if was != now:
            raise ValueError(
                f"profile: {path} was measured with {name} {was!r}, here it is {now!r}; "
                "start over with --fresh, or name another file with --out"
            )
    return replace(old, date=today)


def measure_case(case: Case, threads: int) -> Row:
    """Times everything that a row of the table holds, on `threads` threads."""
    size_in = (case.batch, case.ci, case.side, case.side)
    xs = [torch.randn(size_in).contiguous(memory_format=torch.channels_last) for _ in range(_INPUTS)]
    weight = torch.randn(case.co, case.ci, case.kernel, case.kernel) * 0.05
    conv = partial(
        gated_conv2d,
        weight=weight,
        packed=prepack_conv2d(weight),
        stride=case.stride,
        padding=case.kernel // 2,
    )
    providers = _dense_providers(case, conv, xs)
    axes = {size: (_counts(case.ci, size, False), _counts(case.co, size, True)) for size in (_FINE, _ALIGNED)}
    for size, (ins, outs) in axes.items():
        for one, other in itertools.product(ins, outs):
            providers[f"{size} {one} {other}"] = _gated(case, conv, xs, size, one, other)
    # Not beside the dense ones: those leave the heap such that the next large output is new memory.
    providers["plain"] = _native([partial(conv, x) for x in xs])
    # What else runs on the machine only adds, and a choice needs what the kernels take: processor time where
    # one thread does all, and not the median.
    clock = time.thread_time if threads == 1 else time.perf_counter
    with torch.inference_mode(), num_threads(threads):
        timed = time_in_turns(providers, _ROUNDS, _ROUND_SECONDS, clock)
    ms = {name: measured.timing.p20_ms for name, measured in timed.items()}
    grids = {}
    for size, (ins, outs) in axes.items():
        shares_in, shares_out = ([count / counts[-1] for count in counts] for counts in (ins, outs))
        grids[size] = Grid(
            shares_in, shares_out, [[ms[f"{size} {one} {other}"] for other in outs] for one in ins]
        )
    extras = (max(0.0, ms[f"dense {extra}"] - ms["dense"]) for extra in ("in", "out", "relu"))
    in_mask, out_mask, relu = extras
    shape = case.shape(threads)
    return Row(shape, ms["dense"], in_mask, out_mask, relu, ms["plain"], grids[_FINE], grids[_ALIGNED])


def _dense_providers(case: Case, conv: partial[Tensor], xs: list[Tensor]) -> dict[str, Provider]:
    """As `auto` runs them where it prefers dense."""
    half = {"in_mask": _masks(case.batch, case.ci, case.ci // 2)[0]}
    half_out = {"out_mask": _masks(case.batch, case.co, case.co // 2)[0]}
    extras: dict[str, dict[str, Any]]
    extras = {"dense": {}, "dense in": half, "dense out": half_out, "dense relu": {"activation": "relu"}}
    return {
        name: Provider([partial(conv, x, **extra) for x in xs], context=always_dense)
        for name, extra in extras.items()
    }


def _native(calls: Sequence[Callable[[], Tensor]]) -> Provider:
    return Provider(calls, context=partial(backend, "native"))


def _gated(case: Case, conv: partial[Tensor], xs: list[Tensor], size: int, one: int, other: int) -> Provider:
    """The native kernel with `one` and `other` groups of inputs and outputs open."""
    sizes = {"in_group_size": size, "out_group_size": size}
    before, after = _masks(case.batch, case.ci // size, one), _masks(case.batch, case.co // size, other)
    calls = [
        partial(conv, xs[i % len(xs)], in_mask=before[i], out_mask=after[i], **sizes) for i in range(_MASKS)
    ]
    return _native(calls)


def _counts(channels: int, size: int, almost: bool) -> list[int]:
    """Numbers of open groups to measure: a quarter, half, almost all (if asked for), all."""
    groups = channels // size
    counts = {round(groups / 4), round(groups / 2), groups}
    if almost:
        counts.add(groups - max(1, groups // 16))
    return sorted(counts - {0})


def _masks(batch: int, groups: int, count: int) -> list[Tensor]:
    """Random bool[batch, groups], each sample with `count` groups open."""
    ranks = torch.rand(_MASKS, batch, groups).argsort(-1).argsort(-1)
    return list((ranks < count).unbind())
