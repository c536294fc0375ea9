"""ARM: cross-compiled, and run by qemu on processors with and without dot products."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CPU = ROOT / "csrc" / "cpu"
PACKAGES = "Debian packages g++-aarch64-linux-gnu, g++-arm-linux-gnueabihf and qemu-user"


@dataclass(frozen=True)
class Target:
    triplet: str
    emulator: str
    levels: tuple[str, ...]
    processors: dict[str, str]  # what of the levels each has
    multiply_add: str  # by element, as a disassembler writes it

    def tool(self, name: str) -> str:
        return need(f"{self.triplet}-{name}")

    def run(self, processor: str, *command: str | Path, **env: str) -> subprocess.CompletedProcess[str]:
        emulate = [need(self.emulator), "-L", f"/usr/{self.triplet}", "-cpu", processor]
        return run(*emulate, *command, env=os.environ | env)


TARGETS = {
    "aarch64": Target(
        "aarch64-linux-gnu",
        "qemu-aarch64",
        ("scalar", "neon", "neon_dot", "neon_bf16"),
        {"max": "neon_bf16", "neoverse-n1": "neon_dot", "cortex-a53": "neon"},
        r"fmla\s+v\d+\.4s, v\d+\.4s, v\d+\.s\[\d\]",
    ),
    "armv7": Target(
        "arm-linux-gnueabihf",
        "qemu-arm",
        ("scalar", "neon"),
        {"max": "neon", "cortex-a9": "neon"},
        r"vmla\.f32\s+q\d+, q\d+, d\d+\[\d\]",
    ),
}
CHECKS = ("micro_check", "gate_check", "elementwise_check", "driver_check")
ON = [(name, processor) for name, target in TARGETS.items() for processor in target.processors]


def run(*command: str | Path, **kwargs) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(c) for c in command], capture_output=True, text=True, **kwargs)


def need(program: str) -> str:
    path = shutil.which(program)
    if path is None:
        pytest.skip(f"{program} is not installed ({PACKAGES})")
    return path


def compile_file(target: Target, source: Path, folder: Path, *flags: str) -> Path:
    # Notes about an ABI change of GCC 7 are no warnings, but many.
    flags = ("-std=c++17", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror", "-Wno-psabi", *flags)
    compiled = folder / f"{source.name}.o"
    built = run(target.tool("g++"), *flags, f"-I{CPU}", "-c", source, "-o", compiled)
    assert built.returncode == 0, built.stderr
    return compiled


def link(target: Target, program: Path, objects: list[Path], *flags: str) -> Path:
    built = run(target.tool("g++"), *flags, *objects, "-pthread", "-o", program)
    assert built.returncode == 0, built.stderr
    return program


def compile_checks(target: Target, folder: Path, *flags: str) -> None:
    """Leaves the programs of CHECKS in the folder, and the objects of csrc/cpu."""
    need(target.emulator)  # before the work
    objects = [compile_file(target, source, folder, *flags) for source in CPU.rglob("*.cpp")]
    for name in CHECKS:
        main = compile_file(target, ROOT / "tests" / "build" / f"{name}.cpp", folder, *flags)
        link(target, folder / name, [main, *objects], *flags)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """By target, what compile_checks leaves: filled when first asked for."""
    return {name: tmp_path_factory.mktemp(name) for name in TARGETS}


def compiled(folders: dict[str, Path], name: str) -> Path:
    folder = folders[name]
    if not (folder / "driver_check").exists():
        compile_checks(TARGETS[name], folder, "-O1")
    return folder


def check_drivers(target: Target, program: Path, processor: str, isa: str, cases: int) -> None:
    finished = target.run(processor, program, isa, str(cases))
    assert finished.returncode == 0, finished.stdout + finished.stderr
    total = cases + 2 * (cases // 4) + 2 * (cases // 2)
    detected = target.processors[processor]
    assert f"detected {detected}, ran {isa}: {total} cases, 0 failed" in finished.stdout


@pytest.mark.parametrize(("name", "processor"), ON)
def test_drivers(name: str, processor: str, folders: dict[str, Path]) -> None:
    target, program = TARGETS[name], compiled(folders, name) / "driver_check"
    detected = target.levels.index(target.processors[processor])
    for isa in target.levels[: detected + 1]:
        check_drivers(target, program, processor, isa, cases=20)
    for isa in target.levels[detected + 1 :]:
        assert target.run(processor, program, isa, "1").returncode == 2


@pytest.mark.parametrize("name", TARGETS)
def test_micro_kernels(name: str, folders: dict[str, Path]) -> None:
    target, folder = TARGETS[name], compiled(folders, name)
    for isa in target.levels:
        for program, arguments in (("micro_check", ()), ("gate_check", ()), ("elementwise_check", ("30",))):
            finished = target.run("max", folder / program, isa, *arguments)
            assert finished.returncode == 0, finished.stdout + finished.stderr


@pytest.mark.parametrize("name", TARGETS)
def test_micro_files_share_no_code(name: str, folders: dict[str, Path]) -> None:
    # A weak symbol is one that the linker may take from here for the whole library, compiled for
    # instructions that the machine may not have.
    objects = [path for path in compiled(folders, name).glob("micro_*.o") if "neon" in path.name]
    listing = run(TARGETS[name].tool("nm"), "-C", "--defined-only", *objects, check=True).stdout
    symbols = [line.split(" ", 2) for line in listing.splitlines() if re.match("[0-9a-f]{8}", line)]
    public = [(kind, symbol) for _, kind, symbol in symbols if kind.isupper()]
    assert len(public) >= 5
    assert all(kind in "DRT" and symbol.startswith("ddi::") for kind, symbol in public)


ISA_SOURCE = """
#include <cstdio>
#include "base/isa.h"
int main() {
  const char* rejected = ddi::rejected_isa_env();
  std::printf("%s; %s; %s", ddi::isa_names(), ddi::isa_name(ddi::current_isa()),
              rejected == nullptr ? "" : rejected);
}
"""


@pytest.mark.parametrize("name", TARGETS)
def test_levels_and_their_cap(name: str, tmp_path: Path) -> None:
    target, main = TARGETS[name], tmp_path / "main.cpp"
    main.write_text(ISA_SOURCE)
    sources = (main, CPU / "base" / "isa.cpp")
    program = link(
        target, tmp_path / "levels", [compile_file(target, source, tmp_path) for source in sources]
    )
    names = ", ".join(target.levels[:-1]) + " or " + target.levels[-1]
    for cap in ("", *target.levels, "avx2"):
        for processor, detected in target.processors.items():
            known = cap in target.levels
            used = min(cap if known else detected, detected, key=target.levels.index)
            said = target.run(processor, program, DDI_CPU_ISA=cap).stdout
            assert said == f"{names}; {used}; {'' if known else cap}"


def innermost_loops(listing: str) -> list[str]:
    """The instructions of every loop without branches in it, of a disassembly."""
    instructions = re.findall(r"^ +([0-9a-f]+):\t[^\t]*\t(.*)$", listing, re.MULTILINE)
    lines = {int(address, 16): i for i, (address, _) in enumerate(instructions)}
    loops, first = [], 0
    for i, (_, text) in enumerate(instructions):
        branch = re.match(r"(?:b\S*|cbn?z|tbn?z)\t.*?\b([0-9a-f]+) <", text)
        if branch is None:
            continue
        target = lines.get(int(branch[1], 16), len(lines))
        if first <= target <= i:
            loops.append("\n".join(line for _, line in instructions[target : i + 1]))
        first = i + 1
    return loops


@pytest.mark.parametrize("name", TARGETS)
def test_sums_of_a_tile_stay_in_registers(name: str, tmp_path: Path) -> None:
    target = TARGETS[name]
    kernels = compile_file(target, CPU / "micro" / "neon" / "micro_neon.cpp", tmp_path, "-O3")
    listing = run(target.tool("objdump"), "-d", kernels, check=True).stdout
    loops = [(len(re.findall(target.multiply_add, loop)), loop) for loop in innermost_loops(listing)]
    most = max(count for count, _ in loops)
    pixels, rows = {"aarch64": (5, 4), "armv7": (3, 2)}[name]
    assert most == pixels * rows * 4
    for count, loop in loops:
        assert count < most or not re.search(r"\[sp\b|\bsp,", loop), loop


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
def test_drivers_at_length(name: str, tmp_path: Path) -> None:
    target = TARGETS[name]
    compile_checks(target, tmp_path, "-O3")
    for isa in target.levels:
        check_drivers(target, tmp_path / "driver_check", "max", isa, cases=200)


@pytest.mark.slow
def test_drivers_under_sanitizers(tmp_path: Path) -> None:
    # On 32-bit ARM GCC does not watch what intrinsics read and write.
    target = TARGETS["aarch64"]
    sanitize = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")
    compile_checks(target, tmp_path, "-O1", "-g", *sanitize)
    for isa in target.levels:
        no_leaks = {"ASAN_OPTIONS": "detect_leaks=0"}  # they are looked for by what qemu cannot do
        finished = target.run("max", tmp_path / "driver_check", isa, "60", **no_leaks)
        assert finished.returncode == 0, finished.stdout + finished.stderr
        finished = target.run("max", tmp_path / "micro_check", isa, **no_leaks)
        assert finished.returncode == 0, finished.stdout + finished.stderr
