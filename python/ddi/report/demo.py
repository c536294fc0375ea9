"""The main job: the shipped gated network against its dense counterpart on real images.

Accuracy, MACs and agreement come from the whole test split through the sparse kernels; wall-clock
from a pool of those images whose costs are spread like the split's; `report.json` and four figures
hold what was found.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor
from tqdm import tqdm

import ddi_kernels

from ..checkpoint import CheckpointError, load_model
from ..cost.record import record
from ..data import Dataset, Split, get_dataset
from ..evaluate.evaluate import Evaluation, evaluate
from ..files import write_atomic
from ..gating.stand_in import is_converted
from ..measure.timing import EAGER, ORT, OURS, time_models
from .figures import new_figure, write_figures
from .stats import correlation, paired_interval

__all__ = ["DemoConfig", "pretrained", "run_demo"]

DATASET = "scene_digits"
BATCHES = (1, 32)
THREADS = (1, 2)
POOL = 256
# Gates settle close around the threshold they are trained at, the more so above it.
SWEEP = (0.4, 0.48, 0.51, 0.53)


def pretrained(name: str) -> Path:
    """Path of a checkpoint that ships with the package.

    Example:
        >>> model, meta = ddi.load_model(pretrained("scene_digits_resnet38_ddi.safetensors"))
    """
    return Path(str(files("ddi").joinpath("pretrained", name)))


@dataclass(frozen=True)
class DemoConfig:
    """What a demo runs on.

    Args:
        dense: checkpoint of the plain network, None for the shipped one.
        gated: checkpoint of the gated network, None for the shipped one.
        images: use the first so many test images, at least 256; None for all.
        passes: timing passes over the pool for each provider, batch size and thread count.
        seed: of the bootstrap and of the order of the timing pool.
    """

    dense: str | Path | None = None
    gated: str | Path | None = None
    images: int | None = None
    passes: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        if self.images is not None and self.images < POOL:
            raise ValueError(f"demo: images must be at least {POOL}, got {self.images}")
        if self.passes < 1:
            raise ValueError(f"demo: passes must be at least 1, got {self.passes}")


def run_demo(out: str | Path, config: DemoConfig | None = None) -> dict[str, Any]:
    """Evaluates and times the dense and the gated network; writes `report.json` and the figures.

    Args:
        out: folder for `report.json`, `macs_histogram.png`, `accuracy_vs_macs.png`, `samples.png`
            and `open_by_class.png`.
        config: what to run on.

    Returns:
        The report, JSON-ready; times are milliseconds per image. `tables.format_demo` is its text.

    Raises:
        FileNotFoundError, CheckpointError: a checkpoint is missing, damaged, or of the wrong kind.
        ImportError: a package is missing that the figures or the images need.

    Example:
        >>> run_demo("out/demo")["speedup_b1"]
    """
    config = config or DemoConfig()
    start = time.perf_counter()
    # What can fail for want of a package or a permission fails now, not after minutes.
    new_figure(1, 1)
    Path(out).mkdir(parents=True, exist_ok=True)
    dense, gated, name = _load_pair(config)
    data = get_dataset(DATASET)
    split = _first(data.test(), config.images)
    report: dict[str, Any] = {
        "model": name,
        "dataset": DATASET,
        "images": len(split),
        "threshold": gated.ddi_gates.config.threshold,  # type: ignore[union-attr]
        "passes": config.passes,
        "seed": config.seed,
    }
    with ddi_kernels.backend("auto"):
        plain = evaluate(dense, data, split, progress=True)
        result = evaluate(gated, data, split, progress=True)
        report |= _summary(plain, result, split, config.seed)
        report |= compare_with_masked(gated, data, split)
        report["sweep"] = sweep_thresholds(gated, data, split, result)
        report |= _times(dense, gated, data, split, result, config)
    write_figures(Path(out), plain, result, split, report["sweep"], report["threshold"])
    report["seconds"] = time.perf_counter() - start
    write_atomic(Path(out) / "report.json", json.dumps(report, indent=1, allow_nan=False).encode())
    return report


def _load_pair(config: DemoConfig) -> tuple[nn.Module, nn.Module, str]:
    dense_path = config.dense or pretrained("scene_digits_resnet38.safetensors")
    gated_path = config.gated or pretrained("scene_digits_resnet38_ddi.safetensors")
    dense, _ = load_model(dense_path)
    gated, meta = load_model(gated_path)
    if is_converted(dense):
        raise CheckpointError(f"demo: {dense_path} holds a gated network; --dense takes a plain one")
    if not is_converted(gated):
        raise CheckpointError(f"demo: {gated_path} holds a plain network; --gated takes a gated one")
    shapes = {key: tensor.shape for key, tensor in dense.state_dict().items()}
    if shapes != {k: t.shape for k, t in gated.state_dict().items() if not k.startswith("ddi_gates.")}:
        raise CheckpointError(f"demo: {dense_path} and {gated_path} hold different backbones")
    return dense, gated, meta.get("model", type(gated).__name__)


def _first(split: Split, count: int | None) -> Split:
    if count is None:
        return split
    if count > len(split):
        raise ValueError(f"demo: images is {count}, the test split has {len(split)}")
    parts = (split.images, split.labels, split.difficulty, split.scan)
    return Split(*(None if part is None else part[:count] for part in parts))  # type: ignore[arg-type]


def _decide(gated: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Logits float[N, classes], and every bit bool[N, bits] that decides what is run."""
    with record(gated) as rec:
        logits = gated(x)
    bits = []
    for block in rec.passes[0]:
        keep = block.decision.keep
        if keep is not None:
            bits.append(keep[:, None])
        for mask in block.decision.masks:
            bits.append(mask.open if keep is None else mask.open & keep[:, None])
    return logits, torch.cat(bits, dim=1)


@torch.inference_mode()
def compare_with_masked(
    gated: nn.Module, data: Dataset, split: Split, batch_size: int = 256
) -> dict[str, Any]:
    """How far the sparse kernels are from the dense network times its masks.

    Returns:
        "max_rel_err": largest over images of max|a - b| / max|b| over an image's logits, a sparse
        and b masked, among images whose decisions agree; "decision_flips": how many images have any
        other executed bit (rounding can carry a gate's logit across its threshold, and the image
        then runs other channels).
    """
    worst, flips = 0.0, 0
    for x in _batches(data, split, batch_size, "compare"):
        sparse, bits = _decide(gated, x)
        with ddi_kernels.backend("reference"):
            masked, masked_bits = _decide(gated, x)
        same = (bits == masked_bits).all(1)
        flips += int((~same).sum())
        if same.any():
            error = (sparse - masked).abs().amax(1) / masked.abs().amax(1)
            worst = max(worst, error[same].max().item())
    return {"max_rel_err": worst, "decision_flips": flips}


def _batches(data: Dataset, split: Split, batch_size: int, title: str) -> Iterator[Tensor]:
    for images in tqdm(split.images.split(batch_size), desc=title, disable=None):
        yield data.normalize(images)


def sweep_thresholds(
    gated: nn.Module, data: Dataset, split: Split, shipped: Evaluation
) -> list[dict[str, float]]:
    """Accuracy and mean MACs with the gates' threshold moved, the shipped one among them."""
    gates: Any = gated.ddi_gates
    own = gates.config.threshold
    found = {own: shipped}
    try:
        for threshold in SWEEP:
            if threshold != own:
                gates.set_threshold(threshold)
                found[threshold] = evaluate(gated, data, split, progress=True)
    finally:
        gates.set_threshold(own)
    return [
        {"threshold": threshold, "accuracy": result.accuracy, "macs": result.macs.mean().item()}
        for threshold, result in sorted(found.items())
    ]


def timing_pool(macs: Tensor, seed: int) -> Tensor:
    """int64[256]: images at even steps through the order of their costs, shuffled.

    A plain random draw would miss the split's mean cost by some percent, and the speedup with it.
    """
    order = torch.argsort(macs, stable=True)
    steps = (torch.arange(POOL) + 0.5) * len(order) / POOL
    shuffle = torch.randperm(POOL, generator=torch.Generator().manual_seed(seed))
    return order[steps.long()][shuffle]


def _times(
    dense: nn.Module,
    gated: nn.Module,
    data: Dataset,
    split: Split,
    result: Evaluation,
    config: DemoConfig,
) -> dict[str, Any]:
    """What the report says of time, and what is missing in it."""
    pool = timing_pool(result.macs, config.seed)
    images = data.normalize(split.images[pool]).contiguous()
    table, incomplete = time_models(dense, gated, images, BATCHES, THREADS, config.passes)
    environment = ddi_kernels.collect_env()
    kernels = environment["kernels"]["native"]
    if kernels != "available":
        incomplete.append(f"no compiled kernels, ours is the plain torch reference: {kernels}")
    return {
        **_headline(table, result.mac_ratio),
        "mac_ratio_timing_pool": result.dense_macs / result.macs[pool].mean().item(),
        "table": table,
        "environment": environment,
        "incomplete": incomplete,
    }


def _headline(table: list[dict[str, Any]], mac_ratio: float) -> dict[str, Any]:
    """The report's times and ratios: one thread, dense = the faster eager layout."""
    times = {(r["provider"], r["batch"]): r["median_ms"] for r in table if r["threads"] == 1}
    values: dict[str, Any] = {}
    for batch in BATCHES:
        ort = times[ORT, batch]
        values[f"ms_dense_b{batch}"] = min(times[name, batch] for name in EAGER)
        values[f"ms_gated_b{batch}"] = times[OURS, batch]
        values[f"ms_ort_b{batch}"] = ort
        speedup = values[f"ms_dense_b{batch}"] / values[f"ms_gated_b{batch}"]
        values[f"speedup_b{batch}"] = speedup
        fastest = min(t for t in (values[f"ms_dense_b{batch}"], ort) if t is not None)
        values[f"realised_b{batch}"] = fastest / values[f"ms_gated_b{batch}"] / mac_ratio
    return values


def _summary(dense: Evaluation, gated: Evaluation, split: Split, seed: int) -> dict[str, Any]:
    assert split.scan is not None and split.difficulty is not None  # scene_digits knows both
    return {
        "accuracy_dense": dense.accuracy,
        "accuracy_gated": gated.accuracy,
        "accuracy_difference_95": paired_interval(dense.correct, gated.correct, split.scan, seed),
        "macs_dense": gated.dense_macs,
        "macs_gated": gated.macs.mean().item(),
        "mac_ratio": gated.mac_ratio,
        "cost_difficulty_corr": correlation(gated.macs, split.difficulty),
    }
