"""Made the plans of this folder, with the code of commit 720c455: README.md says how.

Seeded models with lively gates, and of many drawn images those of which no gate is near its threshold and no
exit near the confidence, so that every CPU decides alike.
"""

from __future__ import annotations

import json
import struct
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]
from frozen_models import seeded  # noqa: E402
from old_plans import PLANS, answers  # noqa: E402

import ddi  # noqa: E402
from ddi.backbones.resnet import Bottleneck, ResNet  # noqa: E402
from ddi_kernels import engine  # noqa: E402

SIZE, CLASSES, IMAGES, DRAWN = 20, 7, 6, 4000
MARGIN = {"gated_fp32": 0.05, "exits_bf16": 0.1, "gated_int8": 0.05}  # of a gate's logits
CONFIDENCE, CERTAINTY_MARGIN = 0.8, 0.03
GATES = ddi.DDIConfig(group_size=4)


def draw(count: int, seed: int) -> np.ndarray:
    """int8[N, 3, SIZE, SIZE], sixteenths, of more and less contrast."""
    generator = torch.Generator().manual_seed(seed)
    contrast = 0.2 + 1.8 * torch.rand(count, 1, 1, 1, generator=generator)
    x = contrast * torch.randn(count, 3, SIZE, SIZE, generator=generator)
    x += torch.randn(count, 3, 1, 1, generator=generator)
    return (16 * x).round().clamp(-127, 127).to(torch.int8).numpy()


def make_models() -> dict[str, tuple[Any, dict[str, Any]]]:
    """Models, and how each is frozen."""

    def cifar(**kwargs: Any) -> Any:
        torch.manual_seed(0)
        return ddi.create_model("cifar_resnet14", gates=GATES, num_classes=CLASSES, width=6, **kwargs)

    plain, branched = seeded(cifar()), seeded(cifar(exits=2))
    for head in branched.exits:
        head.fc.weight.data *= 20
    torch.manual_seed(0)
    bottlenecks = ResNet(Bottleneck, (2, 2), 6, "cifar", CLASSES)
    narrow = seeded(ddi.convert_(bottlenecks, GATES))
    # Sums of the first convolution, which stays float32, are exact in any order: behind it the same integers
    # are quantized on every CPU.
    narrow.conv1.weight.data.mul_(64).round_().div_(64)
    narrow.bn1.eps = 0.0
    narrow.bn1.running_mean.zero_()
    narrow.bn1.running_var.fill_(1)
    narrow.bn1.weight.data.fill_(1)
    narrow.bn1.bias.data.mul_(64).round_().div_(64)
    calibration = torch.from_numpy(draw(64, seed=1)).float() / 16
    return {
        "gated_fp32": (plain, {}),
        "exits_bf16": (branched, {"dtype": torch.bfloat16}),
        "gated_int8": (narrow, {"dtype": torch.int8, "calibration": calibration}),
    }


def moved(plan: bytes, by: float) -> bytes:
    """The plan with another threshold of all gates, which is one constant of one element, 0."""
    words, offset = struct.unpack_from("<QQ", plan, 24)
    graph = struct.unpack_from(f"<{words}q", plan, 64)
    at = 1 + 4 * graph[0]
    at += 1 + 3 * graph[at]
    constants = [graph[at + 1 + 3 * i : at + 4 + 3 * i] for i in range(graph[at])]
    at += 1 + 3 * graph[at]
    at += 1 + 2 * graph[at]
    steps, at, thresholds = graph[at + 2], at + 3, set()
    for _ in range(steps):
        if graph[at] == 4:
            thresholds.add(graph[at + 3 + 4])
        at += 3 + graph[at + 2]
    (threshold,) = thresholds
    kind, first, numel = constants[threshold]
    assert (kind, numel) == (0, 1) and struct.unpack_from("<f", plan, offset + first) == (0.0,)
    changed = bytearray(plan)
    struct.pack_into("<f", changed, offset + first, by)
    struct.pack_into("<I", changed, 48, zlib.crc32(changed[64:]))
    struct.pack_into("<I", changed, 60, zlib.crc32(changed[:60]))
    return bytes(changed)


def decisions(path: Path, x: np.ndarray, by: float) -> np.ndarray:
    """uint8[N, bits] at thresholds moved by so much."""
    other = path.with_suffix(".moved")
    other.write_bytes(moved(path.read_bytes(), by))
    frozen = engine.load(other, max_batch=100)
    other.unlink()
    return np.concatenate(
        [frozen(part, report=True)[1].decisions.numpy() for part in np.split(x, len(x) // 100)]
    )


def decided(name: str, x: np.ndarray) -> np.ndarray:
    """bool[N]: which images no gate and no exit is in doubt of."""
    path = PLANS / f"{name}.ddi"
    low, high = (decisions(path, x, by) for by in (-MARGIN[name], MARGIN[name]))
    good = (low == high).all(1)
    frozen = engine.load(path, max_batch=1)
    for i in np.flatnonzero(good) if len(frozen.exits) > 1 else []:
        # One lower and one higher: nobody halts in between.
        one, other = (
            frozen(x[i : i + 1], confidence=CONFIDENCE + by, report=True)[1].exits
            for by in (-CERTAINTY_MARGIN, CERTAINTY_MARGIN)
        )
        good[i] = one == other
    return good


def choose(name: str, x: np.ndarray) -> np.ndarray:
    """Images that are decided, as different as they come: in their exits, then in their gates."""
    found = np.flatnonzero(decided(name, x))
    frozen = engine.load(PLANS / f"{name}.ddi", max_batch=1)
    confidence = CONFIDENCE if len(frozen.exits) > 1 else None
    reports = [frozen(x[i : i + 1], confidence=confidence, report=True)[1] for i in found]
    taken: list[int] = []
    while len(taken) < IMAGES:
        left = [i for i in range(len(found)) if i not in taken]
        same = [sum(reports[i].exits == reports[j].exits for j in taken) for i in left]
        bits = [sum((reports[i].decisions == reports[j].decisions).sum().item() for j in taken) for i in left]
        taken.append(min(zip(same, bits, left, strict=True))[2])
    print(f"{name}: {len(found)} of {len(x)} images are decided; exits {[reports[i].exits for i in taken]}")
    return found[taken]


def main() -> None:
    assert engine._module().cpu_isa() == "scalar", "set DDI_CPU_ISA=scalar"
    models = make_models()
    for name, (model, options) in models.items():
        ddi.freeze(model, torch.zeros(1, 3, SIZE, SIZE), PLANS / f"{name}.ddi", **options)
    drawn = draw(DRAWN, seed=0)
    for name in models:
        np.save(PLANS / f"{name}.npy", drawn[choose(name, drawn.astype(np.float32) / 16)])
        frozen = engine.load(PLANS / f"{name}.ddi")
        bits = np.random.default_rng(0).random((IMAGES, frozen.decision_bytes)) < 0.4
        calls: list[dict[str, Any]] = [
            {},
            {"decisions": ["".join(map(str, row)) for row in bits.astype(int)]},
        ]
        if len(frozen.exits) > 1:
            opened = ["1" * frozen.decision_bytes] * IMAGES
            calls += [
                {"confidence": CONFIDENCE},
                {"max_macs": frozen.exit_worst_macs[0], "decisions": opened},
            ]
        found = answers(name, calls)
        runs = ",\n".join(json.dumps(run) for run in found["runs"])
        text = f'{{"network": {json.dumps(found["network"])},\n"runs": [\n{runs}\n]}}\n'
        (PLANS / f"{name}.json").write_text(text)


if __name__ == "__main__":
    main()
