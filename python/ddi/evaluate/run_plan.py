"""Runs a frozen plan over a split of a data set, or an array of the user's, and says how well and how fast.

Time is that of calls of the engine alone, on images that are normalised beforehand. What a call costs is
asked for in a second, untimed call, for the report itself takes time; only under a deadline, where no two
calls need halt alike, is the reported call the timed one.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ddi_kernels import engine
from ddi_kernels.prices.energy import HOROWITZ_45NM, EnergyModel

from ..data import get_dataset
from ..files import write_atomic

__all__ = ["RunConfig", "run_plan"]

_MOST = 10**15  # of a budget, as for ddi_run


@dataclass(frozen=True)
class RunConfig:
    """What a plan is run on, and how.

    Args:
        dataset: name; None for scene_digits.
        data_root: folder of CIFAR.
        split: test or validation; None for test.
        input: a .npy file of float32[N, C, H, W], normalised as the network expects it, in the place of a
            data set.
        output: where to write the logits float32[N, classes], a .npy file in a folder that is there.
        images: take the first so many; None for all.
        batch: images a call.
        threads: that a call uses.
        max_macs: multiply-adds of a sample, never exceeded; None for no limit.
        deadline_ms: milliseconds of a call; None for no limit.
        max_joules: of a sample by `energy`, never exceeded; None for no limit. One limit at most is given.
        confidence: each sample halts at the first exit where its largest probability is at least this.
        energy: the model that joules are counted by.
    """

    dataset: str | None = None
    data_root: str | None = None
    split: str | None = None
    input: str | Path | None = None
    output: str | Path | None = None
    images: int | None = None
    batch: int = 1
    threads: int = 1
    max_macs: int | None = None
    deadline_ms: float | None = None
    max_joules: float | None = None
    confidence: float | None = None
    energy: EnergyModel = HOROWITZ_45NM

    def __post_init__(self) -> None:
        for name in ("batch", "threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"run: {name} is {getattr(self, name)}; it must be at least 1")
        limits = {name: getattr(self, name) for name in ("max_macs", "deadline_ms", "max_joules")}
        given = {name: value for name, value in limits.items() if value is not None}
        for name, value in given.items():
            if not 0 < value <= _MOST:
                raise ValueError(f"run: {name} is {value}; it must be positive, at most {_MOST:.0e}")
        if len(given) > 1:
            shown = " and ".join(f"{name} is {value}" for name, value in given.items())
            raise ValueError(f"run: {shown}; allowed: one of them, leave the others out")
        if self.confidence is not None and not 0 < self.confidence <= 1:
            raise ValueError(f"run: confidence is {self.confidence}; it must lie in (0, 1]")
        for name in ("dataset", "data_root", "split"):
            if self.input is not None and getattr(self, name) is not None:
                raise ValueError(
                    f"run: input is {self.input} and {name} is {getattr(self, name)}; allowed: an input or "
                    "a data set, leave one of them out"
                )
        if self.split not in (None, "test", "validation"):
            raise ValueError(f"run: split is {self.split!r}; allowed: test, validation")
        if self.output is not None:  # what cannot be written fails now, not after the run
            _check_output(Path(self.output))


def _check_output(path: Path) -> None:
    if not path.parent.is_dir():
        raise FileNotFoundError(
            f"run: output is {path}, but there is no folder {path.parent}; make it, or name another"
        )
    if path.is_dir():
        raise IsADirectoryError(f"run: output is {path}, which is a folder; name a file in it")


@dataclass(frozen=True)
class _Images:
    """Images [N, ...] and what is known of them: `prepare` makes float32[N, C, H, W] of a batch of them.

    Args:
        labels: int64[N], or None.
        source: what they come from, as the summary says it.
    """

    images: Tensor
    labels: Tensor | None
    prepare: Callable[[Tensor], Tensor]
    source: dict[str, str]

    def first(self, count: int | None) -> _Images:
        if count is None:
            return self
        if not 1 <= count <= len(self.images):
            where = " of ".join(reversed(self.source.values()))
            raise ValueError(f"run: images is {count}; allowed: 1 to {len(self.images)}, all of {where}")
        labels = None if self.labels is None else self.labels[:count]
        return replace(self, images=self.images[:count], labels=labels)


@dataclass(frozen=True)
class _Calls:
    """logits float32[N, classes], macs and exits int64[N], joules float64[N], ms float64[calls]."""

    logits: Tensor
    macs: Tensor
    joules: Tensor
    exits: Tensor
    ms: Tensor


def run_plan(plan: str | Path, config: RunConfig | None = None) -> dict[str, Any]:
    """Runs a plan over images, once, in order.

    Returns:
        JSON-ready: plan, input or dataset and split with accuracy, images (how many), dense_macs, mean_macs,
        mac_ratio, mean_joules (by the energy model), exits (of each classifier the share of images that it
        answered), p50_ms and p99_ms (of a call), images_per_second (of time in calls), load_ms, memory_bytes
        (of one session), batch, threads, max_macs, deadline_ms, max_joules, confidence, and in order of the
        images macs and classes (of the largest logit). `tables.format_run` is its text.

    Raises:
        OSError: a file is missing, or cannot be read or written.
        ValueError: a file is damaged; the images have another dtype, shape, or number of classes than the
            plan, or are fewer than asked for; or no exit fits into max_macs.
        RuntimeError: the engine is not built.

    Example:
        >>> run_plan("net.ddi", RunConfig(images=500, batch=8))["accuracy"]
    """
    config = config or RunConfig()
    start = perf_counter()
    network = _load(plan, config)
    load_ms = (perf_counter() - start) * 1e3
    read = _read_dataset if config.input is None else _read_input
    images = read(plan, network, config).first(config.images)
    found = _call_all(network, images, config)
    if config.output is not None:
        file = io.BytesIO()
        np.save(file, found.logits.numpy())
        write_atomic(config.output, file.getvalue())
    classes = found.logits.argmax(1)
    summary: dict[str, Any] = {"plan": str(plan), **images.source}
    if images.labels is not None:
        summary["accuracy"] = (classes == images.labels).double().mean().item()
    summary |= _summarise(network, found) | {"load_ms": load_ms, "memory_bytes": network.memory_bytes}
    for name in ("batch", "threads", "max_macs", "deadline_ms", "max_joules", "confidence"):
        summary[name] = getattr(config, name)
    return {**summary, "macs": found.macs.tolist(), "classes": classes.tolist()}


def _load(plan: str | Path, config: RunConfig) -> engine.Engine:
    try:
        return engine.load(plan, config.batch, config.threads)
    except ValueError as error:
        remedy = "; `ddi freeze` writes plans" if str(error).startswith("plan: ") else ""
        raise ValueError(f"{plan}: {error}{remedy}") from error


def _read_dataset(plan: str | Path, network: engine.Engine, config: RunConfig) -> _Images:
    data = get_dataset(config.dataset or "scene_digits", config.data_root)
    if network.input_shape != data.image_shape:
        raise ValueError(
            f"run: {plan} takes images of {network.input_shape}, those of {data.name} are "
            f"{data.image_shape}; freeze it for this size, or give --input images of your own"
        )
    if network.classes != data.num_classes:
        raise ValueError(
            f"run: {plan} knows {network.classes} classes, {data.name} has {data.num_classes}; name the "
            "data set it was trained on with --dataset"
        )
    which = config.split or "test"
    split = data.test() if which == "test" else data.validation()
    return _Images(split.images, split.labels, data.normalize, {"dataset": data.name, "split": which})


def _read_input(plan: str | Path, network: engine.Engine, config: RunConfig) -> _Images:
    assert config.input is not None  # where it is None a data set is read
    try:
        with open(config.input, "rb") as file:
            array = np.lib.format.read_array(file, allow_pickle=False)
    except (ValueError, EOFError, MemoryError, OverflowError) as error:
        raise ValueError(
            f"run: input {config.input} is damaged or no .npy file ({error}); numpy.save writes them"
        ) from error
    shape = network.input_shape
    if array.dtype != np.float32 or array.ndim != 4 or array.shape[1:] != shape or len(array) == 0:
        raise ValueError(
            f"run: input {config.input} holds {array.dtype.str} {list(array.shape)}, {plan} takes "
            f"{np.dtype(np.float32).str} (numpy.float32) [N, {', '.join(map(str, shape))}], N at least 1; "
            "convert it, or freeze for its size"
        )
    return _Images(torch.from_numpy(array), None, lambda x: x, {"input": str(config.input)})


def _call_all(network: engine.Engine, images: _Images, config: RunConfig) -> _Calls:
    logits: list[Tensor] = []
    macs: list[int] = []
    joules: list[float] = []
    exits: list[int] = []
    times: list[float] = []
    for part in tqdm(images.images.split(config.batch), desc="run", disable=None):
        x = images.prepare(part)
        y, report, ms = _call(network, x, config)
        logits.append(y)
        macs += report.macs
        joules += report.joules or []
        exits += report.exits
        times.append(ms)
    doubles = (torch.tensor(values, dtype=torch.float64) for values in (joules, times))
    return _Calls(torch.cat(logits), torch.tensor(macs), next(doubles), torch.tensor(exits), next(doubles))


def _call(network: engine.Engine, x: Tensor, config: RunConfig) -> tuple[Tensor, engine.Report, float]:
    """Logits, report and milliseconds of one batch."""
    names = ("max_macs", "deadline_ms", "max_joules", "confidence", "energy")
    limits = {name: getattr(config, name) for name in names}
    start = perf_counter()
    if config.deadline_ms is not None:
        y, report = network(x, report=True, **limits)
        return y, report, (perf_counter() - start) * 1e3
    y = network(x, **limits)
    ms = (perf_counter() - start) * 1e3
    return y, network(x, report=True, **limits)[1], ms


def _summarise(network: engine.Engine, found: _Calls) -> dict[str, Any]:
    count = len(found.logits)
    mean = found.macs.double().mean().item()
    p50, p99 = torch.quantile(found.ms, torch.tensor([0.5, 0.99], dtype=torch.float64)).tolist()
    return {
        "images": count,
        "dense_macs": network.dense_macs,
        "mean_macs": mean,
        "mac_ratio": network.dense_macs / mean,
        "mean_joules": found.joules.mean().item(),
        "exits": {name: (found.exits == i).sum().item() / count for i, name in enumerate(network.exits)},
        "p50_ms": p50,
        "p99_ms": p99,
        "images_per_second": 1e3 * count / found.ms.sum().item(),
    }
