"""Figures of what a gated network does: cost, accuracy by cost, images, open channels.

Drawn without pyplot, so nothing depends on a display or leaves global state behind, and written
atomically. MACs are shown in millions (MMACs) per image throughout.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..data import Split
from ..evaluate.evaluate import Evaluation
from ..files import write_atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "new_figure",
    "plot_accuracy_vs_macs",
    "plot_macs_histogram",
    "plot_open_by_class",
    "plot_samples",
    "plot_sweep",
    "save_figure",
    "write_figures",
]

_EASY_TO_HARD = ("#0072b2", "#e69f00", "#d55e00")
_THIRDS = ("easy third", "middle third", "hard third")


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of a size in inches.

    Raises:
        ImportError: matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("figures need matplotlib: pip install ddi-kernels[report]") from error
    return Figure(figsize=(width, height), layout="constrained")


def save_figure(figure: Figure, path: Path) -> None:
    """Writes a figure as PNG, whole or not at all."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    write_atomic(path, buffer.getvalue())


def write_figures(
    out: Path,
    dense: Evaluation,
    gated: Evaluation,
    split: Split,
    sweep: Sequence[dict[str, float]],
    shipped: float,
) -> None:
    """Writes all figures of this file into a folder as PNG, each whole or not at all.

    Args:
        out: the folder.
        dense, gated: results of the two networks on `split`, whose difficulty is known.
        sweep, shipped: see `plot_accuracy_vs_macs`.
    """
    assert split.difficulty is not None
    figures = {
        "macs_histogram": plot_macs_histogram(gated, split.difficulty),
        "accuracy_vs_macs": plot_accuracy_vs_macs(sweep, shipped, dense),
        "samples": plot_samples(gated, split),
        "open_by_class": plot_open_by_class(gated, split.labels),
    }
    for name, figure in figures.items():
        save_figure(figure, out / f"{name}.png")


def _thirds(difficulty: Tensor) -> list[Tensor]:
    """Indices of the easy, the middle and the hard third."""
    return list(torch.argsort(difficulty, stable=True).tensor_split(3))


def plot_macs_histogram(result: Evaluation, difficulty: Tensor) -> Figure:
    """MACs per image, one histogram for each third of difficulty: float[S]."""
    figure = new_figure(8, 4.5)
    axes = figure.subplots()
    macs = result.macs / 1e6
    edges = torch.linspace(macs.min().item() - 0.01, macs.max().item() + 0.01, 41).tolist()
    for rows, colour, name in zip(_thirds(difficulty), _EASY_TO_HARD, _THIRDS, strict=True):
        part, mean = macs[rows].numpy(), macs[rows].mean().item()
        label = f"{name}: mean {mean:.1f} MMACs"
        axes.hist(part, edges, histtype="stepfilled", color=colour, alpha=0.15)
        axes.hist(part, edges, histtype="step", color=colour, linewidth=1.6, label=label)
        axes.axvline(mean, color=colour, linestyle=":", linewidth=1.4)
    axes.set_xlabel("MMACs per image, gates included (dotted: mean of the third)")
    axes.set_ylabel("test images")
    dense = result.dense_macs / 1e6
    axes.set_title(f"Cost of an image by difficulty (the dense network: {dense:.1f} MMACs for every image)")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def plot_accuracy_vs_macs(sweep: Sequence[dict[str, float]], shipped: float, dense: Evaluation) -> Figure:
    """Accuracy against mean MACs.

    Args:
        sweep: points with "threshold", "accuracy" and "macs", in the order of their thresholds.
        shipped: the threshold among them that the checkpoint has.
        dense: the plain network's result.
    """
    figure = new_figure(7, 4.5)
    axes = figure.subplots()
    macs = [point["macs"] / 1e6 for point in sweep]
    accuracy = [100 * point["accuracy"] for point in sweep]
    axes.plot(macs, accuracy, "o-", color="#0072b2", label="gated, threshold moved")
    for number, (point, x, y) in enumerate(zip(sweep, macs, accuracy, strict=True)):
        if point["threshold"] == shipped:
            axes.plot([x], [y], "*", color="#d55e00", markersize=17, label="gated, as shipped")
        offset = (8, -16 if number % 2 else 9)  # in turn, so that close points keep their labels
        axes.annotate(f"{point['threshold']:g}", (x, y), offset, textcoords="offset points", fontsize=10)
    dense_point = ([dense.dense_macs / 1e6], [100 * dense.accuracy])
    axes.plot(*dense_point, "s", color="black", label="dense", markersize=8)
    axes.set_xlim(0, 1.06 * max(*macs, dense.dense_macs / 1e6))
    axes.margins(y=0.15)
    axes.set_xlabel("mean MMACs per image, gates included")
    axes.set_ylabel("test accuracy, %")
    axes.set_title("Accuracy against cost (the numbers are the gates' threshold)")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    return figure


def plot_sweep(rows: Sequence[dict[str, Any]]) -> Figure:
    """Accuracy against what an image takes in MACs, milliseconds and joules, a panel each, and a curve for
    each kind of budget. rows: of :func:`ddi.sweep.sweep`.
    """
    figure = new_figure(15, 4.5)
    titles = {
        "mean_macs": ("mean MMACs per image", 1e-6),
        "mean_ms": ("mean ms per call", 1.0),
        "mean_joules": ("mean mJ per image, by the energy model", 1e3),
    }
    names = {
        "macs": "limits on MACs",
        "joules": "limits on joules",
        "ms": "deadlines",
        "confidence": "halting where certain",
    }
    for axes, (column, (title, factor)) in zip(figure.subplots(1, 3), titles.items(), strict=True):
        for resource, colour in zip(names, (*_EASY_TO_HARD, "#009e73"), strict=True):
            found = [row for row in rows if row["resource"] == resource]
            x = [row[column] * factor for row in found]
            y = [100 * row["accuracy"] for row in found]
            axes.plot(x, y, "o-", color=colour, label=names[resource])
            axes.plot(x[-1:], y[-1:], "s", color="black", markersize=8)
        axes.set_xlim(left=0)
        axes.set_xlabel(title)
        axes.set_ylabel("test accuracy, %")
        axes.grid(alpha=0.3)
        axes.legend(loc="lower right")
    figure.suptitle("What a budget buys (square: without one)", fontsize=12)
    return figure


def plot_samples(result: Evaluation, split: Split, count: int = 16) -> Figure:
    """The cheapest and the dearest images, each with its MACs; wrong answers in red."""
    order = torch.argsort(result.macs, stable=True)
    columns = 8
    figure = new_figure(11, 7.2)
    upper, lower = figure.subfigures(2, 1)  # type: ignore[misc]
    groups = ((upper, order[:count], "cheapest"), (lower, order[-count:].flip(0), "dearest"))
    for part, chosen, name in groups:
        part.suptitle(f"The {len(chosen)} {name} test images (red: wrong answers)", fontsize=12)
        cells = part.subplots(-(-count // columns), columns).flatten()
        for cell in cells:
            cell.set_axis_off()
        for cell, row in zip(cells, chosen.tolist(), strict=False):
            _draw_sample(cell, result, split, row)
    return figure


def _draw_sample(cell: Axes, result: Evaluation, split: Split, row: int) -> None:
    cell.imshow(split.images[row].permute(1, 2, 0).numpy(), interpolation="nearest")
    label, answer = int(split.labels[row]), int(result.logits[row].argmax())
    right = label == answer
    answered = f"{label}" if right else f"{label}, taken for {answer}"
    text = f"{result.macs[row] / 1e6:.1f} MMACs\n{answered}"
    style: dict[str, Any] = {"ha": "center", "va": "top", "fontsize": 10}
    colour = "black" if right else "#c00000"
    cell.text(0.5, -0.04, text, transform=cell.transAxes, color=colour, **style)


def plot_open_by_class(result: Evaluation, labels: Tensor) -> Figure:
    """Two maps, class by block: the share of images that run it, and of its channels open in those.

    Args:
        result: of a gated network.
        labels: int64[S].
    """
    names = result.block_names
    keep = torch.ones(len(labels), len(names))
    for column, name in enumerate(result.keep_names):
        keep[:, names.index(name)] = result.keep[:, column].float()
    members = torch.nn.functional.one_hot(labels, result.logits.shape[1]).float()
    ran = members.T @ keep
    kept = ran / members.sum(0)[:, None]
    opened = (members.T @ result.open_share) / ran
    marked = [name if name in result.keep_names else f"{name}*" for name in names]
    figure = new_figure(max(8, 3 + 0.5 * len(names)), 8.5)
    upper, lower = figure.subplots(2, 1)
    _draw_map(upper, kept, marked, "% of images that run the block (* changes shape, always runs)")
    title = "% of the block's interior channels open, in the images that run it (-: none does)"
    _draw_map(lower, opened, marked, title)
    return figure


def _draw_map(axes: Axes, share: Tensor, names: list[str], title: str) -> None:
    axes.imshow(share.numpy(), cmap="viridis", vmin=0, vmax=1, aspect="auto")
    for row, values in enumerate(share.tolist()):
        for column, value in enumerate(values):
            text = "-" if math.isnan(value) else f"{100 * value:.0f}"
            colour = "white" if value < 0.6 else "black"
            axes.text(column, row, text, ha="center", va="center", fontsize=9, color=colour)
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right")
    axes.set_yticks(range(len(share)))
    axes.set_ylabel("class")
    axes.set_title(title)
