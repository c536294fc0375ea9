"""Every shipped tile compiles for every architecture: no spills, tensor cores, prefetch kept.

The kernels are never run here. What is looked for are the ways in which a kernel stays right and
becomes slow: registers spilled to memory, a prefetch that the compiler gave up, narrow copies,
multiplications outside the tensor cores, a longer inner loop.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("TRITON_INTERPRET=1: kernels are interpreted, not compiled", allow_module_level=True)

import cubins  # noqa: E402

from ddi_kernels.tiles.tiles import Tile, shipped_narrow_tiles, shipped_tiles  # noqa: E402

# One of a kind for every architecture, large and small in turn; a compilation takes seconds.
QUICK = {
    80: {Tile(64, 64, 32, 4, 4)},
    90: {Tile(128, 128, 64, 8, 4), Tile(64, 32, 64, 4, 4)},
    100: {Tile(64, 64, 32, 4, 4)},
}
# Instructions of one step of the K loop on sm_90 in bfloat16, gated on both sides.
LOOP = {
    Tile(64, 64, 16, 4, 4): 90,
    Tile(64, 128, 16, 4, 4): 98,
    Tile(64, 64, 32, 4, 4): 119,
    Tile(64, 128, 32, 4, 4): 127,
    Tile(128, 64, 32, 4, 4): 155,
    Tile(128, 128, 32, 8, 4): 116,
    Tile(64, 64, 64, 4, 4): 164,
    Tile(64, 128, 64, 4, 4): 187,
    Tile(128, 64, 64, 4, 4): 235,
    Tile(128, 128, 64, 8, 4): 162,
}


def cases(shipped: Callable[..., list[Tile]] = shipped_tiles, *flags: bool) -> list[Any]:
    found = []
    for sm, gpu in cubins.GPUS.items():
        for dtype in (torch.bfloat16, torch.float32):
            for tile in shipped(dtype, gpu, *flags):
                quick = tile in QUICK[sm] and dtype == torch.bfloat16
                name = f"sm{sm}-{str(dtype)[6:]}-{tile.bm}x{tile.bn}x{tile.bk}"
                marks = () if quick else pytest.mark.slow
                found.append(pytest.param(sm, dtype, tile, id=name, marks=marks))
    return found


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))


def check(
    sm: int, dtype: torch.dtype, tile: Tile, found: dict[str, Any], tensor_cores: bool = True,
    through_registers: bool = False,
) -> None:  # fmt: skip
    assert found["stack"] == 0 and found["local"] == 0, found
    assert found["shared"] <= cubins.GPUS[sm].shared, found
    # One stage is in registers where operands pass through them.
    stages = tile.stages - (sm < 90 or not tensor_cores or through_registers)
    assert found["shared"] >= tile.shared_bytes(dtype.itemsize) * stages // tile.stages, found
    assert (found["tensor_core"][sm] > 0) == tensor_cores, found
    assert found["async_copies"] > 0 and found["wide_copies"] > 0, found


@pytest.mark.parametrize("sm, dtype, tile", cases())
def test_gated_conv2d(sm: int, dtype: torch.dtype, tile: Tile, tmp_path: Path) -> None:
    found = cubins.report(cubins.gated_kernel(tile, dtype, sm), tmp_path)
    check(sm, dtype, tile, found)
    if sm == 90 and dtype == torch.bfloat16:
        assert found["loop"] <= 1.15 * LOOP[tile], found


@pytest.mark.parametrize("form", ["interior", "last"])
@pytest.mark.parametrize("sm, dtype, tile", cases())
def test_gated_conv2d_in_a_block(sm: int, dtype: torch.dtype, tile: Tile, form: str, tmp_path: Path) -> None:
    found = cubins.report(cubins.gated_kernel(tile, dtype, sm, form), tmp_path)
    check(sm, dtype, tile, found)
    if sm == 90 and dtype == torch.bfloat16:
        assert found["loop"] <= 1.15 * LOOP[tile], found


@pytest.mark.parametrize("copy", [False, True], ids=["in_place", "copy"])
@pytest.mark.parametrize("sm, dtype, tile", cases())
def test_skip_conv2d(sm: int, dtype: torch.dtype, tile: Tile, copy: bool, tmp_path: Path) -> None:
    check(sm, dtype, tile, cubins.report(cubins.skip_kernel(tile, dtype, sm, copy=copy), tmp_path))


@pytest.mark.parametrize("sm, dtype, tile", cases(shipped_tiles, True))
def test_dense_layer_middle(sm: int, dtype: torch.dtype, tile: Tile, tmp_path: Path) -> None:
    found = cubins.report(cubins.middle_kernel(tile, dtype, sm), tmp_path)
    check(sm, dtype, tile, found, through_registers=True)


@pytest.mark.parametrize("sm, dtype, tile", cases(shipped_narrow_tiles))
def test_dense_layer_new_channels(sm: int, dtype: torch.dtype, tile: Tile, tmp_path: Path) -> None:
    check(sm, dtype, tile, cubins.report(cubins.new_channels_kernel(tile, dtype, sm), tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("tile", shipped_tiles(torch.bfloat16, cubins.GPUS[90]), ids=str)
def test_gated_conv2d_without_masks(tile: Tile, tmp_path: Path) -> None:
    found = cubins.report(cubins.gated_kernel(tile, torch.bfloat16, 90, "dense"), tmp_path)
    check(90, torch.bfloat16, tile, found)


@pytest.mark.slow
@pytest.mark.parametrize("kernel", [cubins.gated_kernel, cubins.skip_kernel], ids=["gated", "skip"])
@pytest.mark.parametrize("sm", cubins.GPUS)
def test_exact_float32(kernel: Callable[..., Any], sm: int, tmp_path: Path) -> None:
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        (tile,) = shipped_tiles(torch.float32, cubins.GPUS[sm])
    found = cubins.report(kernel(tile, torch.float32, sm, exact=True), tmp_path)
    check(sm, torch.float32, tile, found, tensor_cores=False)


@pytest.mark.parametrize("sm", cubins.GPUS)
def test_gates(sm: int, tmp_path: Path) -> None:
    for lstm in (True, False):
        found = cubins.usage(cubins.gate_kernel(sm, lstm), tmp_path)
        assert found["stack"] == 0 and found["registers"] <= 128, found


@pytest.mark.parametrize("sm", cubins.GPUS)
def test_plans(sm: int) -> None:
    for kernel in (cubins.gated_plan_kernel, cubins.skip_plan_kernel):
        assert kernel(sm).asm["cubin"]
    assert cubins.dense_plan_kernel(sm).asm["cubin"]
    for packed in (False, True):
        assert cubins.means_kernel(sm, packed).asm["cubin"]


@pytest.mark.slow
def test_arguments_that_are_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton makes constants of such arguments, and a constant has not all that a tensor has."""
    tile = Tile(64, 64, 32, 4, 4)
    for ones in (
        {
            "N",
            "tiles",
            "in_chunks",
            "out_chunks",
            "scale_groups",
            "col_tiles",
            "segments",
            "chunks",
            "groups",
        },
        {"OH", "OW", "H", "W", "P", "BM", "CI", "CO", "C", "hidden", "reduced", "in_stride", "out_stride"},
    ):
        monkeypatch.setattr(cubins, "ONES", set(ones))
        for form in ("alone", "interior", "last"):
            assert cubins.gated_kernel(tile, torch.bfloat16, 90, form).asm["cubin"]
        for copy in (False, True):
            assert cubins.skip_kernel(tile, torch.bfloat16, 90, copy=copy).asm["cubin"]
        assert cubins.middle_kernel(tile, torch.bfloat16, 90).asm["cubin"]
        assert cubins.new_channels_kernel(tile, torch.bfloat16, 90).asm["cubin"]
        kernels = [cubins.gated_plan_kernel(90), cubins.skip_plan_kernel(90), cubins.dense_plan_kernel(90)]
        kernels += [f(90, flag) for f in (cubins.gate_kernel, cubins.means_kernel) for flag in (False, True)]
        assert all(kernel.asm["cubin"] for kernel in kernels)


def test_the_report_sees_a_spill(tmp_path: Path) -> None:
    # 128 x 256 sums in four warps are more than 255 registers a thread.
    kernel = cubins.gated_kernel(Tile(128, 256, 64, 4, 3), torch.bfloat16, 80)
    found = cubins.report(kernel, tmp_path)
    assert found["stack"] > 0 and found["local"] > 0
