"""What `make engine` makes: of which sources, how large, and what is in it."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from built import ROOT, Build, run

ENGINE = ROOT / "csrc" / "engine"
ENGINE_SOURCES = sorted(ENGINE.rglob("*.cpp"))
ENGINE_FILES = [*ENGINE_SOURCES, *ENGINE.rglob("*.h")]
# A hint for spinning threads computes nothing.
INTRINSICS = re.compile(
    r"immintrin|arm_neon|isa_region|\b_mm\d*_|\b__m(128|256|512)|#pragma\s+(GCC|clang)|target\(|"
    r"__builtin_ia32_(?!pause\b)|\basm\b"
)
DRIVERS = {"gated_conv2d", "gated_block", "gated_block_int8", "gate_plan", "pool2d"}


def need(program: str) -> str:
    path = shutil.which(program)
    if path is None:
        pytest.skip(f"{program} is not installed")
    return path


def built(source: Path) -> str:
    """Where below build/engine/g++ a source is compiled to, without the suffix."""
    return str(source.relative_to(ROOT / "csrc").with_suffix(""))


def test_the_library_is_the_drivers_and_the_engine() -> None:
    lines = run(need("make"), "-n", "-B", "engine", "CXX=g++", cwd=ROOT).stdout.splitlines()
    linked = {}
    for line in lines:
        if " -c " not in line and (target := re.search(r"-o build/engine/g\+\+/(\S+)", line)):
            linked[target[1]] = set(re.findall(r"build/engine/g\+\+/(\S+)\.(?:o|so)\b", line))
    sources = {built(path) for path in [*(ROOT / "csrc" / "cpu").rglob("*.cpp"), *ENGINE_SOURCES]}
    program = {"engine/cli/ddi_run", "engine/cli/npy"}
    assert sources > program
    assert linked["libddi.so"] == sources - program | {"libddi"}
    assert linked["ddi_run"] == program | {"libddi"}
    compiler = next(line for line in lines if "-c csrc/engine/session.cpp" in line)
    assert not re.search(r"-march|-mtune|-m(avx|sse|fma)", compiler)


def test_no_intrinsics_in_the_engine() -> None:
    pattern_works = INTRINSICS.search((ROOT / "csrc/cpu/micro/avx2/micro_avx2.cpp").read_text())
    found = [(path.name, match[0]) for path in ENGINE_FILES if (match := INTRINSICS.search(path.read_text()))]
    assert pattern_works and found == []


def test_the_engine_calls_drivers_not_kernels(engine_build: Build) -> None:
    called = set()
    for source in ENGINE_SOURCES:
        listing = run(need("nm"), "-C", "--undefined-only", engine_build.folder / f"{built(source)}.o")
        called |= set(re.findall(r"\bU .*?(ddi::(?!engine::)[\w:]+)", listing.stdout))
    assert {f"ddi::{name}" for name in DRIVERS} <= called
    assert [name for name in called if re.search(r"micro|tile|chain|::k[A-Z]", name)] == []


def test_the_engine_computes_nothing_itself(engine_build: Build) -> None:
    # Arithmetic on float32: sums and products of activations are the drivers' business. Times are doubles.
    arithmetic = re.compile(r"\sv?(?:mul|add|sub|div|fn?m(?:add|sub)\d+)[sp]s\s")

    def has_arithmetic(name: str) -> bool:
        code = run(need("objdump"), "-d", "--no-show-raw-insn", engine_build.folder / name).stdout
        if "x86-64" not in code:
            pytest.skip("what is looked for are instructions of x86-64")
        return arithmetic.search(code) is not None

    assert has_arithmetic("cpu/micro/scalar/micro_scalar.o")
    assert [source.stem for source in ENGINE_SOURCES if has_arithmetic(f"{built(source)}.o")] == []


def test_it_is_small(engine_build: Build) -> None:
    sizes = {path.name: path.stat().st_size for path in (engine_build.library, engine_build.program)}
    assert sum(sizes.values()) < 2_000_000, sizes
    assert "no symbols" in run(need("nm"), engine_build.library).stderr  # stripped


def test_it_exports_what_the_header_declares(engine_build: Build) -> None:
    listing = run(need("nm"), "-D", "--defined-only", engine_build.library).stdout
    header = (ROOT / "csrc" / "engine" / "ddi.h").read_text()
    declared = set(re.findall(r"^DDI_API [^;]*?\b(ddi_\w+)\(", header, re.MULTILINE))
    assert {line.split()[-1] for line in listing.splitlines()} == declared
    assert len(declared) == header.count("\nDDI_API ") > 10


def test_it_needs_the_system_only(engine_build: Build) -> None:
    for path in (engine_build.library, engine_build.program):
        needed = re.findall(r"\(NEEDED\).*\[(.*)\]", run(need("readelf"), "-d", path).stdout)
        allowed = re.compile(
            r"(libddi\.so|(libstdc\+\+|libm|libgcc_s|libc|libpthread|ld-linux-.*)\.so\.\d+)$"
        )
        assert "libc.so.6" in needed
        assert [name for name in needed if not allowed.match(name)] == []
