"""`ddi eval`: accuracy and cost of a trained network, also under budgets."""

from __future__ import annotations

import argparse
from typing import Any

from .energy_option import energy_model

__all__ = ["add", "run"]


def add(verbs: Any) -> None:
    """Adds `ddi eval`."""
    parser = verbs.add_parser("eval", help="accuracy and cost of a checkpoint, on the sparse path")
    parser.add_argument("checkpoint")
    parser.add_argument("--dataset", help="default: what it was trained on, else scene_digits")
    parser.add_argument("--data-root", metavar="DIR", help="folder of CIFAR")
    parser.add_argument("--split", choices=("test", "validation"), default="test")
    parser.add_argument("--threads", type=int, help="default: what torch takes")
    parser.add_argument(
        "--budget-macs", type=float, metavar="M", help="of a sample: halts at an exit that fits"
    )
    parser.add_argument("--budget-ms", type=float, metavar="T", help="deadline of a call")
    parser.add_argument("--budget-joules", type=float, metavar="J", help="of a sample, by an energy model")
    parser.add_argument("--energy", metavar="FILE", help="that model, JSON; default: Horowitz, 45 nm")
    parser.add_argument(
        "--confidence", type=float, metavar="P", help="each image halts at the first exit as sure as this"
    )
    parser.add_argument("--batch", type=int, default=1, help="images a call under a budget (default 1)")
    parser.add_argument("--sweep", metavar="DIR", help="accuracy at many budgets, frozen, drawn into DIR")
    parser.add_argument("--resource", default="macs", help="macs (default), ms or joules, told beside MACs")
    parser.add_argument("--latency-table", metavar="FILE", help="for ms; default: this device's own")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> Any:
    """Runs it; returns what --json writes."""
    import torch

    from ..budgets.budget import Budget
    from ..checkpoint import load_model
    from ..cost import as_resource
    from ..data import get_dataset
    from ..evaluate.evaluate import evaluate
    from ..evaluate.evaluate_budget import evaluate_budget
    from ..measure.timing import num_threads
    from ..report.text import format_budget, format_evaluation, summarise

    if args.sweep:
        return _sweep(args)
    limits = Budget(args.budget_macs, args.budget_ms, args.budget_joules, args.confidence, energy_model(args))
    resource = as_resource(args.resource, args.latency_table)
    model, meta = load_model(args.checkpoint)
    name = args.dataset or meta.get("dataset", "scene_digits")
    data = get_dataset(name, args.data_root)
    split = data.test() if args.split == "test" else data.validation()
    with num_threads(torch.get_num_threads() if args.threads is None else args.threads):
        with torch.inference_mode():
            classes = model(data.normalize(split.images[:1])).shape[1]
        if classes != data.num_classes:
            raise ValueError(
                f"{args.checkpoint} knows {classes} classes, {name} has {data.num_classes}; name "
                "the data set it was trained on with --dataset"
            )
        head = {"checkpoint": args.checkpoint, "dataset": name, "split": args.split}
        if limits == Budget(energy=limits.energy):
            result = evaluate(model, data, split, progress=True, resource=resource)
            summary = {**head, **summarise(result)}
            print(format_evaluation(summary))
        else:
            found = evaluate_budget(model, data, split, limits, args.batch, progress=True)
            summary = {**head, "batch": args.batch, **found.summary()}
            print(format_budget(summary))
    return summary


def _sweep(args: argparse.Namespace) -> Any:
    from ..evaluate.run_plan import RunConfig
    from ..measure.quiet import measuring
    from ..report.sweep import sweep
    from ..report.text import format_sweep

    base = RunConfig(args.dataset, args.data_root, args.split, batch=args.batch, threads=args.threads or 1)
    with measuring():
        summary = sweep(args.checkpoint, args.sweep, base)
    print(format_sweep(summary))
    return summary
