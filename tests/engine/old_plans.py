"""What an engine answers on the plans of tests/engine/plans, as JSON: what is kept there, and what is now.

`DDI_CPU_ISA=scalar python tests/engine/old_plans.py` prints it by the kernels of one instruction set, which
an engine looks up once in a process.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from ddi_kernels import engine

__all__ = ["PLANS", "answers", "images", "kept"]

PLANS = Path(__file__).parent / "plans"


def kept(name: str) -> dict[str, Any]:
    """What the engine answered that the plan was made for."""
    return json.loads((PLANS / f"{name}.json").read_text())


def images(name: str) -> np.ndarray:
    """float32[N, 3, H, W], multiples of 1/16."""
    return np.load(PLANS / f"{name}.npy").astype(np.float32) / 16


def _options(options: dict[str, Any], batch: slice) -> dict[str, Any]:
    """As a call takes them; decisions are kept as a text of 0 and 1 for each image."""
    if "decisions" not in options:
        return options
    bits = np.array([[int(bit) for bit in row] for row in options["decisions"][batch]], np.uint8)
    return options | {"decisions": bits}


def _run(frozen: engine.Engine, x: np.ndarray, options: dict[str, Any], batch: slice) -> dict[str, Any]:
    logits, report = frozen(x[batch], report=True, **_options(options, batch))
    return {
        "logits": [[float(value) for value in row] for row in logits],
        "exits": report.exits,
        "macs": report.macs,
        "weight_bytes": report.weight_bytes,
        "activation_bytes": report.activation_bytes,
        "decisions": ["".join(map(str, row)) for row in report.decisions.tolist()],
    }


def answers(name: str, calls: list[dict[str, Any]], threads: int = 1) -> dict[str, Any]:
    """What a plan says of itself, and of each call's options the answers, together and image by image."""
    x = images(name)
    frozen = engine.load(PLANS / f"{name}.ddi", max_batch=len(x), threads=threads)
    network = {
        "dtype": frozen.dtype,
        "input_shape": list(frozen.input_shape),
        "classes": frozen.classes,
        "exits": frozen.exits,
        "gates": frozen.gates,
        "dense_macs": frozen.dense_macs,
        "exit_worst_work": [list(work) for work in frozen.exit_worst_work],
    }
    runs = []
    for options in calls:
        together = _run(frozen, x, options, slice(None))
        alone = [_run(frozen, x, options, slice(i, i + 1)) for i in range(len(x))]
        joined = {key: [value for one in alone for value in one[key]] for key in together}
        runs.append({"options": options, "together": together, "alone": joined})
    return {"network": network, "runs": runs}


def main() -> None:
    found: dict[str, Any] = {"isa": engine._module().cpu_isa()}
    for path in sorted(PLANS.glob("*.ddi")):
        calls = [run["options"] for run in kept(path.stem)["runs"]]
        found[path.stem] = [answers(path.stem, calls, threads) for threads in (1, 2)]
    print(json.dumps(found))


if __name__ == "__main__":
    main()
