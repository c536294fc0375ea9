"""Builds the operators, ddi_kernels._C and ._C_cuda, and the engine, ._engine, and records how that went.

Environment:
    DDI_BUILD: "cpu" builds the CPU operators; "auto" (default) the CUDA ones too, if torch has CUDA and
        nvcc is there and can; "cuda" both, or fails; "none" nothing. What hardware is present is never asked.
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

# Baseline flags: newer instructions are used only inside marked regions (csrc/cpu/base/isa_region.h) and
# picked at run time.
FLAGS = ["-O3", "-g0", "-std=c++17", "-fvisibility=hidden", "-ffp-contract=off"]
FLAGS += [f"-ffile-prefix-map={ROOT}/="]

if MODE not in MODES:
    sys.exit(f"DDI_BUILD={MODE}: expected one of {', '.join(MODES)}")
try:
    from torch.utils import cpp_extension

    sys.path.insert(0, str(ROOT / "csrc" / "cuda"))
    import nvcc_build

    FLAGS += nvcc_build.STABLE_ABI
    TORCH_ERROR = ""
except ImportError as error:
    cpp_extension = None
    TORCH_ERROR = f"torch could not be imported while building: {error}"
    FLAGS.clear()


CPU_SOURCES = sorted(glob.glob("csrc/cpu/**/*.cpp", recursive=True))
# Without cli/, which is a program.
ENGINE_SOURCES = [s for s in glob.glob("csrc/engine/**/*.cpp", recursive=True) if "/cli/" not in s]


def extensions() -> list[Extension]:
    """The operators, and the engine, which links the drivers as they were compiled for the operators."""
    headers = sorted(glob.glob("csrc/**/*.h", recursive=True))
    sources = CPU_SOURCES + sorted(glob.glob("csrc/torch/*.cpp"))
    engine = sorted(ENGINE_SOURCES + glob.glob("csrc/bindings/*.cpp"))
    if cpp_extension is None:
        return [Extension("ddi_kernels._C", sources), Extension("ddi_kernels._engine", engine)]
    options = {"depends": headers, "extra_compile_args": FLAGS}
    cpu = f"{ROOT}/csrc/cpu"
    return [
        cpp_extension.CppExtension(
            "ddi_kernels._C", sources, include_dirs=[cpu], py_limited_api=True, **options
        ),
        # Of torch only pybind11, which it ships.
        Extension(
            "ddi_kernels._engine",
            engine,
            include_dirs=[cpu, f"{ROOT}/csrc/engine", *cpp_extension.include_paths()],
            language="c++",
            **options,
        ),
    ]


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
        package = (ROOT if inplace else Path(self.build_lib)) / "ddi_kernels"
        self.record(reason, self.compile_cuda(reason, package), package)

    def compile(self) -> str:
        """Compiles and links; returns why it could not, or an empty string."""
        output: list[str] = []
        try:
            with captured_output(output):
                super().run()
        except (Exception, SystemExit) as error:  # a missing or failing compiler, in all its forms
            return "\n".join([*output[-20:], str(error)])
        return ""

    def build_extension(self, ext: Extension) -> None:
        if ext.name == "ddi_kernels._engine":
            ext.extra_objects = [str(Path(self.build_temp, s).with_suffix(".o")) for s in CPU_SOURCES]
        super().build_extension(ext)

    def compile_cuda(self, cpu_reason: str, package: Path) -> str:
        """Builds the CUDA operators where asked to; returns why there are none, or an empty string."""
        if cpu_reason or MODE == "cpu":
            reason = "the CPU operators were not built" if cpu_reason else "DDI_BUILD=cpu"
        elif MODE == "auto" and not nvcc_build.torch_has_cuda():
            reason = "this torch has no CUDA; DDI_BUILD=cuda builds them all the same"
        else:
            reason, output = nvcc_build.build(package)
            if reason:
                print(output)
        if reason and MODE == "cuda":
            sys.exit(f"ddi-kernels: DDI_BUILD=cuda, but no CUDA operators: {reason}")
        return reason

    def record(self, reason: str, cuda_reason: str, package: Path) -> None:
        package.mkdir(parents=True, exist_ok=True)
        for failed, pattern in ((reason, "_C.*so"), (reason, "_engine.*so"), (cuda_reason, "_C_cuda.*so")):
            for stale in package.glob(pattern) if failed else ():
                stale.unlink()
        compiler = getattr(getattr(self, "compiler", None), "compiler_cxx", None) or []
        info = {
            "built": not reason,
            "reason": reason,
            "compiler": " ".join(compiler),
            "flags": [flag for flag in FLAGS if not flag.startswith("-ffile-prefix-map")],
            "cuda": {"built": not cuda_reason, "reason": cuda_reason},
        }
        (package / "_build_info.json").write_text(json.dumps(info, indent=2) + "\n")


def packages() -> list[str]:
    kernels = find_packages("ddi_kernels")
    framework = find_packages("python/ddi")
    return ["ddi_kernels", *(f"ddi_kernels.{p}" for p in kernels), "ddi"] + [f"ddi.{p}" for p in framework]


setup(
    packages=packages(),
    package_dir={"ddi_kernels": "ddi_kernels", "ddi": "python/ddi"},
    ext_modules=extensions(),
    cmdclass={"build_ext": BuildExt},
)
