"""`ddi train`."""

from __future__ import annotations

import argparse
import json
import tomllib
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

__all__ = ["add", "run"]

_NOT_FLAGS = {"gates", "model_kwargs"}  # fields of TrainConfig that a config file alone can set whole


def add(verbs: Any) -> None:
    """Adds `ddi train`."""
    parser = verbs.add_parser("train", help="train a plain or a gated network")
    parser.add_argument("--out", required=True, help="folder for the checkpoint and the state")
    parser.add_argument("--config", help="TOML or JSON file with fields of ddi.train.TrainConfig")
    parser.add_argument("--resume", action="store_true", help="continue the run in --out")
    parser.add_argument("--tensorboard", action="store_true", help="write statistics for TensorBoard, too")
    parser.add_argument("--gates", help="kind of gates, e.g. ddi; left out: a plain network")
    parser.add_argument("--group-size", type=int, default=1, help="channels per gate bit")
    _add_train_fields(parser)
    parser.set_defaults(run=run)


def _add_train_fields(parser: argparse.ArgumentParser) -> None:
    from ..train import TrainConfig

    for item in fields(TrainConfig):
        if item.name in _NOT_FLAGS:
            continue
        flag, text = "--" + item.name.replace("_", "-"), f"default {item.default}"
        if item.type == "bool":
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, help=text)
            continue
        kind = {"int": int, "float": float}.get(str(item.type), str)
        parser.add_argument(flag, type=kind, help=text)


def run(args: argparse.Namespace) -> Any:
    """Runs it; returns what --json writes."""
    from ..train import TrainConfig, train

    values: dict[str, Any] = _read_config(args.config) if args.config else {}
    names = {item.name for item in fields(TrainConfig)} - _NOT_FLAGS
    values |= {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    if args.gates:
        values["gates"] = {"kind": args.gates, "group_size": args.group_size}
    config = TrainConfig.from_dict(values)
    last = train(config, args.out, resume=args.resume, tensorboard=args.tensorboard)
    return {"config": asdict(config), **last}


def _read_config(path: str) -> dict[str, Any]:
    text = Path(path).read_text()
    try:
        return json.loads(text) if path.endswith(".json") else tomllib.loads(text)
    except (json.JSONDecodeError, tomllib.TOMLDecodeError) as error:
        raise ValueError(f"config {path}: {error}") from error
