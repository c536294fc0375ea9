"""All checks on a machine with a GPU, `make check-gpu`: build, tests, compute-sanitizer, bench.

In ten minutes, and downloading nothing. Each step has a time limit of its own, and what fails does not keep
the next ones from running: time on a GPU is dear. Test files run side by side, since compiling Triton's
kernels is most of their time. What they say lies in out/gpu.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
OUT = ROOT / "out" / "gpu"


def run(name: str, seconds: float, *command: str | Path, **environment: str) -> bool:
    """Runs a step, what it prints into a file; shows the end of it and says whether it went well."""
    log = OUT / f"{name}.log"
    path = os.pathsep.join([str(ROOT), str(ROOT / "python")])
    with log.open("w") as file:
        try:
            status: int | str = subprocess.run(
                command, cwd=ROOT, env=os.environ | {"PYTHONPATH": path} | environment, timeout=seconds,
                stdout=file, stderr=subprocess.STDOUT,
            ).returncode  # fmt: skip
        except subprocess.TimeoutExpired:
            status = f"not done after {seconds:g} s"
    lines = log.read_text(errors="replace").splitlines()
    shown = lines[-1:] if status == 0 else lines[-40:]
    print(
        f"check-gpu: {name}: {'ok' if status == 0 else f'failed ({status})'}", *shown, sep="\n  ", flush=True
    )
    return status == 0


def main() -> None:
    python, parts = sys.executable, []
    OUT.mkdir(parents=True, exist_ok=True)
    build = (python, "setup.py", "build_ext", "--inplace")
    if not run("build", 150, *build, DDI_BUILD="cuda", DDI_REQUIRE_C="1"):
        sys.exit(1)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for file in sorted(HERE.glob("test_*.py")):
            command = (python, "-m", "pytest", "-q", "-rs", "--tb=short", file)
            parts.append(pool.submit(run, file.stem, 200, *command))
    results = [part.result() for part in parts]
    if not torch.cuda.is_available():
        print("check-gpu: no CUDA GPU is visible, nothing was run on one")
    else:
        sanitizer = shutil.which("compute-sanitizer")
        smoke = [sanitizer, "--error-exitcode", "1"] if sanitizer else []
        results.append(
            run("smoke", 80, *smoke, python, HERE / "smoke.py", PYTORCH_NO_CUDA_MEMORY_CACHING="1")
        )
        if sanitizer is None:
            print("check-gpu: compute-sanitizer is not installed")
        rows = OUT / "bench.jsonl"
        results.append(run("bench", 200, python, "-m", "bench.gpu", "--budget", "150", "--json", rows))
        print((OUT / "bench.log").read_text())
    sys.exit(not all(results))


if __name__ == "__main__":
    main()
