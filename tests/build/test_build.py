"""The compiled library: what it links to, where newer instructions may be, how a build may fail."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import ddi

ROOT = Path(__file__).resolve().parents[2]
CPU = ROOT / "csrc" / "cpu"
CPU_SOURCES = sorted(CPU.rglob("*.cpp"))
# Of this architecture; test_arm.py has the others.
OTHERS = "neon" if platform.machine() in ("x86_64", "AMD64") else "avx"
MICRO_SOURCES = [p for p in CPU_SOURCES if p.stem.startswith("micro_") and OTHERS not in p.stem]
# The others take half a minute each; `make lint` compiles them, too.
QUICK = {"micro_scalar", "micro_avx2", "micro_neon"}


def run(*command: str | Path, **kwargs) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(c) for c in command], capture_output=True, text=True, **kwargs)


def need(program: str) -> str:
    path = shutil.which(program)
    if path is None:
        pytest.skip(f"{program} is not installed")
    return path


@pytest.fixture
def library() -> Path:
    compiled = pytest.importorskip("ddi_kernels._C", reason="ddi_kernels._C is not built")
    return Path(compiled.__file__)


def test_library_needs_only_the_stable_abi(library: Path) -> None:
    listing = run(need("nm"), "-DC", "--undefined-only", library, check=True).stdout
    assert "torch_parallel_for" in listing  # the listing is of what we think
    bound = [line for line in listing.splitlines() if re.search(r"\b(at|c10|torch)::", line)]
    assert bound == []


def test_library_exports_only_its_entry_point(library: Path) -> None:
    listing = run(need("nm"), "-DC", "--defined-only", library, check=True).stdout
    ours = [line.split()[-1] for line in listing.splitlines() if " T " in line]
    assert [name for name in ours if not name.startswith("_")] == ["PyInit__C"]


def test_all_sources_are_in_the_build() -> None:
    folders = {path.parent.relative_to(ROOT / "csrc") for path in (ROOT / "csrc").rglob("*.cpp")}
    outside = {str(folder) for folder in folders if folder.parts[0] != "cpu"}
    engine = {"engine", "engine/plan", "engine/ops", "engine/cli"}
    assert outside == {"torch", "bindings", *engine}  # what setup.py takes


def test_build_uses_no_machine_flags(library: Path) -> None:
    info = json.loads((library.parent / "_build_info.json").read_text())
    assert info["built"] is True and info["reason"] == ""
    assert "-O3" in info["flags"]
    command = info["flags"] + info["compiler"].split()
    assert not [flag for flag in command if flag.startswith(("-march", "-mtune", "-mavx", "-mfma"))]


def test_intrinsics_are_in_micro_files_only() -> None:
    pattern = re.compile(r"immintrin|\b_mm\d*_|\b__m(128|256|512)|<arm_neon|\bfloat32x")
    found = {path for path in (ROOT / "csrc").rglob("*.[ch]*") if pattern.search(path.read_text())}
    elsewhere = [path.name for path in found if not path.name.startswith("micro_")]
    assert found and not elsewhere


@pytest.mark.parametrize("compiler", ["g++", "clang++"])
@pytest.mark.parametrize(
    "source",
    [pytest.param(p, id=p.stem, marks=() if p.stem in QUICK else pytest.mark.slow) for p in MICRO_SOURCES],
)
def test_micro_files_share_no_code(compiler: str, source: Path, tmp_path: Path) -> None:
    # A weak symbol is one that the linker may take from here for the whole library, compiled for
    # instructions that the machine may not have.
    object_file = tmp_path / "micro.o"
    flags = ["-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", f"-I{CPU}", "-c"]
    compiled = run(need(compiler), *flags, source, "-o", object_file)
    assert compiled.returncode == 0, compiled.stderr
    listing = run(need("nm"), "-C", "--defined-only", object_file, check=True).stdout
    public = [line.split(" ", 2) for line in listing.splitlines() if line.split()[1].isupper()]
    # Tables, and functions that one micro file calls in another; all strong, so each has one definition.
    assert public and all(kind in "DRT" and name.startswith("ddi::") for _, kind, name in public)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of what a build needs."""
    for name in ("setup.py", "pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "csrc", tmp_path / "csrc")
    for name in ("ddi_kernels", "python/ddi"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "__init__.py").touch()
    return tmp_path


def build(project: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    command = (sys.executable, "setup.py", "build_ext", "--inplace")
    return run(*command, cwd=project, env=os.environ | variables)


def build_info(project: Path) -> dict[str, object]:
    return json.loads((project / "ddi_kernels" / "_build_info.json").read_text())


# Says its version, but compiles nothing.
BROKEN_COMPILER = """#!/bin/sh
case "$*" in
  *.cpp*) echo "broken-c++: no such header" >&2; exit 1 ;;
esac
echo "g++ (GCC) 12.2.0"
"""


@pytest.fixture
def failing_compiler(tmp_path_factory: pytest.TempPathFactory) -> str:
    script = tmp_path_factory.mktemp("bin") / "broken-c++"
    script.write_text(BROKEN_COMPILER)
    script.chmod(0o755)
    return str(script)


def test_install_goes_on_without_a_compiler(project: Path, failing_compiler: str) -> None:
    stale = project / "ddi_kernels" / "_C.abi3.so"
    stale.touch()
    built = build(project, CXX=failing_compiler, CC=failing_compiler)
    assert built.returncode == 0, built.stderr
    assert not stale.exists()
    info = build_info(project)
    assert info["built"] is False
    assert "broken-c++: no such header" in str(info["reason"])
    assert "no compiled operators" in built.stderr


def test_required_build_fails_without_a_compiler(project: Path, failing_compiler: str) -> None:
    built = build(project, CXX=failing_compiler, CC=failing_compiler, DDI_REQUIRE_C="1")
    assert built.returncode != 0
    assert "broken-c++: no such header" in built.stderr


def test_build_none(project: Path) -> None:
    assert build(project, DDI_BUILD="none").returncode == 0
    info = build_info(project)
    assert info["built"] is False and info["reason"] == "DDI_BUILD=none"
    assert not list((project / "ddi_kernels").glob("_C*"))


def test_unknown_build_modes_are_errors(project: Path) -> None:
    built = build(project, DDI_BUILD="everything")
    assert built.returncode != 0
    assert "DDI_BUILD=everything" in built.stderr and "cpu" in built.stderr


def test_build_cuda_does_not_go_on_without_a_compiler(project: Path, failing_compiler: str) -> None:
    built = build(project, DDI_BUILD="cuda", CXX=failing_compiler, CC=failing_compiler)
    assert built.returncode != 0
    assert "DDI_BUILD=cuda, but no CUDA operators: the CPU operators were not built" in built.stderr


def test_version_is_that_of_the_project() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    assert f'version = "{ddi.__version__}"' in text
