"""Compiles what includes torch, for CUDA and the CPU, against the headers of another torch, not installed.

A machine with a GPU has a torch of its own, and building there costs its time: what does not compile with
that version is found here. Run as `python tests/cuda/other_torch.py 2.11.0`, or `make check-headers`.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "csrc" / "cuda"))
import nvcc_build  # noqa: E402

INCLUDE = "torch/include/"


def unpack_headers(version: str, folder: Path) -> Path:
    """Downloads torch's wheel and unpacks its headers alone."""
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--dest",
        folder,
        f"torch=={version}",
    ]
    subprocess.run(command, check=True)
    (wheel,) = folder.glob("torch-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder, [name for name in archive.namelist() if name.startswith(INCLUDE)])
    return folder / INCLUDE


def main() -> None:
    nvcc = nvcc_build.find_nvcc()
    if nvcc is None:
        sys.exit("nvcc is not found: set CUDACXX or CUDA_HOME, or add it to the PATH")
    # In C++ what depends on torch's version is found before any code is made.
    plain = ["g++", "-std=c++17", "-fsyntax-only", "-fvisibility=hidden", *nvcc_build.STABLE_ABI]
    plain += [f"-I{ROOT}/csrc/cpu", f"-I{ROOT}/csrc/engine"]
    commands = {".cu": [nvcc, *nvcc_build.FLAGS, "-arch=sm_90a", "-c"], ".cpp": plain}
    with tempfile.TemporaryDirectory() as name:
        headers = unpack_headers(sys.argv[1], Path(name))
        include = [headers, headers / "torch" / "csrc" / "api" / "include", sysconfig.get_path("include")]
        folders = [ROOT / "csrc" / name for name in ("cuda", "torch", "bindings")]
        sources = [
            source for folder in folders for source in folder.glob("*.c*") if source.suffix in commands
        ]
        for source in sorted(sources):
            command = [*commands[source.suffix], *(f"-I{path}" for path in include), source]
            if source.suffix == ".cu":
                command += ["-o", Path(name) / "object.o"]
            subprocess.run(command, check=True)
            print(f"{source.name}: compiles with the headers of torch {sys.argv[1]}", flush=True)


if __name__ == "__main__":
    main()
