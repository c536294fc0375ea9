"""`python -m bench.gpu.tune [--out FILE]`: the fastest of the shipped tiles for each convolution of a ResNet.

Every tile that `pick_tile` can return is timed on the same inputs in a CUDA graph, channels or samples half
open; no others, for these are the ones whose compiled code is checked. The table that results is what the
kernels take on GPUs of this name (ddi_kernels/tiles/tuned_tiles.py).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddi.files import write_atomic
from ddi_kernels import backend, gated_conv2d, skip_conv2d_
from ddi_kernels.tiles.tiles import Gpu, Tile, largest_chunk, shipped_tiles
from ddi_kernels.tiles.tuned_tiles import shape_key, table_path, use_tiles

from ..rows import header
from .graphs import DTYPE, Masks, Step, choices, images, new_filter, replayed

# Channels in, out, side, kernel: of basic blocks, and of bottlenecks four times as wide outside.
SHAPES = [(c, c, s, 3) for c, s in ((64, 56), (128, 28), (256, 14), (512, 7))]
SHAPES += [shape for c, _, s, _ in SHAPES for shape in ((4 * c, c, s, 1), (c, 4 * c, s, 1))]
BATCHES, GROUPS = (64, 8), (32, 64)
KEEP = 0.5


@dataclass(frozen=True)
class Case:
    """A convolution to tune."""

    key: str  # of its shape
    step: int  # input channels that a tile takes at a time
    run: Step
    refresh: Callable[[int], None]  # prepares a replay


def gated_case(ci: int, co: int, side: int, kernel: int, n: int, group: int) -> Case:
    """relu(conv + bias), half of the channels open on both sides."""
    xs, f = images(n, ci, side), new_filter(co, ci, kernel)
    masks = Masks([choices(n, max(channels // group, 1), KEEP) for channels in (ci, co)])

    def run(i: int) -> Tensor:
        return gated_conv2d(
            xs[i], *f, in_mask=masks.now[i][0], out_mask=masks.now[i][1], padding=kernel // 2,
            in_group_size=group, out_group_size=group, activation="relu",
        )  # fmt: skip

    step = min(group, largest_chunk(DTYPE, ci))
    key = shape_key("gated_conv2d", side * side, co, step, kernel**2, DTYPE)
    return Case(key, step, run, masks.refresh)


def skip_case(ci: int, co: int, side: int, kernel: int, n: int) -> Case:
    """relu(conv + bias) of half of the samples."""
    xs, f, y = images(n, ci, side), new_filter(co, ci, kernel), images(n, co, side)[0]
    masks = Masks([choices(1, n, KEEP)[:, 0]])

    def run(i: int) -> Tensor:
        return skip_conv2d_(y, xs[i], *f, keep=masks.now[i][0], padding=kernel // 2, activation="relu")

    step = largest_chunk(DTYPE, ci)
    key = shape_key("skip_conv2d", n * side * side, co, step, kernel**2, DTYPE)
    return Case(key, step, run, masks.refresh)


def cases() -> Iterator[Callable[[], Case]]:
    """Each shape of each kernel once, at the batch that matters more."""
    for shape in SHAPES:
        yield from (partial(gated_case, *shape, BATCHES[0], group) for group in GROUPS)
        yield from (partial(skip_case, *shape, n) for n in BATCHES)


def tile_times(gpu: Gpu, case: Case) -> dict[Tile, float]:
    """Milliseconds of a case in each tile that holds it."""
    times: dict[Tile, float] = {}
    for tile in shipped_tiles(DTYPE, gpu):
        if tile.bk == case.step:
            use_tiles(gpu.name, {case.key: tile})
            times[tile] = replayed(case.run, case.refresh).median
    return times


def tune(gpu: Gpu, chosen: Iterator[Callable[[], Case]]) -> dict[str, Tile]:
    """The table of a GPU. The first case of a key decides."""
    table: dict[str, Tile] = {}
    for build in chosen:
        case = build()
        if case.key not in table:
            times = tile_times(gpu, case)
            tile = table[case.key] = min(times, key=lambda tile: times[tile])
            shown = "  ".join(f"{t.bm}x{t.bn} {ms * 1e3:.1f}" for t, ms in times.items())
            print(f"{case.key:56} {tile.bm}x{tile.bn}  of {shown} us", flush=True)
    return table


def write_tiles(path: Path, about: dict[str, Any], tiles: dict[str, Tile]) -> None:
    """Writes a table, an entry a line, with what it was measured on; atomically."""
    entries = {key: [t.bm, t.bn, t.bk, t.warps, t.stages] for key, t in sorted(tiles.items())}
    lines = ",\n".join(f"    {json.dumps(key)}: {sizes}" for key, sizes in entries.items())
    text = json.dumps(about, indent=2)[:-2] + ',\n  "tiles": {\n' + lines + "\n  }\n}\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, text.encode())


def main() -> None:
    from ddi_kernels.triton.implicit_gemm import gpu_of

    parser = argparse.ArgumentParser("bench.gpu.tune")
    parser.add_argument("--out", metavar="FILE", type=Path, help="default: where the kernels look for it")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("bench.gpu.tune: error: no CUDA GPU is visible")
    torch.manual_seed(0)
    gpu = gpu_of(torch.empty(1, device="cuda"))
    with torch.inference_mode(), backend("triton"):
        table = tune(gpu, cases())
    about: dict[str, Any] = {"device": gpu.name} | header()
    write_tiles(args.out or table_path(gpu.name), about, table)


if __name__ == "__main__":
    main()
