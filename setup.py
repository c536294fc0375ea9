"""Builds the compiled operators, ddi_kernels._C, and records how that went.

Environment:
    DDI_BUILD: "auto" (default) and "cpu" build the CPU operators, "none" builds nothing. "cuda" is
        an error as long as there are no CUDA sources. What hardware is present is never asked.
    DDI_REQUIRE_C: "1" makes a failed build an error. Otherwise the install goes on without
        compiled operators, the reference is used, and ddi_kernels/_build_info.json says why.
    MAX_JOBS: how many compilers run at a time.
"""

import glob
import json
import os
import sys
import tempfile
import warnings
from contextlib import contextmanager
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext as PlainBuildExt

ROOT = Path(__file__).resolve().parent
MODE = os.environ.get("DDI_BUILD", "auto")
REQUIRED = os.environ.get("DDI_REQUIRE_C") == "1"
MODES = ("none", "cpu", "cuda", "auto")

# Baseline flags: newer instructions are used only inside marked regions (csrc/cpu/isa_region.h) and
# picked at run time. The stable ABI of torch 2.10 and Python's limited API are what is linked to.
FLAGS = [
    "-O3",
    "-g0",
    "-std=c++17",
    "-fvisibility=hidden",
    "-ffp-contract=off",
    "-DTORCH_TARGET_VERSION=0x020a000000000000",
    f"-ffile-prefix-map={ROOT}/=",
]

if MODE not in MODES:
    sys.exit(f"DDI_BUILD={MODE}: expected one of {', '.join(MODES)}")
if MODE == "cuda":
    sys.exit("DDI_BUILD=cuda: this version has no CUDA sources; use cpu, auto or none")
try:
    from torch.utils import cpp_extension

    TORCH_ERROR = ""
except ImportError as error:
    cpp_extension = None
    TORCH_ERROR = f"torch could not be imported while building: {error}"
    FLAGS.clear()


def extension() -> Extension:
    sources = sorted(glob.glob("csrc/cpu/*.cpp") + glob.glob("csrc/torch/*.cpp"))
    headers = sorted(glob.glob("csrc/*/*.h"))
    if cpp_extension is None:
        return Extension("ddi_kernels._C", sources, depends=headers, py_limited_api=True)
    return cpp_extension.CppExtension(
        "ddi_kernels._C",
        sources,
        depends=headers,
        extra_compile_args=FLAGS,
        py_limited_api=True,
    )


@contextmanager
def captured_output(tail: list[str]):
    """Sends what compilers print to a file, then shows it; keeps its last lines in `tail`."""
    sys.stdout.flush()
    sys.stderr.flush()
    saved = os.dup(1), os.dup(2)
    with tempfile.TemporaryFile() as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        try:
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for target, copy in zip((1, 2), saved, strict=True):
                os.dup2(copy, target)
                os.close(copy)
            log.seek(0)
            text = log.read().decode(errors="replace")
            print(text, end="")
            tail.extend(line for line in text.splitlines() if line.strip())


class BuildExt(cpp_extension.BuildExtension if cpp_extension else PlainBuildExt):
    """Builds _C if it can, and writes _build_info.json either way."""

    def run(self) -> None:
        inplace = bool(self.inplace)  # setuptools clears it while it builds, and after a failure
        reason = "DDI_BUILD=none" if MODE == "none" else TORCH_ERROR
        if not reason:
            reason = self.compile()
        if reason and REQUIRED:
            sys.exit(f"ddi-kernels: no compiled operators, but DDI_REQUIRE_C=1: {reason}")
        if reason:
            self.extensions = []
            if MODE != "none":
                warnings.warn(f"ddi-kernels: no compiled operators: {reason}", stacklevel=1)
        self.record(reason, ROOT if inplace else Path(self.build_lib))

    def compile(self) -> str:
        """Compiles and links; returns why it could not, or an empty string."""
        output: list[str] = []
        try:
            with captured_output(output):
                super().run()
        except (Exception, SystemExit) as error:  # a missing or failing compiler, in all its forms
            return "\n".join([*output[-20:], str(error)])
        return ""

    def record(self, reason: str, root: Path) -> None:
        package = root / "ddi_kernels"
        package.mkdir(parents=True, exist_ok=True)
        if reason:
            for stale in package.glob("_C*.so"):
                stale.unlink()
        compiler = getattr(getattr(self, "compiler", None), "compiler_cxx", None) or []
        info = {
            "built": not reason,
            "reason": reason,
            "compiler": " ".join(compiler),
            "flags": [flag for flag in FLAGS if not flag.startswith("-ffile-prefix-map")],
        }
        (package / "_build_info.json").write_text(json.dumps(info, indent=2) + "\n")


def packages() -> list[str]:
    kernels = find_packages("ddi_kernels")
    framework = find_packages("python/ddi")
    return ["ddi_kernels", *(f"ddi_kernels.{p}" for p in kernels), "ddi"] + [f"ddi.{p}" for p in framework]


setup(
    packages=packages(),
    package_dir={"ddi_kernels": "ddi_kernels", "ddi": "python/ddi"},
    ext_modules=[extension()],
    cmdclass={"build_ext": BuildExt},
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
