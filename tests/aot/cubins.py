"""Compiles Triton kernels for GPUs that are not there, and reads from the cubins what they cost."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from ddi_kernels.tiles.tiles import Gpu, Tile
from ddi_kernels.triton import gate_plan, gated_block, gated_conv2d, gated_dense_layer, skip_conv2d

GPUS = {gpu.capability: gpu for gpu in (Gpu(80, 163 * 1024), Gpu(90, 227 * 1024), Gpu(100, 227 * 1024))}
# What a tensor-core instruction on 16-bit operands is called there.
TENSOR_CORE = {80: r"\bHMMA", 90: r"\bHGMMA", 100: r"\bUTC[A-Z]*MMA"}
ONES: set[str] = set()  # integers that kernels are compiled for the value 1 of
_TYPES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}
_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
_FILTER = {"KH": 3, "KW": 3, "SH": 1, "SW": 1, "PH": 1, "PW": 1, "DH": 1, "DW": 1}


def compiled(kernel: Any, types: dict[str, str], constants: dict[str, Any], sm: int, **options: int) -> Any:
    """The kernel for one architecture; arguments that are neither typed nor constant are an error.

    Pointers and channel counts are divisible by 16, as they are for torch tensors of such channels.
    """
    # As Triton does with an argument that is 1.
    constants = constants | {name: 1 for name in ONES if name in types}
    types = {name: kind for name, kind in types.items() if name not in ONES}
    place = {name: i for i, name in enumerate(kernel.arg_names)}
    channels = ("CI", "CO", "X_WIDTH", "Y_WIDTH")
    aligned = [name for name, kind in types.items() if kind.startswith("*") or name in channels]
    source = ASTSource(
        fn=kernel,
        signature={n: "constexpr" if n in constants else types[n] for n in kernel.arg_names},
        constexprs={(place[n],): value for n, value in constants.items()},
        attrs={(place[n],): [["tt.divisibility", 16]] for n in aligned},
    )
    return triton.compile(source, target=GPUTarget("cuda", sm, 32), options=options)


def gated_kernel(tile: Tile, dtype: torch.dtype, sm: int, form: str = "alone", exact: bool = False) -> Any:
    """K1 in one tile: a 3x3 convolution in one of its forms.

    "alone": every epilogue of gated_conv2d, gated on both sides; "dense": the same without masks;
    "interior" and "last": inside a block with skipped samples, the second one summing up its outputs.
    """
    kind = _TYPES[dtype]
    types = {f"{n}_ptr": f"*{kind}" for n in ("x", "w", "bias", "scale", "residual", "y")}
    types |= {f"{side}_{n}_ptr": "*i32" for side in ("in", "out") for n in ("list", "count")}
    types |= {"keep_ptr": "*u8", "sums_ptr": "*fp32"}
    numbers = "N H W OH OW CI CO X_WIDTH Y_WIDTH in_chunks out_chunks tiles scale_groups scale_group_size"
    types |= dict.fromkeys(numbers.split(), "i32")
    absent = {
        "alone": ["keep_ptr", "sums_ptr"],
        "dense": [n for n in types if "list" in n or "count" in n] + ["keep_ptr", "sums_ptr"],
        "interior": ["residual_ptr", "sums_ptr"],
        "last": ["out_list_ptr", "out_count_ptr"],
    }[form]
    constants = _constants(tile, exact) | dict.fromkeys(absent)
    constants["CHUNK"] = tile.bk if form in ("alone", "interior") else tile.bn
    constants |= {"IN_COMPACT": form in ("interior", "last"), "OUT_COMPACT": form == "interior"}
    constants["LEAVE"] = form == "last"  # where it is in place, as blocks of a stage are
    types = {name: kind for name, kind in types.items() if name not in constants}
    return compiled(gated_conv2d._gated_conv2d_fwd_kernel, types, constants, sm, **_options(tile))


def skip_kernel(tile: Tile, dtype: torch.dtype, sm: int, exact: bool = False, copy: bool = False) -> Any:
    """K2 in one tile: a 3x3 convolution with a residual; `copy`: the last one of a block."""
    types = {f"{n}_ptr": f"*{_TYPES[dtype]}" for n in ("x", "w", "bias", "scale", "residual", "y")}
    types |= {"list_ptr": "*i32", "count_ptr": "*i32", "sums_ptr": "*fp32"}
    types |= dict.fromkeys("N H W OH OW CI CO col_tiles segments".split(), "i32")
    constants = _constants(tile, exact) | {"COPY": copy}
    if not copy:
        del types["sums_ptr"]
        constants["sums_ptr"] = None
    return compiled(skip_conv2d._skip_conv2d_fwd_kernel, types, constants, sm, **_options(tile))


def middle_kernel(tile: Tile, dtype: torch.dtype, sm: int) -> Any:
    """A dense layer's 1x1 convolution in one tile, gated on both sides."""
    kind = _TYPES[dtype]
    types = {f"{n}_ptr": f"*{kind}" for n in ("x", "scale", "shift", "w", "bias", "h")}
    types |= {"out_mask_ptr": "*u8", "list_ptr": "*i32", "words_ptr": "*i64", "count_ptr": "*i32"}
    types |= dict.fromkeys("N P CI CO X_WIDTH chunks groups tiles".split(), "i32")
    constants = {"BM": tile.bm, "BN": tile.bn, "BK": tile.bk, "GROUPS": 4, "EXACT": False, "UP": False}
    return compiled(gated_dense_layer._middle_kernel, types, constants, sm, **_options(tile))


def new_channels_kernel(tile: Tile, dtype: torch.dtype, sm: int) -> Any:
    """A dense layer's 3x3 convolution in one tile, in place and with means."""
    types = {f"{n}_ptr": f"*{_TYPES[dtype]}" for n in ("h", "w", "bias", "y")}
    types |= {"out_mask_ptr": "*u8", "sums_ptr": "*fp32"}
    types |= dict.fromkeys("H W CI CO Y_WIDTH groups group_size tiles".split(), "i32")
    constants = {"BM": tile.bm, "BN": tile.bn, "BK": tile.bk, "GROUPS": 4, "EXACT": False, "UP": False}
    constants["LEAVE"] = True
    return compiled(gated_dense_layer._new_channels_kernel, types, constants, sm, **_options(tile))


def _constants(tile: Tile, exact: bool) -> dict[str, Any]:
    blocks = {"BM": tile.bm, "BN": tile.bn, "BK": tile.bk}
    return _FILTER | blocks | {"RELU": True, "EXACT": exact, "UP": False}


def _options(tile: Tile) -> dict[str, int]:
    return {"num_warps": tile.warps, "num_stages": tile.stages}


def usage(kernel: Any, tmp_path: Path) -> dict[str, Any]:
    """Registers, stack and shared memory of any kernel."""
    text = _read("cuobjdump", "-res-usage", kernel, tmp_path)

    def number(name: str) -> int:
        found = re.search(rf"{name}:(\d+)", text)
        assert found, f"no {name} in: {text}"
        return int(found.group(1))

    return {"registers": number("REG"), "stack": number("STACK"), "shared": kernel.metadata.shared}


def _read(tool: str, option: str, kernel: Any, tmp_path: Path) -> str:
    cubin = tmp_path / "kernel.cubin"
    cubin.write_bytes(kernel.asm["cubin"])
    return subprocess.run([_TOOLS / tool, option, cubin], capture_output=True, text=True, check=True).stdout


def report(kernel: Any, tmp_path: Path) -> dict[str, Any]:
    """Of a convolution: its usage, and instruction counts from its disassembly."""
    sass = _read("nvdisasm", "-c", kernel, tmp_path)
    return usage(kernel, tmp_path) | {
        "local": len(re.findall(r"\b(?:LDL|STL)\b", sass)),
        "tensor_core": {sm: len(re.findall(name, sass)) for sm, name in TENSOR_CORE.items()},
        "async_copies": len(re.findall(r"\bLDGSTS", sass)),
        "wide_copies": len(re.findall(r"cp\.async\.cg\.shared\.global[^;]*0x10", kernel.asm["ptx"])),
        "loop": _loop_length(sass),
    }


def _loop_length(sass: str) -> int:
    """Instructions of the shortest loop around a multiplication: one step of the K loop."""
    labels: dict[str, int] = {}
    multiplies: list[int] = []
    lengths: list[int] = []
    count = 0
    for line in sass.splitlines():
        label = re.match(r"(\.L_x_\d+):", line)
        if label:
            labels[label.group(1)] = count
        elif re.match(r"\s+/\*[0-9a-f]+\*/", line):
            count += 1
            if re.search(r"\b(HMMA|HGMMA|UTC[A-Z]*MMA|FFMA)", line):
                multiplies.append(count)
            target = re.search(r"\bBRA\b.*`\((\.L_x_\d+)\)", line)
            start = labels.get(target.group(1)) if target else None
            if start is not None and any(start < m <= count for m in multiplies):
                lengths.append(count - start)
    assert lengths, "no loop with a multiplication"
    return min(lengths)


def gated_plan_kernel(sm: int) -> Any:
    """The kernel that sorts the chunks of both masks."""
    types = {}
    for side in ("in", "out"):
        types |= {f"{side}_mask_ptr": "*u8", f"{side}_list_ptr": "*i32", f"{side}_count_ptr": "*i32"}
        types |= {f"{side}_stride": "i32", f"{side}_chunks": "i32"}
    constants = {"IN_PER_GROUP": 1, "IN_BLOCK": 32, "OUT_PER_GROUP": 2, "OUT_BLOCK": 16}
    return compiled(gated_conv2d._gated_conv2d_plan_kernel, types, constants, sm)


def skip_plan_kernel(sm: int) -> Any:
    """The kernel that lists the kept samples."""
    types = {"keep_ptr": "*u8", "list_ptr": "*i32", "count_ptr": "*i32", "N": "i32"}
    return compiled(skip_conv2d._skip_conv2d_plan_kernel, types, {"BLOCK": 1024}, sm)


def means_kernel(sm: int, packed: bool) -> Any:
    """The kernel that adds up a block's sums, of tiles packed over the kept samples or not."""
    types = {"sums_ptr": "*fp32", "keep_ptr": "*u8", "x_pooled_ptr": "*fp32", "pooled_ptr": "*fp32"}
    types |= dict.fromkeys(("P", "CO", "tiles", "BM"), "i32")
    constants: dict[str, Any] = {"BLOCK": 128}
    if packed:
        types["list_ptr"] = "*i32"
    else:
        constants["list_ptr"] = None
    return compiled(gated_block._pooled_means_kernel, types, constants, sm)


def gate_kernel(sm: int, lstm: bool) -> Any:
    """The gates of a block: both of them on an LSTM, or the channel gate alone."""
    pointers = "means_ptr h_ptr c_ptr h_next_ptr c_next_ptr reduce reduce_bias expand expand_bias"
    recurrent = "project project_bias w_ih w_hh b_ih b_hh layer layer_bias"
    types = dict.fromkeys(pointers.split() + (recurrent.split() if lstm else []), "*fp32")
    types |= {"keep_ptr": "*u8", "open_ptr": "*u8", "threshold": "fp32"}
    types |= dict.fromkeys("C hidden reduced groups".split(), "i32")
    constants: dict[str, Any] = {} if lstm else dict.fromkeys(recurrent.split())
    constants |= {"HIDDEN": 16, "REDUCED": 16, "PIECE": gate_plan._PIECE}
    return compiled(gate_plan._gate_plan_kernel, types, constants, sm)


def dense_plan_kernel(sm: int) -> Any:
    """The kernel that lists the open chunks of a concatenation."""
    types = {"bits_ptr": "*u8", "list_ptr": "*i32", "words_ptr": "*i64", "count_ptr": "*i32"}
    types |= {"C": "i32", "chunks": "i32"}
    return compiled(gated_dense_layer._input_plan_kernel, types, {"CHUNK": 32, "BLOCK": 64}, sm)
