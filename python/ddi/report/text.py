"""What a run found, as text for people and as dictionaries for machines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ..evaluate.evaluate import Evaluation

__all__ = [
    "format_budget",
    "format_calibration",
    "format_demo",
    "format_evaluation",
    "format_freeze",
    "format_run",
    "format_sweep",
    "summarise",
]


def summarise(result: Evaluation) -> dict[str, Any]:
    """An evaluation as a JSON-ready dictionary; "macs" lists those of each image, in order."""
    levels = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    low, median, high = torch.quantile(result.macs, levels).tolist()
    return {
        "images": len(result.correct),
        "accuracy": result.accuracy,
        "dense_macs": result.dense_macs,
        "mean_macs": result.macs.mean().item(),
        "p10_macs": low,
        "p50_macs": median,
        "p90_macs": high,
        "mac_ratio": result.mac_ratio,
        "resource": result.resource,
        "dense_cost": result.cost.dense,
        "mean_cost": result.cost.per_sample.double().mean().item(),
        "resource_share": result.cost.share.item(),
        **({"exit_accuracy": result.exit_accuracy} if result.exit_accuracy else {}),
        "macs": result.macs.tolist(),
    }


def format_evaluation(summary: dict[str, Any]) -> str:
    """A summary as text; beside `summarise` it names its checkpoint, dataset and split."""
    million = {key: value / 1e6 for key, value in summary.items() if key.endswith("_macs")}
    return "\n".join(
        (
            f"{summary['checkpoint']} on {summary['dataset']}, {summary['split']} split, "
            f"{summary['images']} images",
            f"accuracy         {_percent(summary['accuracy'])}",
            f"dense MMACs      {million['dense_macs']:.2f}",
            f"MMACs per image  {million['mean_macs']:.2f} mean; p10 {million['p10_macs']:.2f}, "
            f"p50 {million['p50_macs']:.2f}, p90 {million['p90_macs']:.2f}",
            f"mac_ratio        {summary['mac_ratio']:.2f}",
            *_priced(summary),
            *_early(summary.get("exit_accuracy", [])),
        )
    )


def _priced(summary: dict[str, Any]) -> list[str]:
    """A line on the resource, if it is another than MACs."""
    name, mean, dense = summary["resource"], summary["mean_cost"], summary["dense_cost"]
    if name == "macs":
        return []
    return [f"{name:<16} {mean:.4g} an image; dense {dense:.4g}, share {summary['resource_share']:.3f}"]


def _early(accuracy: list[float]) -> list[str]:
    """A line on the branch classifiers, if there are any."""
    shares = ", ".join(_percent(one) for one in accuracy)
    return [f"branches         {shares}, shallowest first"] if accuracy else []


def format_budget(summary: dict[str, Any]) -> str:
    """The summary of a `ddi.evaluate_budget.BudgetEvaluation`, with its checkpoint, dataset and split."""
    limits = [
        f"{summary['budget_macs'] / 1e6:.2f} MMACs" if summary["budget_macs"] else "",
        f"{summary['budget_ms']:g} ms" if summary["budget_ms"] else "",
        f"{1e3 * summary['budget_joules']:g} mJ" if summary["budget_joules"] else "",
        f"confidence {summary['confidence']:g}" if summary["confidence"] else "",
    ]
    within = summary["within_ms_share"]
    lines = [
        f"{summary['checkpoint']} on {summary['dataset']}, {summary['split']} split, "
        f"{summary['images']} images",
        f"budget           {', '.join(filter(None, limits))}; batch {summary['batch']}",
        f"accuracy         {_percent(summary['accuracy'])}",
        f"MMACs per image  {summary['mean_macs'] / 1e6:.2f} mean, {summary['most_macs'] / 1e6:.2f} at most",
        *([f"mJ per image     {1e3 * joules:.4f} mean"] if (joules := summary["mean_joules"]) else []),
        f"ms per call      {summary['p50_ms']:.3f} median, {summary['p99_ms']:.3f} p99"
        + ("" if within is None else f"; {_percent(within)} within the deadline"),
        f"answered by      {', '.join(map(_percent, summary['exits']))}, shallowest exit first",
    ]
    return "\n".join(lines)


def format_sweep(summary: dict[str, Any]) -> str:
    """What :func:`ddi.sweep.sweep` found, as text."""
    units = {"macs": (1e-6, "MMACs"), "ms": (1, "ms"), "joules": (1e3, "mJ"), "confidence": (1e2, "%")}
    lines = [
        f"{summary['checkpoint']}, frozen",
        "budget           accuracy  MMACs an image  mJ an image  ms a call (mean, p99)",
    ]
    for row in summary["rows"]:
        factor, unit = units[row["resource"]]
        shown = "none" if row["limit"] is None else f"{row['limit'] * factor:.3f} {unit}"
        lines.append(
            f"{shown:16} {_percent(row['accuracy'])}  {row['mean_macs'] / 1e6:14.2f}  "
            f"{1e3 * row['mean_joules']:11.4f}  "
            f"{row['mean_ms']:.3f}, {row['p99_ms']:.3f}"
        )
    return "\n".join(lines)


def format_calibration(summary: dict[str, Any]) -> str:
    """What :func:`ddi.calibrate_checkpoint.calibrate_checkpoint` found, as text."""
    return "\n".join(
        (
            f"{summary['out']} for {summary['images']} validation images of {summary['dataset']}",
            f"threshold        {summary['threshold']:.6f}, was {summary['threshold_before']:.6f}",
            f"mac_ratio        {summary['mac_ratio']:.3f}, wanted {summary['wanted']:g}",
            f"evaluations      {len(summary['evaluations'])}",
        )
    )


def format_freeze(summary: dict[str, Any]) -> str:
    """What :func:`ddi.freeze_checkpoint.freeze_checkpoint` wrote, as text."""
    shape = "x".join(map(str, summary["input_shape"]))
    lines = [
        f"{summary['plan']}: {summary['model']} in {summary['dtype']}, for images of {shape}",
        f"size             {summary['bytes'] / 1e6:.2f} MB",
        f"dense MMACs      {summary['dense_macs'] / 1e6:.2f}",
        f"exits            {len(summary['exits'])}: {', '.join(summary['exits'])}",
        f"gated blocks     {len(summary['gates'])}",
    ]
    if summary["calibrate"] is not None:
        lines.append(f"calibrated on    {summary['calibrate']} training images of {summary['dataset']}")
    return "\n".join(lines)


def format_run(summary: dict[str, Any]) -> str:
    """What :func:`ddi.run_plan.run_plan` found, as text."""
    where = summary.get("input") or f"{summary.get('dataset')}, {summary.get('split')} split"
    shares = (f"{name} {_percent(share)}" for name, share in summary["exits"].items())
    lines = [f"{summary['plan']} on {where}, {summary['images']} images"]
    if "accuracy" in summary:
        lines.append(f"accuracy         {_percent(summary['accuracy'])}")
    lines += [
        f"MMACs per image  {summary['mean_macs'] / 1e6:.2f} mean; dense {summary['dense_macs'] / 1e6:.2f}",
        f"mac_ratio        {summary['mac_ratio']:.2f}",
        f"mJ per image     {1e3 * summary['mean_joules']:.4f} by the energy model",
        f"exits            {', '.join(shares)}",
        f"ms per call      {summary['p50_ms']:.3f} median, {summary['p99_ms']:.3f} p99; "
        f"batch {summary['batch']}, threads {summary['threads']}",
        f"images a second  {summary['images_per_second']:.0f}",
        f"memory           {summary['memory_bytes'] / 1e6:.1f} MB; loaded in {summary['load_ms']:.0f} ms",
    ]
    return "\n".join(lines)


def format_demo(report: dict[str, Any]) -> str:
    """The demo's report as text, see :func:`ddi.demo.run_demo`."""
    low, high = (100 * bound for bound in report["accuracy_difference_95"])
    difference = 100 * (report["accuracy_gated"] - report["accuracy_dense"])
    flips = report["decision_flips"]
    head = ("", "dense", "gated")
    accuracy = ("accuracy", *(_percent(report[f"accuracy_{kind}"]) for kind in head[1:]))
    macs = ("MMACs per image", *(f"{report[f'macs_{kind}'] / 1e6:.2f}" for kind in head[1:]))
    lines = [
        f"{report['model']} on {report['dataset']}, {report['images']} test images",
        "",
        _columns(head, 12),
        _columns(accuracy, 12) + f"   difference {difference:+.2f} points, "
        f"95 % interval {low:+.2f} to {high:+.2f} (bootstrap over scans)",
        _columns(macs, 12) + f"   mac_ratio {report['mac_ratio']:.2f}",
        "",
        *_format_times(report["table"], report["passes"]),
        "",
        *(_format_speedup(report, batch) for batch in (1, 32)),
        f"Sparse against dense-times-mask: largest relative difference {report['max_rel_err']:.1e} "
        f"over {report['images'] - flips} images; {flips} more took another decision.",
        f"Correlation of an image's cost with its difficulty: {_or_none(report['cost_difficulty_corr'])}.",
    ]
    lines += [f"INCOMPLETE: {reason}" for reason in report["incomplete"]]
    return "\n".join(lines)


def _percent(value: float) -> str:
    return f"{100 * value:.2f} %"


def _or_none(value: float | None) -> str:
    return "undefined (one of them is constant)" if value is None else f"{value:.2f}"


def _format_speedup(report: dict[str, Any], batch: int) -> str:
    return (
        f"Batch {batch}, one thread: {report[f'speedup_b{batch}']:.2f}x as fast as the faster "
        f"eager layout; against the fastest dense, {100 * report[f'realised_b{batch}']:.0f} % of "
        "mac_ratio."
    )


def _format_times(rows: list[dict[str, Any]], passes: int) -> list[str]:
    """Providers down, batch and threads across: median and spread."""
    cases = list(dict.fromkeys((row["batch"], row["threads"]) for row in rows))
    found = {(row["provider"], row["batch"], row["threads"]): row for row in rows}
    heads = [f"batch {batch}, {threads} thread{'s' * (threads > 1)}" for batch, threads in cases]
    lines = [
        f"milliseconds per image, median of {passes} pass{'es' * (passes > 1)} (p20-p80)",
        _columns(("", *heads), 26),
    ]
    for provider in dict.fromkeys(row["provider"] for row in rows):
        cells = [_cell(found[provider, batch, threads]) for batch, threads in cases]
        lines.append(_columns((provider, *cells), 26))
    return lines


def _columns(cells: Sequence[str], width: int) -> str:
    """A left-aligned name, then right-aligned cells."""
    return f"{cells[0]:22}" + "".join(f"{cell:>{width}}" for cell in cells[1:])


def _cell(row: dict[str, Any]) -> str:
    if row["median_ms"] is None:
        return str(row["status"])
    return f"{row['median_ms']:.3f} ({row['p20_ms']:.3f}-{row['p80_ms']:.3f})"
