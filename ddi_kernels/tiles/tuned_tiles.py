"""Tiles that were the fastest on a GPU of this name, by the shape of a convolution: a table of measurements.

`python -m bench.gpu.tune` measures the shipped tiles and writes tables/tiles/<gpu>.json. Shapes that no table
knows take what tiles.py picks. Nothing is measured while a program runs.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import torch

from ddi_kernels.tiles.tiles import Gpu, Tile

_FOLDER = Path(__file__).parents[1] / "tables" / "tiles"
_tables: dict[str, dict[str, Tile]] = {}


def shape_key(kernel: str, rows: int, co: int, bk: int, taps: int, dtype: torch.dtype) -> str:
    """The entry of a convolution: rows of its GEMM to a power of two, the rest as it is.

    Args:
        kernel: the operator whose loop it runs.
        rows, co, bk: as in `tiles.pick_tile`.
        taps: of the filter.

    Example:
        >>> shape_key("gated_conv2d", 784, 128, 64, 9, torch.bfloat16)
        'gated_conv2d bfloat16 rows512 co128 bk64 taps9'
    """
    name = str(dtype).removeprefix("torch.")
    return f"{kernel} {name} rows{1 << rows.bit_length() - 1} co{co} bk{bk} taps{taps}"


def tuned_tile(key: str, gpu: Gpu) -> Tile | None:
    """The fastest tile of a `shape_key`, None where none was measured."""
    table = _tables.get(gpu.name)
    if table is None:
        path = table_path(gpu.name)
        table = _tables[gpu.name] = read_tiles(path) if gpu.name and path.exists() else {}
    return table.get(key)


def table_path(gpu_name: str) -> Path:
    """Where the table of a GPU lies."""
    return _FOLDER / (re.sub("[^a-z0-9]+", "-", gpu_name.lower()).strip("-") + ".json")


def use_tiles(gpu_name: str, tiles: dict[str, Tile]) -> None:
    """Puts a table in force for this process."""
    _tables[gpu_name] = tiles


def read_tiles(path: Path) -> dict[str, Tile]:
    """The tiles of a table by `shape_key`.

    Raises:
        ValueError: the file is none.
    """
    try:
        entries = json.loads(path.read_text())["tiles"]
        return {key: Tile(*(int(size) for size in sizes)) for key, sizes in entries.items()}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is no table of tiles: {error}. Delete it or measure it anew") from error
