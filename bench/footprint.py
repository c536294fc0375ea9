"""What a network takes before its first answer, and in memory: the engine against other runtimes.

Every runtime loads its own file in a process of its own, which has imported everything before; memory
is the process's peak, and what it keeps, over what it had then.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .networks import Network, make_case

PROCESSES = 3
_CALLS = 3


@dataclass(frozen=True)
class Footprint:
    """Milliseconds and MiB of one process."""

    load_ms: float
    first_call_ms: float
    peak_mib: float
    kept_mib: float


def _status(field: str) -> float:
    """A size of this process in MiB, as the kernel counts it."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"bench model: /proc/self/status has no {field}")


def _observe(load: Callable[[], Callable[[], object]]) -> Footprint:
    """Of loading what can be called, and calling it."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before, start = _status("VmRSS"), time.perf_counter()
    call = load()
    loaded = time.perf_counter()
    call()
    answered = time.perf_counter()
    for _ in range(_CALLS):
        call()
    kept = _status("VmRSS") - before
    peak = max(_status("VmHWM") - before, kept)  # the kernel's counts may lag by some pages
    return Footprint((loaded - start) * 1e3, (answered - loaded) * 1e3, peak, kept)


def _engine(path: str, x: Any) -> Footprint:
    from ddi_kernels import engine

    def load() -> Callable[[], object]:
        frozen = engine.load(path)
        return lambda: frozen(x)

    engine._module()
    return _observe(load)


def _onnxruntime(path: str, x: Any) -> Footprint:
    import onnxruntime as ort

    def load() -> Callable[[], object]:
        options: Any = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.add_free_dimension_override_by_name("batch", 1)
        session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        return lambda: session.run(None, {"x": x})

    return _observe(load)


def _openvino(path: str, x: Any) -> Footprint:
    import openvino as ov

    options = {"INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    core = ov.Core()

    def load() -> Callable[[], object]:
        model = core.read_model(path)
        model.reshape(list(x.shape))
        request = core.compile_model(model, "CPU", options).create_infer_request()
        return lambda: request.infer([x])

    return _observe(load)


RUNTIMES = {"engine": _engine, "onnxruntime": _onnxruntime, "openvino": _openvino}


def measure(runtime: str, path: Path, size: int) -> Footprint:
    """Medians over processes of their own."""
    command = [sys.executable, "-m", "bench.footprint", runtime, str(path), str(size)]
    seen = []
    for _ in range(PROCESSES):
        done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1])
        if done.returncode != 0:
            lines = done.stderr.strip().splitlines() or [f"status {done.returncode}"]
            raise RuntimeError(f"{runtime} of {path.name}: {lines[-1]}")
        seen.append(json.loads(done.stdout))
    return Footprint(**{key: statistics.median(one[key] for one in seen) for key in seen[0]})


def footprints(network: Network) -> list[dict[str, Any]]:
    """A row for the gated network in the engine, and for the dense one in every runtime."""
    case = make_case(network, 1, 1, "fp32")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        plan, gated, onnx = (Path(folder) / file for file in ("plain.ddi", "gated.ddi", "plain.onnx"))
        case.freeze(case.plain, plan)
        case.freeze(case.gated, gated)
        onnx.write_bytes(case.onnx())
        files = [("engine", "gated", gated), ("engine", "dense", plan)]
        files += [(runtime, "dense", onnx) for runtime in ("onnxruntime", "openvino")]
        for runtime, kind, path in files:
            seen = asdict(measure(runtime, path, network.size))
            row = {"case": network.name, "provider": runtime, "network": kind, "dtype": "fp32", "threads": 1}
            row["file_mib"] = path.stat().st_size / 2**20
            rows.append({**row, **{key: round(value, 3) for key, value in seen.items()}})
    return rows


def describe(row: dict[str, Any]) -> str:
    return (
        f"{row['case']:16} {row['provider']:12} {row['network']:6} file {row['file_mib']:6.1f} MiB, "
        f"load {row['load_ms']:7.1f} ms, first call {row['first_call_ms']:7.2f} ms, "
        f"peak {row['peak_mib']:6.1f} MiB, kept {row['kept_mib']:6.1f} MiB"
    )


def main() -> None:
    """One process: runtime, file and side of the image from the command line, JSON to stdout."""
    import numpy as np

    parser = argparse.ArgumentParser("bench.footprint")
    parser.add_argument("runtime", choices=tuple(RUNTIMES))
    parser.add_argument("file")
    parser.add_argument("size", type=int)
    args = parser.parse_args()
    x = np.random.default_rng(0).standard_normal((1, 3, args.size, args.size), dtype=np.float32)
    print(json.dumps(asdict(RUNTIMES[args.runtime](args.file, x))))


if __name__ == "__main__":
    main()
