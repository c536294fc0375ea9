"""Whole networks in the engine against the fastest dense runtime, same process, same images, in turn.

Dense opponents are onnxruntime, OpenVINO and torch.compile with frozen weights. Ours are the plain network,
and the gated one with layers and channels closed alike or channels alone, at one ratio of multiply-adds, its
bits drawn anew for each of 256 samples; gate networks run in full. Trained networks, such as the shipped
ResNet-38, take their own decisions on real images instead, and halt at a branch classifier that is certain
where `--confidence` says so. Single calls are timed at batch 1, for latency's percentiles.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor
from tqdm import tqdm

from ddi.measure.timing import num_threads
from ddi.measure.turns import Measured, Provider, time_in_turns
from ddi_kernels import engine

from . import footprint
from .decisions import draw_decisions, find_keep, forced, mean_macs
from .networks import DTYPES, NETWORKS, POOL, Case, Network, make_case
from .opponents import bind_onnxruntime, bind_openvino
from .rows import write_rows

ROUNDS = 5
CALL_SECONDS = 2.0
TOLERANCES = {"fp32": 1e-4, "bf16": 5e-2}


def _compiled(model: nn.Module, images: list[Tensor]) -> Provider:
    with torch._inductor.config.patch(freezing=True):
        run = torch.compile(model)
        run(images[0])
    return Provider([partial(run, x) for x in images])


def dense_providers(case: Case, compiled: bool) -> tuple[dict[str, Provider], dict[str, str]]:
    """The dense network in other runtimes, and why those that are missing are."""
    import openvino as ov

    onnx = case.onnx()
    outputs = [torch.zeros(case.batch, 1000 if case.network.size > 32 else 10) for _ in case.images]

    def openvino() -> Provider:
        model = ov.Core().read_model(onnx, b"")
        model.reshape(list(case.images[0].shape))
        hint = "f32" if case.dtype == "fp32" else "bf16"
        return bind_openvino(model, case.images, outputs, case.threads, hint)

    builders = {
        "onnxruntime": lambda: bind_onnxruntime(onnx, case.images, outputs, case.threads),
        "openvino": openvino,
    }
    if compiled:
        builders["compile"] = lambda: _compiled(case.plain, case.images)
    providers = {}
    missing = {} if compiled else {"compile": "left out on request"}
    for name, build in builders.items():
        try:
            providers[name] = build()
            check(name, case, providers[name].output(0), case.plain(case.images[0]))
        except ImportError as error:
            missing[name] = str(error)
    return providers, missing


def check(name: str, case: Case, got: Tensor, expected: Tensor) -> float:
    """Largest difference of the logits, as a part of the largest.

    Raises:
        RuntimeError: it is above the tolerance: the time would not be comparable.
    """
    error = ((got - expected).abs().max() / expected.abs().max()).item()
    if not error < TOLERANCES[case.dtype]:
        raise RuntimeError(
            f"{name} of {case.network.name} differs from the model by {error:.1e} of its logits"
        )
    return error


@dataclass
class Ours:
    """One way to run the engine: its calls, and what they are compared by."""

    provider: Provider
    keep_layers: float
    keep_channels: float
    mac_ratio: float
    error: float


def plain_calls(case: Case, frozen: engine.Engine) -> Ours:
    provider = Provider([partial(frozen, x) for x in case.images])
    error = check("engine", case, frozen(case.images[0]), case.plain(case.images[0]))
    return Ours(provider, 1.0, 1.0, 1.0, error)


def gated_calls(case: Case, frozen: engine.Engine, target: float, layers: bool) -> Ours:
    """The gated network at a ratio of multiply-adds, closing layers and channels, or channels alone."""
    count = max(POOL // case.batch, len(case.images))
    single = case.images[0][:1]  # multiply-adds depend on the bits alone

    def decisions(keep: float) -> Tensor:
        return draw_decisions(frozen, count * case.batch, keep if layers else 1.0, keep)

    def ratio(keep: float) -> float:
        return frozen.dense_macs / mean_macs(frozen, [single], decisions(keep)[:POOL])

    keep = find_keep(ratio, target)
    bits = decisions(keep).split(case.batch)
    calls = [partial(frozen, case.images[i % len(case.images)], decisions=row) for i, row in enumerate(bits)]
    macs: list[int] = []
    for call in calls:
        macs += call(report=True)[1].macs
    with forced(case.gated, bits[0]):
        error = check("engine, gated", case, calls[0](), case.gated(case.images[0]))
    provider = Provider(calls, least_calls=count)
    mac_ratio = frozen.dense_macs * len(macs) / sum(macs)
    return Ours(provider, keep if layers else 1.0, keep, mac_ratio, error)


def own_calls(case: Case, frozen: engine.Engine, confidence: float | None = None) -> Ours:
    """The gated network at what its gates decide, as far as it is run."""
    reports = [frozen(x, confidence=confidence, report=True)[1] for x in case.images]
    macs = sum(sum(report.macs) for report in reports)
    bits, at = torch.cat([report.decisions for report in reports]).float(), 0
    layers, channels = [], []
    for gate in frozen.gates:
        keep = bits[:, at] if gate["keep"] else torch.ones(len(bits))
        at += int(gate["keep"])
        masks = bits[:, at : at + sum(gate["groups"])]
        at += masks.shape[1]
        if not gate["keep"] and gate["layer"]:  # of a DenseNet: skipped where all is closed
            keep = masks.amax(1)
        layers += [keep] if gate["keep"] or gate["layer"] else []
        channels.append(masks[keep > 0].flatten())
    error = check("engine, gated", case, frozen(case.images[0]), case.gated(case.images[0]))
    calls = [partial(frozen, x, confidence=confidence) for x in case.images]
    provider = Provider(calls, least_calls=len(calls))
    shares = torch.cat(layers).mean().item(), torch.cat(channels).mean().item()
    return Ours(provider, *shares, frozen.dense_macs * len(bits) / macs, error)


def call_percentiles(provider: Provider, median_ms: float) -> dict[str, float]:
    """Of single calls, each timed: the median, and what one of a hundred exceeds."""
    count = int(min(max(CALL_SECONDS * 1e3 / median_ms, 200), 2000))
    seen = []
    for i in range(count):
        call = provider.calls[i % len(provider.calls)]
        start = time.perf_counter()
        call()
        seen.append((time.perf_counter() - start) * 1e3)
    half, most = torch.quantile(torch.tensor(seen, dtype=torch.float64), torch.tensor([0.5, 0.99]).double())
    return {"call_p50_ms": half.item(), "call_p99_ms": most.item()}


def row(
    case: Case, name: str, ours: Ours, timed: dict[str, Measured], dense: dict[str, Provider]
) -> dict[str, Any]:
    times = {opponent: timed[opponent].timing.median_ms for opponent in dense}
    best = min(times, key=times.__getitem__)
    mine = timed[name].timing
    speedup = times[best] / mine.median_ms
    return {
        "case": case.network.name,
        "device": "cpu",
        "dtype": case.dtype,
        "batch": case.batch,
        "threads": case.threads,
        "provider": "engine",
        "gating": name,
        "group_size": case.network.gates.group_size,
        "keep_layers": round(ours.keep_layers, 4),
        "keep_channels": round(ours.keep_channels, 4),
        "mac_ratio": round(ours.mac_ratio, 3),
        "median_ms": mine.median_ms,
        "p20_ms": mine.p20_ms,
        "p80_ms": mine.p80_ms,
        "dense_ms": times,
        "best_dense_provider": best,
        "speedup_vs_best_dense": round(speedup, 3),
        "realised": round(speedup / ours.mac_ratio, 3),
        "max_rel_err": ours.error,
    }


def measure_network(
    case: Case, target: float, compiled: bool, confidence: float | None = None
) -> list[dict[str, Any]]:
    """A row for the dense network, and one for each way of gating; confidence: of a trained network."""
    if confidence is not None and not case.gated.exits:
        raise ValueError(
            f"bench model: --confidence is {confidence}, but {case.network.name} has no branch classifiers "
            "to halt at; leave it out, or train some: ddi train --exits default"
        )
    dense, missing = dense_providers(case, compiled)
    with tempfile.TemporaryDirectory() as folder:
        plain = case.freeze(case.plain, Path(folder) / "plain.ddi")
        gated = case.freeze(case.gated, Path(folder) / "gated.ddi")
    ours = {"dense": plain_calls(case, plain)}
    if case.network.trained is not None:
        ours["trained decisions"] = own_calls(case, gated)
        if confidence is not None:
            ours[f"trained decisions, confidence {confidence:g}"] = own_calls(case, gated, confidence)
    else:
        ours["layers and channels"] = gated_calls(case, gated, target, True)
        ours["channels"] = gated_calls(case, gated, target, False)
    everyone = {**dense, **{name: one.provider for name, one in ours.items()}}
    timed = time_in_turns(everyone, rounds=ROUNDS)
    rows = [row(case, name, one, timed, dense) for name, one in ours.items()]
    if case.batch == 1:
        best = rows[0]["best_dense_provider"]
        p99 = call_percentiles(dense[best], timed[best].timing.median_ms)["call_p99_ms"]
        for one, calls in zip(rows, ours.values(), strict=True):
            one |= call_percentiles(calls.provider, one["median_ms"]) | {"best_dense_p99_ms": p99}
    if missing:
        rows = [{**one, "incomplete": missing} for one in rows]
    return rows


def run(args: argparse.Namespace) -> None:
    """Measures all networks, prints and writes the rows."""
    torch.manual_seed(args.seed)
    known = NETWORKS
    if args.trained:
        known = [Network.of_checkpoints(Path(args.trained[1]).stem, *args.trained)]
    elif args.confidence is not None:
        raise ValueError(f"bench model: --confidence is {args.confidence}; it is for --trained, add that")
    chosen = [network for network in known if args.cases in network.name]
    if not chosen:
        names = ", ".join(network.name for network in known)
        raise ValueError(f"no network has {args.cases!r} in its name; there are {names}")
    if args.group_size:
        chosen = [replace(one, gates=replace(one.gates, group_size=args.group_size)) for one in chosen]
    rows = run_footprint(chosen) if args.suite == "footprint" else run_engine(args, chosen)
    if args.json:
        write_rows(args.json, rows)


def run_footprint(chosen: list[Network]) -> list[dict[str, Any]]:
    rows = []
    for network in tqdm(chosen, disable=None, desc="networks"):
        for one in footprint.footprints(network):
            print(footprint.describe(one), flush=True)
            rows.append(one)
    return rows


def run_engine(args: argparse.Namespace, chosen: list[Network]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    with torch.inference_mode(), num_threads(args.threads):
        for network in tqdm(chosen, disable=None, desc="networks"):
            for batch in args.batch:
                case = make_case(network, batch, args.threads, args.dtype)
                for one in measure_network(case, args.mac_ratio, not args.no_compile, args.confidence):
                    print(describe(one), flush=True)
                    rows.append(one)
    return rows


def describe(one: dict[str, Any]) -> str:
    return (
        f"{one['case']:16} b{one['batch']:<3} {one['gating']:20} {one['median_ms']:8.3f} ms, "
        f"{one['mac_ratio']:5.2f}x fewer MACs, {one['speedup_vs_best_dense']:5.2f}x of "
        f"{one['best_dense_provider']} ({one['dense_ms'][one['best_dense_provider']]:.3f} ms), "
        f"realised {one['realised']:.2f}"
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `bench model`, beside those of every suite."""
    parser.add_argument("--suite", choices=("engine", "footprint"), default="engine")
    parser.add_argument(
        "--cases", default="", metavar="SUBSTRING", help="only networks with this in their name"
    )
    parser.add_argument(
        "--trained", nargs=2, metavar=("DENSE", "GATED"), help="these two checkpoints, on their test images"
    )
    parser.add_argument(
        "--confidence", type=float, metavar="P", help="with --trained, also halt where it is so certain"
    )
    parser.add_argument("--batch", type=int, nargs="+", default=[1])
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="fp32")
    parser.add_argument("--mac-ratio", type=float, default=4.0)
    parser.add_argument("--group-size", type=int, help="channels of a gate bit, instead of the network's own")
    parser.add_argument(
        "--no-compile", action="store_true", help="leave out torch.compile, which takes minutes"
    )
    parser.set_defaults(run=run)
