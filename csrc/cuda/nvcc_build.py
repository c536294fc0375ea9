"""Builds ddi_kernels._C_cuda with nvcc, from every .cu file beside this one.

Used by setup.py and by the tests, which build the library alone. `build` asks for the toolkit and torch's
headers, never for a GPU or for a torch with CUDA.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
from pathlib import Path

import torch
from torch.utils import cpp_extension

HERE = Path(__file__).resolve().parent
NAME = "_C_cuda.abi3.so"
FLAGS = ["-O3", "-std=c++17", "-Xcompiler", "-fPIC,-fvisibility=hidden", "-cudart", "static"]
FLAGS += ["--threads", "0"]  # files and GPUs side by side
# The stable ABI of torch 2.10 and Python's limited API are what is linked to.
STABLE_ABI = ["-DTORCH_TARGET_VERSION=0x020a000000000000"]
FLAGS += [*STABLE_ABI, "-DPy_LIMITED_API=0x030b0000"]


def torch_has_cuda() -> bool:
    """Whether the torch here could ever run a CUDA operator; if not, minutes of nvcc are for nothing."""
    return torch.version.cuda is not None


def find_nvcc() -> str | None:
    """The compiler: CUDACXX, the one on the PATH, or that of CUDA_HOME."""
    home = cpp_extension.CUDA_HOME
    for name in (os.environ.get("CUDACXX"), "nvcc", home and os.path.join(home, "bin", "nvcc")):
        path = shutil.which(name) if name else None
        if path:
            return path
    return None


def architectures(nvcc: str) -> list[str]:
    """Ampere with PTX for all later GPUs, Hopper, and Blackwell where nvcc knows it."""
    known = subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True).stdout.split()
    flags = ["-gencode=arch=compute_80,code=[sm_80,compute_80]"]
    for version in ("90", "100"):
        if f"compute_{version}" in known:
            flags.append(f"-gencode=arch=compute_{version}a,code=sm_{version}a")
    return flags


def build(folder: Path, *extra_flags: str) -> tuple[str, str]:
    """Compiles and links the library into `folder`.

    Returns:
        Why it could not be built, empty if it was; and what the compiler printed.
    """
    nvcc = find_nvcc()
    if nvcc is None:
        return "nvcc is not found: set CUDACXX or CUDA_HOME, or add it to the PATH", ""
    folder.mkdir(parents=True, exist_ok=True)
    include = [*cpp_extension.include_paths(), sysconfig.get_path("include")]
    sources = map(str, sorted(HERE.glob("*.cu")))
    # Linked by name: Python loads the library with all symbols bound at once.
    libraries = [*(f"-L{path}" for path in cpp_extension.library_paths()), "-ltorch_cpu", "-lc10"]
    try:
        command = [nvcc, *FLAGS, *architectures(nvcc), *extra_flags, *(f"-I{path}" for path in include)]
        command += [*sources, "-shared", *libraries, "-o", str(folder / NAME)]
        run = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    except OSError as error:
        return str(error), ""
    if run.returncode != 0:
        return "\n".join(run.stdout.splitlines()[-20:]) or "nvcc failed", run.stdout
    return "", run.stdout
