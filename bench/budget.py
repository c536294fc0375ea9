"""Budgets of the engine on real images: deadlines held beside a busy core, multiply-adds never exceeded.

Deadlines go from 1.5 times the 99th percentile of the shortest exit to a little more than the whole network
takes. Each is asked of 1,000 calls at batch 1, one thread, every call another image, while a process burns
another core. How much of a miss is the machine's own is shown by a loop that spins for 0.8 of the deadline in
turn with the calls; the same network without halting says what a deadline buys. MACs are asked with limits
drawn between the first exit's worst case and the whole network's.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

import ddi
from ddi_kernels import engine

from .rows import write_rows

CHECKPOINT = Path(__file__).parent / "checkpoints" / "cifar_resnet38_both_0.24_s0.safetensors"
SPIN = 0.8  # of a deadline
POINTS = 6


@contextmanager
def busy_core() -> Iterator[None]:
    """A process that does nothing, as fast as it can."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def _quantile(values: list[float], level: float) -> float:
    return torch.tensor(values, dtype=torch.float64).quantile(level).item()


class Bench:
    """A frozen network with exits, test images, and the right answers."""

    def __init__(self, checkpoint: str | Path, folder: str, seed: int) -> None:
        model, meta = ddi.load_model(checkpoint)
        if not getattr(model, "exits", None):
            raise ValueError(
                f"bench budget: {checkpoint} has no branch classifiers; ddi train --exits default adds them"
            )
        data = ddi.data.get_dataset(meta.get("dataset", "scene_digits"))
        split = data.test()
        order = torch.randperm(len(split), generator=torch.Generator().manual_seed(seed))
        self.images = list(data.normalize(split.images[order]).contiguous().split(1))
        self.labels = split.labels[order]
        ddi.freeze(model, self.images[0], f"{folder}/net.ddi")
        self.engine = engine.load(f"{folder}/net.ddi")
        self.generator = torch.Generator().manual_seed(seed)

    def image(self, run: int) -> Tensor:
        return self.images[run % len(self.images)]

    def right(self, run: int, logits: Tensor) -> bool:
        return bool(logits.argmax() == self.labels[run % len(self.images)])

    def call_ms(self, run: int, **limits: Any) -> tuple[float, Tensor]:
        """Milliseconds as the caller sees them, and logits. A report takes time: it is for other calls."""
        x = self.image(run)
        start = perf_counter()
        logits = self.engine(x, **limits)
        return (perf_counter() - start) * 1e3, logits

    def deadlines(self, runs: int) -> list[float]:
        """From 1.5 x the shortest exit's p99 to 1.1 x that of the whole network, evenly by ratio."""
        first = self.engine.exit_worst_macs[0]
        short = _quantile([self.call_ms(i, max_macs=first)[0] for i in range(runs)], 0.99)
        whole = _quantile([self.call_ms(i)[0] for i in range(runs)], 0.99)
        low, high = 1.5 * short, max(1.1 * whole, 2 * short)
        return [low * (high / low) ** (i / (POINTS - 1)) for i in range(POINTS)]


def spin_ms(ms: float) -> float:
    """How long it takes to spin for so many milliseconds."""
    start = perf_counter()
    while (perf_counter() - start) * 1e3 < ms:
        pass
    return (perf_counter() - start) * 1e3


def time_deadline(bench: Bench, deadline: float, runs: int) -> dict[str, Any]:
    """The row of one deadline."""
    times, spins, whole, exits, right = [], [], [], [], 0
    for run in range(runs):
        ms, logits = bench.call_ms(run, deadline_ms=deadline)
        times.append(ms)
        right += bench.right(run, logits)
        exits.append(bench.engine(bench.image(run), deadline_ms=deadline, report=True)[1].exit)
        spins.append(spin_ms(SPIN * deadline))
        whole.append(bench.call_ms(run)[0])
    names = bench.engine.exits
    return {
        "case": "ms",
        "budget_ms": deadline,
        "runs": runs,
        "within_budget_share": sum(ms <= deadline for ms in times) / runs,
        "spin_share": sum(ms <= deadline for ms in spins) / runs,
        "no_halting_share": sum(ms <= deadline for ms in whole) / runs,
        "p50_ms": _quantile(times, 0.5),
        "p99_ms": _quantile(times, 0.99),
        "accuracy": right / runs,
        "exits": {name: exits.count(i) / runs for i, name in enumerate(names)},
    }


def count_exceeded(bench: Bench, runs: int) -> dict[str, Any]:
    """The row of the calls with limits on multiply-adds."""
    low, high = bench.engine.exit_worst_macs[0], bench.engine.exit_worst_macs[-1]
    limits = torch.randint(low, high + 1, (runs,), generator=bench.generator).tolist()
    exceeded, used = 0, 0.0
    exits: list[int] = []
    for run, limit in enumerate(tqdm(limits, desc="MACs", disable=None)):
        _, report = bench.engine(bench.image(run), max_macs=limit, report=True)
        exceeded += report.macs[0] > limit
        used += report.macs[0] / limit
        exits.append(report.exit)
    names = bench.engine.exits
    return {
        "case": "macs",
        "runs": runs,
        "macs_exceeded": exceeded,
        "mean_share_of_budget_used": used / runs,
        "exits": {name: exits.count(i) / runs for i, name in enumerate(names)},
    }


def run(args: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(args.checkpoint, folder, args.seed)
        with busy_core():
            deadlines = tqdm(bench.deadlines(args.runs), desc="deadlines", disable=None)
            rows = [time_deadline(bench, deadline, args.runs) for deadline in deadlines]
        rows.append(count_exceeded(bench, args.mac_runs))
    least = min(rows[:-1], key=lambda row: row["within_budget_share"])
    summary = {
        "case": "summary",
        "checkpoint": Path(args.checkpoint).name,
        "within_budget_share": least["within_budget_share"],
        "spin_share": least["spin_share"],
        "macs_exceeded": rows[-1]["macs_exceeded"],
        "runs": args.runs * len(rows[:-1]) + args.mac_runs,
    }
    rows.append(summary)
    print(_format(rows))
    if args.json:
        write_rows(args.json, rows)


def _format(rows: list[dict[str, Any]]) -> str:
    head = "budget ms  within  spin 0.8  no halting  p50 ms  p99 ms  accuracy"
    lines = [head]
    *deadlines, macs, summary = rows
    for row in deadlines:
        shares = (100 * row[f"{name}_share"] for name in ("within_budget", "spin", "no_halting"))
        within, spin, free = (f"{share:.1f} %" for share in shares)
        times = "  ".join(f"{row[name]:6.3f}" for name in ("p50_ms", "p99_ms"))
        shown = f"{row['budget_ms']:9.3f} {within:>7} {spin:>9} {free:>11}"
        lines.append(f"{shown}  {times}  {100 * row['accuracy']:.2f} %")
    used = 100 * macs["mean_share_of_budget_used"]
    lines.append(
        f"MACs: {macs['macs_exceeded']} of {macs['runs']} budgets exceeded, {used:.0f} % of them used"
    )
    lines.append(f"least share within a deadline: {100 * summary['within_budget_share']:.1f} %")
    return "\n".join(lines)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checkpoint", default=CHECKPOINT, help=f"with exits (default {CHECKPOINT.name})")
    parser.add_argument("--runs", type=int, default=1000, help="of each deadline (default 1000)")
    parser.add_argument("--mac-runs", type=int, default=100_000, help="(default 100000)")
    parser.set_defaults(run=run)
