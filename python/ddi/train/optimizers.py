"""Who moves which weights in a stage, and how fast: SGD the network's, Adam the gates'."""

from __future__ import annotations

import math

import torch
import torch.nn as nn

from .config import Stage, TrainConfig

__all__ = ["gate_parameters", "make_optimizers", "part_of", "set_rates"]


def gate_parameters(model: nn.Module) -> list[nn.Parameter]:
    """All weights of a model's gates; none of a plain model."""
    gates = getattr(model, "ddi_gates", None)
    return [] if gates is None else list(gates.parameters())


def make_optimizers(config: TrainConfig, stage: Stage, model: nn.Module) -> list[torch.optim.Optimizer]:
    """Those of a stage, in a fixed order; marks the parameters that it trains."""
    gates = gate_parameters(model)
    gate_ids = {id(p) for p in gates}
    network = [p for p in model.parameters() if id(p) not in gate_ids]
    for parameter in network:
        parameter.requires_grad_(stage.name != "gates")
    for parameter in gates:
        parameter.requires_grad_(stage.name != "backbone")
    optimizers: list[torch.optim.Optimizer] = []
    if stage.name != "gates":
        decay = config.weight_decay
        optimizers.append(torch.optim.SGD(network, lr=1.0, momentum=0.9, nesterov=True, weight_decay=decay))
    if gates and stage.name != "backbone":
        optimizers.append(torch.optim.Adam(gates, lr=1.0))
    return optimizers


def set_rates(
    config: TrainConfig,
    stage: Stage,
    optimizers: list[torch.optim.Optimizer],
    done: float,
    settled: bool,
) -> None:
    """Warm-up over the first tenth, then a cosine to zero.

    Args:
        done: the share of the stage that is behind us.
        settled: whether gates learn no more.
    """
    shape = min(done / 0.1, 0.5 * (1 + math.cos(math.pi * max(0.0, (done - 0.1) / 0.9))))
    for optimizer in optimizers:
        if part_of(optimizer) == "gates":
            rate = 0.0 if settled else config.gate_lr
        else:
            rate = config.backbone_lr if stage.name == "backbone" else config.joint_lr
        optimizer.param_groups[0]["lr"] = rate * max(shape, 1e-3)


def part_of(optimizer: torch.optim.Optimizer) -> str:
    """What an optimizer moves: "gates" or "network"."""
    return "gates" if isinstance(optimizer, torch.optim.Adam) else "network"
