"""Wall-clock of whole models against each other: same process, same images, pass by pass in turn.

A pass takes every image of a pool once, in batches, so that no call sees the images of the call
before it and gates really decide anew. Providers take turns pass by pass, which spreads the
machine's noise over all of them; a result is the median of the passes with its 20 % and 80 %
quantiles. Images come as contiguous NCHW float32; a provider that prefers another layout pays for
it inside its own time.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor
from tqdm import tqdm

from .onnxruntime import OnnxRuntimeMissing, export_onnx, onnxruntime_forward

__all__ = [
    "EAGER",
    "ORT",
    "OURS",
    "Timing",
    "channels_last_forward",
    "time_passes",
    "num_threads",
    "time_models",
]

EAGER = ("dense eager", "dense channels_last")
ORT = "onnxruntime"
OURS = "ours"

Forward = Callable[[Tensor], object]

_POOL_MIN = 256
# Untimed images at each change of provider: threads of the one before may spin for some time yet.
_SETTLE_IMAGES = 16


@dataclass(frozen=True)
class Timing:
    """Milliseconds per image of one provider.

    Args:
        median_ms, p20_ms, p80_ms: over the passes.
        passes_ms: one value a pass, the mean over its images.
    """

    median_ms: float
    p20_ms: float
    p80_ms: float
    passes_ms: tuple[float, ...]

    @classmethod
    def of(cls, passes_ms: list[float]) -> Timing:
        """Median and quantiles (linear between neighbours) of the values of the passes."""
        values = torch.tensor(passes_ms, dtype=torch.float64)
        levels = torch.tensor([0.5, 0.2, 0.8], dtype=torch.float64)
        median, low, high = torch.quantile(values, levels).tolist()
        return cls(median, low, high, tuple(passes_ms))


def time_passes(
    providers: Mapping[str, Forward],
    pool: Tensor,
    batch: int,
    threads: int,
    passes: int,
    progress: bool = False,
) -> dict[str, Timing]:
    """Times providers on the images of a pool.

    Args:
        providers: by name, what to call with float32[batch, 3, H, W].
        pool: float32[P, 3, H, W], P >= 256, at least two batches and a multiple of batch.
        batch: images a call.
        threads: given to torch.set_num_threads for the measurement, and taken back.
        passes: over the whole pool, for each provider.
        progress: show a bar (on a terminal only).

    Returns:
        For each provider its milliseconds per image.

    Raises:
        ValueError: the pool is too small or no multiple of batch, or a count is not positive.

    Example:
        >>> pool = torch.randn(256, 3, 32, 32)
        >>> time_passes({"dense": model}, pool, batch=1, threads=1, passes=5)["dense"].median_ms
    """
    _check(pool, batch, threads, passes)
    batches = list(pool.contiguous().split(batch))
    settle = batches[-max(1, _SETTLE_IMAGES // batch) :]
    seen: dict[str, list[float]] = {name: [] for name in providers}
    title = f"time batch {batch}, {threads} thread" + ("s" if threads > 1 else "")
    bar = tqdm(total=passes * len(providers), desc=title, disable=None if progress else True)
    with bar, num_threads(threads), torch.inference_mode():
        for provider in providers.values():
            _run(provider, settle)  # packs weights, plans memory: paid once, not by the first pass
        for _ in range(passes):
            for name, provider in providers.items():
                _run(provider, settle)
                start = perf_counter()
                _run(provider, batches)
                seen[name].append((perf_counter() - start) * 1e3 / len(pool))
                bar.update()
    return {name: Timing.of(values) for name, values in seen.items()}


def _check(pool: Tensor, batch: int, threads: int, passes: int) -> None:
    for name, value in (("batch", batch), ("threads", threads), ("passes", passes)):
        if value < 1:
            raise ValueError(f"time_passes: {name} must be at least 1, got {value}")
    if pool.dim() != 4 or len(pool) < max(_POOL_MIN, 2 * batch) or len(pool) % batch:
        raise ValueError(
            f"time_passes: pool must hold [P, C, H, W] images, P at least {_POOL_MIN}, at least two "
            f"batches and a multiple of batch={batch}, got {tuple(pool.shape)}"
        )


def _run(provider: Forward, batches: list[Tensor]) -> None:
    for x in batches:
        provider(x)


@contextlib.contextmanager
def num_threads(count: int) -> Iterator[None]:
    """torch.set_num_threads(count) inside a `with` block, and what it was before after it."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def channels_last_forward(model: nn.Module) -> Forward:
    """The model on channels_last images, its weights laid out alike in a copy of it."""
    model = copy.deepcopy(model)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return lambda x: model(x.contiguous(memory_format=torch.channels_last))


def time_models(
    dense: nn.Module,
    gated: nn.Module,
    pool: Tensor,
    batches: Sequence[int],
    threads: Sequence[int],
    passes: int,
) -> tuple[list[dict[str, Any]], list[str]]:
    """Times a gated network against its dense counterpart in every form we know to be fast.

    Args:
        dense, gated: in eval mode.
        pool: float32[P, 3, H, W], see `time_passes`.
        batches, threads: each batch size is measured with each number of threads.
        passes: see `time_passes`.

    Returns:
        JSON-ready rows (provider, batch, threads, median_ms, p20_ms, p80_ms, status), times None
        where the provider is not installed; and a sentence for each such provider.
    """
    missing: list[str] = []
    onnx: bytes | None = None
    try:
        onnx = export_onnx(dense, pool[:2])
    except OnnxRuntimeMissing as error:
        missing.append(f"{ORT} was not timed: {error}")
    eager, channels_last = EAGER
    providers: dict[str, Forward] = {eager: dense, channels_last: channels_last_forward(dense)}
    ours = channels_last_forward(gated)
    rows: list[dict[str, Any]] = []
    for batch, count in itertools.product(batches, threads):
        if onnx is not None:
            providers[ORT] = onnxruntime_forward(onnx, dense, pool[:batch], count)
        timed = time_passes({**providers, OURS: ours}, pool, batch, count, passes, progress=True)
        for name in (*EAGER, ORT, OURS):
            rows.append(_row(name, batch, count, timed.get(name)))
    return rows, missing


def _row(provider: str, batch: int, threads: int, timing: Timing | None) -> dict[str, Any]:
    return {
        "provider": provider,
        "batch": batch,
        "threads": threads,
        "median_ms": None if timing is None else timing.median_ms,
        "p20_ms": None if timing is None else timing.p20_ms,
        "p80_ms": None if timing is None else timing.p80_ms,
        "status": "not installed" if timing is None else "measured",
    }
