"""The `ddi` command: one verb a function, each a thin shell over the library."""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
import tomllib
from contextlib import nullcontext
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from .cli_eval import add_calibrate, add_eval, energy_model
from .cli_grid import add_grid, add_report

__all__ = ["main"]


_NOT_FLAGS = {"gates", "model_kwargs"}  # fields of TrainConfig that a config file alone can set whole


def _add_train(verbs: Any) -> None:
    parser = verbs.add_parser("train", help="train a plain or a gated network")
    parser.add_argument("--out", required=True, help="folder for the checkpoint and the state")
    parser.add_argument("--config", help="TOML or JSON file with fields of ddi.train.TrainConfig")
    parser.add_argument("--resume", action="store_true", help="continue the run in --out")
    parser.add_argument("--tensorboard", action="store_true", help="write statistics for TensorBoard, too")
    parser.add_argument("--gates", help="kind of gates, e.g. ddi; left out: a plain network")
    parser.add_argument("--group-size", type=int, default=1, help="channels per gate bit")
    _add_train_fields(parser)
    parser.set_defaults(run=_train)


def _add_train_fields(parser: argparse.ArgumentParser) -> None:
    from .train import TrainConfig

    for item in fields(TrainConfig):
        if item.name in _NOT_FLAGS:
            continue
        flag, text = "--" + item.name.replace("_", "-"), f"default {item.default}"
        if item.type == "bool":
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, help=text)
            continue
        kind = {"int": int, "float": float}.get(str(item.type), str)
        parser.add_argument(flag, type=kind, help=text)


def _train(args: argparse.Namespace) -> Any:
    from .train import TrainConfig, train

    values: dict[str, Any] = _read_config(args.config) if args.config else {}
    names = {item.name for item in fields(TrainConfig)} - _NOT_FLAGS
    values |= {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    if args.gates:
        values["gates"] = {"kind": args.gates, "group_size": args.group_size}
    config = TrainConfig.from_dict(values)
    last = train(config, args.out, resume=args.resume, tensorboard=args.tensorboard)
    return {"config": asdict(config), **last}


def _add_demo(verbs: Any) -> None:
    parser = verbs.add_parser("demo", help="the shipped gated network against its dense counterpart")
    parser.add_argument("--out", required=True, help="folder for report.json and the figures")
    parser.add_argument("--dense", metavar="FILE", help="plain checkpoint instead of the shipped one")
    parser.add_argument("--gated", metavar="FILE", help="gated checkpoint instead of the shipped one")
    parser.add_argument("--images", type=int, metavar="N", help="use the first N test images only")
    parser.add_argument("--passes", type=int, default=5, help="timing passes (default 5)")
    parser.set_defaults(run=_demo, measures=True)


def _demo(args: argparse.Namespace) -> Any:
    from .demo import DemoConfig, run_demo
    from .tables import format_demo

    config = DemoConfig(args.dense, args.gated, args.images, args.passes, args.seed)
    report = run_demo(args.out, config)
    print(format_demo(report))
    print(f"\nWrote report.json and four figures to {args.out} after {report['seconds']:.0f} s.")
    return report


def _add_freeze(verbs: Any) -> None:
    parser = verbs.add_parser("freeze", help="write a checkpoint's network as a plan, for the engine")
    parser.add_argument("checkpoint")
    parser.add_argument("plan", help="the file to write")
    parser.add_argument("--dtype", choices=("fp32", "bf16", "int8"), default="fp32")
    parser.add_argument("--size", type=int, nargs=2, metavar=("H", "W"), help="of the images (default 32 32)")
    parser.add_argument("--calibrate", type=int, metavar="N", help="int8: on N training images (default 256)")
    parser.add_argument("--dataset", help="int8: of these; default: what it was trained on")
    parser.add_argument("--data-root", metavar="DIR", help="int8: folder of CIFAR")
    parser.set_defaults(run=_freeze)


def _freeze(args: argparse.Namespace) -> Any:
    from .freeze_checkpoint import FreezeConfig, freeze_checkpoint
    from .tables import format_freeze

    size = None if args.size is None else (args.size[0], args.size[1])
    config = FreezeConfig(args.dtype, size, args.calibrate, args.dataset, args.data_root, args.seed)
    summary = freeze_checkpoint(args.checkpoint, args.plan, config)
    print(format_freeze(summary))
    return summary


def _add_run(verbs: Any) -> None:
    parser = verbs.add_parser("run", help="accuracy, MACs and milliseconds of a frozen plan")
    parser.add_argument("plan")
    parser.add_argument("--dataset", help="default: scene_digits")
    parser.add_argument("--data-root", metavar="DIR", help="folder of CIFAR")
    parser.add_argument("--split", choices=("test", "validation"), help="default: test")
    parser.add_argument("--input", metavar="FILE", help=".npy of float32 [N, C, H, W], not a data set")
    parser.add_argument("--output", metavar="FILE", help="write the logits there, a .npy file")
    parser.add_argument("--images", type=int, metavar="N", help="the first N only")
    parser.add_argument("--batch", type=int, default=1, help="images a call (default 1)")
    parser.add_argument("--threads", type=int, default=1, help="of a call (default 1)")
    parser.add_argument("--max-macs", type=int, metavar="M", help="multiply-adds of a sample, never exceeded")
    parser.add_argument("--deadline-ms", type=float, metavar="D", help="milliseconds of a call")
    parser.add_argument("--max-joules", type=float, metavar="J", help="of a sample, by an energy model")
    parser.add_argument("--energy", metavar="FILE", help="that model, JSON; default: Horowitz, 45 nm")
    parser.add_argument(
        "--confidence", type=float, metavar="P", help="each image halts at the first exit as sure as this"
    )
    parser.set_defaults(run=_run, measures=True)


def _run(args: argparse.Namespace) -> Any:
    from .run_plan import RunConfig, run_plan
    from .tables import format_run

    args.energy = energy_model(args)
    config = RunConfig(**{item.name: getattr(args, item.name) for item in fields(RunConfig)})
    summary = run_plan(args.plan, config)
    print(format_run(summary))
    return summary


def _add_env(verbs: Any) -> None:
    parser = verbs.add_parser("env", help="machine, versions, and which kernels are in use and why")
    parser.set_defaults(run=_env)


def _env(args: argparse.Namespace) -> Any:
    from ddi_kernels import collect_env
    from ddi_kernels.collect_env import format_env

    env = collect_env()
    print(format_env(env))
    return env


def _add_profile(verbs: Any) -> None:
    parser = verbs.add_parser(
        "profile", help="measure dense and gated kernels here, for the choices of the backend auto"
    )
    parser.add_argument("--threads", type=int, help="default: what torch takes")
    parser.add_argument("--dtype", choices=("fp32",), default="fp32")
    parser.add_argument("--out", metavar="FILE", help="default: this device's table in the user's cache")
    parser.add_argument("--budget-minutes", type=float, default=5, help="begin no shape after (default 5)")
    parser.add_argument("--cases", default="", metavar="SUBSTRING", help="only shapes with this in the name")
    parser.add_argument("--fresh", action="store_true", help="start over instead of going on")
    parser.set_defaults(run=_profile, measures=True)


def _profile(args: argparse.Namespace) -> Any:
    from .profile import ProfileConfig, profile

    config = ProfileConfig(args.threads, args.out, args.budget_minutes, args.fresh, args.cases, args.seed)
    result = profile(config)
    print(result.describe())
    return asdict(result)


def _add_bench(verbs: Any) -> None:
    parser = verbs.add_parser(
        "bench",
        help="measure the operators; from a checkout only",
        description="The options of a suite, --json and --seed among them: ddi bench SUITE --help",
    )
    parser.add_argument("suite", help="e.g. op")
    parser.add_argument("options", nargs=argparse.REMAINDER, help="handed to the suite")
    parser.set_defaults(run=_bench, json=None)


def _bench(args: argparse.Namespace) -> None:
    # In a process of its own: bench imports this package, so this package does not import bench.
    root = Path(__file__).resolve().parents[2]
    if not (root / "bench" / "__main__.py").is_file():
        raise ValueError(
            f"{root} has no folder bench: it is part of a checkout, not of an installed package; "
            "clone the repository, run `pip install --no-build-isolation -e .` there, and try again"
        )
    path = os.pathsep.join(filter(None, (str(root), os.environ.get("PYTHONPATH"))))
    # -P: not a folder named bench that happens to lie in the current one.
    command = [sys.executable, "-P", "-m", "bench", args.suite, *args.options]
    status = subprocess.run(command, env=os.environ | {"PYTHONPATH": path}).returncode
    if status:
        sys.exit(status)  # the suite has said why


def _read_config(path: str) -> dict[str, Any]:
    text = Path(path).read_text()
    try:
        return json.loads(text) if path.endswith(".json") else tomllib.loads(text)
    except (json.JSONDecodeError, tomllib.TOMLDecodeError) as error:
        raise ValueError(f"config {path}: {error}") from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("ddi", description="Dual dynamic inference with real savings.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    _add_demo(verbs)
    _add_train(verbs)
    add_grid(verbs)
    add_report(verbs)
    add_eval(verbs)
    add_calibrate(verbs)
    _add_freeze(verbs)
    _add_run(verbs)
    _add_env(verbs)
    _add_profile(verbs)
    for verb in verbs.choices.values():
        verb.add_argument("--json", metavar="FILE", help="write the result there too")
        if not any(action.dest == "seed" for action in verb._actions):
            verb.add_argument("--seed", type=int, default=0)
    _add_bench(verbs)  # its suites have these two themselves
    return parser


def main(argv: list[str] | None = None) -> int:
    """Runs a verb; returns the exit status."""
    args = _parser().parse_args(argv)
    # Our own progress, not the chatter of the libraries beneath.
    logging.basicConfig(format="%(message)s")
    logging.getLogger("ddi").setLevel(logging.INFO)
    from .quiet import measuring
    from .train import Interrupted
    from .train.distributed import is_main

    try:
        with measuring() if "measures" in args else nullcontext():
            result = args.run(args)
        if args.json and is_main():
            from .checkpoint import write_atomic

            write_atomic(args.json, json.dumps(result, indent=1).encode())
    except Interrupted as error:
        print(error, file=sys.stderr)
        return 130
    except KeyboardInterrupt:
        print(f"ddi {args.verb}: interrupted", file=sys.stderr)
        return 130
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        print(f"ddi {args.verb}: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0
