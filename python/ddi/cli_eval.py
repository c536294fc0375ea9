"""The verbs of the `ddi` command for trained networks: `eval`, also under budgets, and `calibrate`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

__all__ = ["add_calibrate", "add_eval", "energy_model"]


def add_eval(verbs: Any) -> None:
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
    parser.set_defaults(run=_eval)


def _eval(args: argparse.Namespace) -> Any:
    import torch

    from .budget import Budget
    from .checkpoint import load_model
    from .cost import as_resource
    from .data import get_dataset
    from .evaluate import evaluate
    from .evaluate_budget import evaluate_budget
    from .tables import format_budget, format_evaluation, summarise
    from .timing import num_threads

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


def energy_model(args: argparse.Namespace) -> Any:
    """The energy model of --energy, or the default one."""
    from ddi_kernels.prices.energy import HOROWITZ_45NM, EnergyModel

    if args.energy is None:
        return HOROWITZ_45NM
    try:
        return EnergyModel.loads(Path(args.energy).read_text())
    except ValueError as error:
        raise ValueError(f"energy model {args.energy}: {error}; EnergyModel.dumps() writes one") from error


def _sweep(args: argparse.Namespace) -> Any:
    from .quiet import measuring
    from .run_plan import RunConfig
    from .sweep import sweep
    from .tables import format_sweep

    base = RunConfig(args.dataset, args.data_root, args.split, batch=args.batch, threads=args.threads or 1)
    with measuring():
        summary = sweep(args.checkpoint, args.sweep, base)
    print(format_sweep(summary))
    return summary


def add_calibrate(verbs: Any) -> None:
    """Adds `ddi calibrate`."""
    parser = verbs.add_parser("calibrate", help="move the threshold of trained gates to a wanted cost")
    parser.add_argument("checkpoint")
    parser.add_argument(
        "--mac-ratio", type=float, required=True, metavar="R", help="dense MACs over mean MACs"
    )
    parser.add_argument("--out", required=True, metavar="FILE", help="the checkpoint to write")
    parser.add_argument("--tolerance", type=float, default=0.01, help="share of R to be off (default 0.01)")
    parser.add_argument("--dataset", help="default: what it was trained on, else scene_digits")
    parser.add_argument("--data-root", metavar="DIR", help="folder of CIFAR")
    parser.add_argument("--images", type=int, metavar="N", help="the first N of the validation split only")
    parser.set_defaults(run=_calibrate)


def _calibrate(args: argparse.Namespace) -> Any:
    from .calibrate_checkpoint import calibrate_checkpoint
    from .tables import format_calibration

    where = (args.dataset, args.data_root, args.images)
    summary = calibrate_checkpoint(args.checkpoint, args.out, args.mac_ratio, args.tolerance, *where)
    print(format_calibration(summary))
    return summary
