"""Moves the threshold of trained gates until a network costs what it is wanted to cost."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch.nn as nn
from torch import Tensor
from tqdm import tqdm

from ..cost import count_macs, dense_macs
from ..data.batches import image_batches
from ..eval_mode import eval_mode
from ..gates.threshold import ThresholdGates
from ..gating.gate_pass import gated_root

__all__ = ["Calibration", "calibrate"]

_MARGIN = 1e-6  # thresholds tried lie so far from 0 and 1
_STEP = 1e-6  # thresholds nearer to each other are one

Tried = tuple[float, float]
"""A threshold and the mac_ratio that it gave."""


@dataclass(frozen=True)
class Calibration:
    """What `calibrate` found.

    Args:
        threshold: that all gates have now.
        mac_ratio: dense MACs over the mean MACs of the images at this threshold.
        evaluations: (threshold, mac_ratio) of every run over the images, in order.
    """

    threshold: float
    mac_ratio: float
    evaluations: tuple[Tried, ...]


def calibrate(
    model: nn.Module,
    loader: Tensor | Iterable[Any],
    mac_ratio: float,
    tolerance: float = 0.01,
    progress: bool = False,
) -> Calibration:
    """Moves the threshold of a gated model, one for all gates, so that its mean MACs hit a target.

    The gates' config has the threshold from then on, so that `save_model` and `freeze` keep it. Bisection on
    the hard decisions: MACs fall as the threshold rises, but only roughly, since later gates decide on what
    earlier ones left; so that other thresholds may cost the same. Accuracy is not looked at.

    Args:
        model: converted by `convert_`, or a wrapper (DDP) around one; in eval mode meanwhile.
        loader: images like those that the network is to see, normalised: float[N, C, H, W], or batches of
            such, or pairs of a batch and anything, as a DataLoader has. Read once, and held in memory.
        mac_ratio: wanted ratio of dense MACs to mean MACs, gates included.
        tolerance: share of mac_ratio that the reached one may be off. Where the images allow nothing so near,
            the nearest threshold found is taken: see what the result says.
        progress: show a progress bar.

    Raises:
        ValueError: model is not gated or its gates have no threshold, an argument is out of range, the images
            are not usable, or no threshold reaches mac_ratio; the threshold is then what it was.

    Example:
        >>> ddi.calibrate(model, validation_images, mac_ratio=4).mac_ratio
    """
    if not 0 < mac_ratio < float("inf"):
        raise ValueError(f"calibrate: mac_ratio must be positive and finite, got {mac_ratio!r}")
    if not 0 <= tolerance < 1:
        raise ValueError(f"calibrate: tolerance must lie in [0, 1), got {tolerance!r}")
    root: Any = gated_root(model)
    gates = root.ddi_gates
    if not isinstance(gates, ThresholdGates):
        raise ValueError(f"calibrate: gates of type {type(gates).__name__} have no threshold to move")
    batches = list(image_batches(loader, "calibrate: loader"))
    before = gates.config.threshold
    try:
        with eval_mode(root), tqdm(desc="calibrate", disable=None if progress else True) as bar:

            def ratio_at(threshold: float) -> float:
                gates.set_threshold(threshold)
                ratio = _mac_ratio(root, batches)
                bar.update()
                bar.set_postfix(threshold=f"{threshold:.4f}", mac_ratio=f"{ratio:.3f}")
                return ratio

            tried, (threshold, reached) = _search(ratio_at, mac_ratio, tolerance)
    except BaseException:
        gates.set_threshold(before)
        raise
    gates.set_threshold(threshold)
    return Calibration(threshold, reached, tuple(tried))


def _mac_ratio(model: nn.Module, batches: list[Tensor]) -> float:
    like = next(model.parameters())
    total = sum(count_macs(model, x.to(like.device, like.dtype)).per_sample.sum().item() for x in batches)
    return dense_macs(model, batches[0].shape) * sum(map(len, batches)) / total


def _search(ratio_at: Callable[[float], float], wanted: float, tolerance: float) -> tuple[list[Tried], Tried]:
    """All thresholds that were tried, and the nearest.

    The ratio is below `wanted` at one end of the interval and not below it at the other, at every step: so
    the search ends where it crosses `wanted`, by a step if not smoothly, whether or not it is monotone.
    """
    tried: list[Tried] = []

    def near() -> Tried:
        # The later one of two as good: it lies nearer to the crossing.
        return min(reversed(tried), key=lambda one: abs(one[1] - wanted))

    def found() -> bool:
        return abs(near()[1] - wanted) <= tolerance * wanted

    low, high = _MARGIN, 1 - _MARGIN
    for threshold in (low, high):
        tried.append((threshold, ratio_at(threshold)))
    (_, least), (_, most) = tried
    if not found() and not least < wanted < most:
        raise ValueError(
            f"calibrate: mac_ratio {wanted:g} is out of reach: on these images it goes from {least:.4g} (at "
            f"threshold {low:g}) to {most:.4g} (at {high:g}); take one between, or train to another target"
        )
    while not found() and high - low > _STEP:
        middle = (low + high) / 2
        tried.append((middle, ratio_at(middle)))
        low, high = (middle, high) if tried[-1][1] < wanted else (low, middle)
    return tried, near()
