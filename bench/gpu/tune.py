"""`python -m bench.gpu.tune [--out FILE]`: the fastest of the shipped tiles for each convolution of a ResNet.

Every tile that `pick_tile` can return is timed on the same inputs in a CUDA graph, channels or samples half
open; no others, for these are the ones whose compiled code is checked. The table that results is what the
kernels take on GPUs of this name (ddi_kernels/triton/tuned_tiles.py).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddi.checkpoint import write_atomic
from ddi_kernels import backend, gated_conv2d, skip_conv2d_
from ddi_kernels.triton.tiles import Gpu, Tile, largest_chunk, shipped_tiles
from ddi_kernels.triton.tuned_tiles import shape_key, table_path, use_tiles

from ..rows import header
from .graphs import DTYPE, Masks, Step, choices, images, new_filter, replayed
from .operators import GROWTH

# Channels in, out, side, kernel: of basic blocks, and of bottlenecks four times as wide outside.
SHAPES = [(c, c, s, 3) for c, s in ((64, 56), (128, 28), (256, 14), (512, 7))]
SHAPES += [shape for c, _, s, _ in SHAPES for shape in ((4 * c, c, s, 1), (c, 4 * c, s, 1))]
BATCHES = (64, 8)
KEEP = 0.5

Case = tuple[str, Step, Callable[[int], None]]  # key of the shape; call i; what a replay prepares


def gated_case(ci: int, co: int, side: int, kernel: int, n: int, group: int) -> Case:
    """relu(conv + bias), half of the channels open on both sides."""
    xs, f = images(n, ci, side), new_filter(co, ci, kernel)
    masks = Masks([choices(n, max(channels // group, 1), KEEP) for channels in (ci, co)])

    def run(i: int) -> Tensor:
        return gated_conv2d(
            xs[i], *f, in_mask=masks.now[i][0], out_mask=masks.now[i][1], padding=kernel // 2,
            in_group_size=group, out_group_size=group, activation="relu",
        )  # fmt: skip

    key = shape_key("gated_conv2d", side * side, co, min(group, largest_chunk(DTYPE, ci)), kernel**2, DTYPE)
    return key, run, masks.refresh


def skip_case(ci: int, co: int, side: int, kernel: int, n: int) -> Case:
    """relu(conv + bias) of half of the samples."""
    xs, f, y = images(n, ci, side), new_filter(co, ci, kernel), images(n, co, side)[0]
    masks = Masks([choices(1, n, KEEP)[:, 0]])

    def run(i: int) -> Tensor:
        return skip_conv2d_(y, xs[i], *f, keep=masks.now[i][0], padding=kernel // 2, activation="relu")

    rows = n * side * side
    return shape_key("skip_conv2d", rows, co, largest_chunk(DTYPE, ci), kernel**2, DTYPE), run, masks.refresh


def cases() -> Iterator[Callable[[], Case]]:
    """Each shape of each kernel once, at the batch that matters more."""
    for shape in SHAPES:
        yield from (partial(gated_case, *shape, BATCHES[0], group) for group in (GROWTH, 2 * GROWTH))
        yield from (partial(skip_case, *shape, n) for n in BATCHES)


def fastest(gpu: Gpu, case: Case) -> tuple[str, Tile, dict[Tile, float]]:
    """The key of a case's shape, its best tile, and the milliseconds of all."""
    key, run, refresh = case
    step = int(key.split(" bk")[1].split()[0])
    times: dict[Tile, float] = {}
    for tile in shipped_tiles(DTYPE, gpu):
        if tile.bk == step:
            use_tiles(gpu.name, {key: tile})
            times[tile] = replayed(run, refresh).median
    return key, min(times, key=lambda tile: times[tile]), times


def tune(gpu: Gpu, chosen: Iterator[Callable[[], Case]]) -> dict[str, Tile]:
    """The table of a GPU. The first case of a key decides."""
    table: dict[str, Tile] = {}
    for build in chosen:
        case = build()
        if case[0] not in table:
            key, tile, times = fastest(gpu, case)
            table[key] = tile
            shown = "  ".join(f"{t.bm}x{t.bn} {ms * 1e3:.1f}" for t, ms in times.items())
            print(f"{key:56} {tile.bm}x{tile.bn}  of {shown} us", flush=True)
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
