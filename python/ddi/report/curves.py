"""`ddi report`: curves of training runs by epoch, and of grids by multiply-adds and milliseconds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..train.history import read_history
from .comparison import HALTING, Point, compare, curve, format_comparison, gatings, points_of, read_results
from .figures import new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Report", "draw_report", "plot_comparison", "plot_history"]

_COLOURS = {
    "both": "#0072b2",
    "channel": "#009e73",
    "dense": "black",
    "layer": "#d55e00",
    "narrow": "#cc79a7",
    "shallow": "#e69f00",
}


@dataclass
class Report:
    """What `draw_report` has made.

    Attributes:
        figures: paths of the files.
        tables: texts, one for each file of rows.
        comparisons: JSON-ready, one for each file of rows: source, points, needed (see
            `comparison.compare`).
    """

    figures: list[str] = field(default_factory=list)
    tables: list[str] = field(default_factory=list)
    comparisons: list[dict[str, Any]] = field(default_factory=list)


def draw_report(sources: Sequence[str | Path], out: str | Path) -> Report:
    """Draws runs and grids, each figure into a PNG file of its own, and compares the rows of grids.

    Args:
        sources: folders of runs, which have a `history.jsonl`, and files of rows of `ddi grid`.
        out: folder for the figures, named after their sources; a number tells equal names apart.

    Raises:
        FileNotFoundError, ValueError: a source is missing, empty or damaged; nothing is written then.
        ImportError: matplotlib is missing.

    Example:
        >>> draw_report(["out/ddi", "bench/results/scene_digits_ddi.jsonl"], "out/report").figures
    """
    report = Report()
    figures: dict[str, Figure] = {}
    for source in map(Path, sources):
        if source.is_dir():
            history = read_history(source)
            if not history:
                raise ValueError(f"report: {source}: no epoch of this run has ended yet")
            figures[_free_name(source.resolve().name, figures)] = plot_history(history, str(source))
            continue
        points = points_of(read_results(source))
        for network in dict.fromkeys(point.network for point in points):
            figures[_free_name(f"{source.stem}_{network}", figures)] = plot_comparison(points, network)
        report.tables.append(format_comparison(str(source), points))
        report.comparisons.append(
            {"source": str(source), "points": [asdict(p) for p in points], "needed": compare(points)}
        )
    for name, figure in figures.items():
        path = Path(out) / f"{name}.png"
        save_figure(figure, path)
        report.figures.append(str(path))
    return report


def _free_name(name: str, taken: dict[str, Any]) -> str:
    names = [name, *(f"{name}_{number}" for number in range(2, len(taken) + 2))]
    return next(one for one in names if one not in taken)


def plot_history(history: Sequence[dict[str, Any]], title: str) -> Figure:
    """Loss, accuracy and share of the MACs by epoch, below one another, with the stages marked.

    Args:
        history: of `read_history`, at least one line.
        title: of the figure.
    """
    figure = new_figure(8, 8)
    upper, middle, lower = figure.subplots(3, 1, sharex=True)
    epochs = range(1, len(history) + 1)

    def draw(axes: Axes, label: str, colour: str, values: list[float]) -> None:
        axes.plot(epochs, values, ".-", color=colour, label=label)

    draw(upper, "loss", "#0072b2", [line["loss"] for line in history])
    draw(upper, "without the budget's penalty", "#e69f00", [line["task_loss"] for line in history])
    draw(middle, "whole network", "#0072b2", [100 * line["validation_accuracy"] for line in history])
    for i in range(min(len(line.get("exit_accuracy", [])) for line in history)):
        grey = f"{0.75 - 0.08 * min(i, 6):.2f}"  # deeper ones darker
        draw(middle, f"branch {i + 1}", grey, [100 * line["exit_accuracy"][i] for line in history])
    draw(lower, "training images", "#e69f00", [line["mac_share"] for line in history])
    draw(lower, "validation images", "#0072b2", [1 / line["mac_ratio"] for line in history])
    upper.set_ylabel("loss")
    middle.set_ylabel("validation accuracy, %")
    lower.set_ylabel("share of the dense MACs")
    lower.set_ylim(bottom=0)
    lower.set_xlabel("epoch")
    for axes in (upper, middle, lower):
        _mark_stages(axes, history, named=axes is upper)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.suptitle(title, fontsize=11)
    return figure


def _mark_stages(axes: Axes, history: Sequence[dict[str, Any]], named: bool) -> None:
    """A line before the first epoch of each stage, and its name on top."""
    before = None
    for number, line in enumerate(history, 1):
        if line["stage"] == before:
            continue
        before = line["stage"]
        axes.axvline(number - 0.5, color="0.6", linestyle="--", linewidth=1)
        if named:
            axes.text(number - 0.45, 1.01, before, transform=axes.get_xaxis_transform(), fontsize=9)


def plot_comparison(points: Sequence[Point], network: str) -> Figure:
    """Accuracy of a network's gatings against MACs, and against milliseconds where they are measured; means
    over the seeds, and a bar from the worst to the best."""
    mine = [point for point in points if point.network == network]
    panels = [("macs", "MMACs per image, gates included")]
    panels += [
        (name, f"ms per image, batch {batch}, one thread")
        for name, batch in (("ms_b1", 1), ("ms_b32", 32))
        if any(getattr(point, name) is not None for point in mine)
    ]
    figure = new_figure(1 + 5 * len(panels), 4.5)
    row = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (name, label) in zip(row, panels, strict=True):
        _draw_gatings(axes, mine, name)
        axes.set_xlim(left=0)
        axes.set_xlabel(label)
        axes.set_ylabel("test accuracy, %")
        axes.grid(alpha=0.3)
        axes.legend(loc="lower right", fontsize=8)
    figure.suptitle(f"{network}: mean over seeds, worst to best", fontsize=11)
    return figure


def _draw_gatings(axes: Axes, points: Sequence[Point], name: str) -> None:
    """A line for each gating up to the dense network, which is a square, by an attribute of points."""
    network = points[0].network
    for gating in gatings(points, network):
        if gating != "dense":
            line = curve(points, network, gating)
            colour, fmt = _COLOURS.get(gating.removesuffix(HALTING)), "o--" if HALTING in gating else "o-"
            _draw_line(axes, line, name, color=colour, fmt=fmt, label=gating)
    dense = [point for point in points if point.gating == "dense"]
    _draw_line(axes, dense, name, color="black", fmt="s", label="dense", zorder=3)


def _draw_line(axes: Axes, points: Sequence[Point], name: str, **style: Any) -> None:
    placed = [point for point in points if getattr(point, name) is not None]
    if not placed:
        return
    spread = [  # rounding may put the mean of equal numbers beside them
        [max(0.0, 100 * (point.accuracy - point.low)) for point in placed],
        [max(0.0, 100 * (point.high - point.accuracy)) for point in placed],
    ]
    x = [getattr(point, name) / (1e6 if name == "macs" else 1) for point in placed]
    axes.errorbar(x, [100 * point.accuracy for point in placed], spread, capsize=3, **style)
