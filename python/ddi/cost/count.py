"""What a model costs on a batch, dense and gated: it is run once, its decisions recorded and priced."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn as nn
from torch import Tensor

from ddi_kernels.prices.energy import HOROWITZ_45NM, EnergyModel
from ddi_kernels.prices.latency import LatencyTable

from ..gating.stand_in import is_converted
from .energy import Joules
from .latency import Milliseconds
from .macs import Macs, dense_macs
from .record import record
from .resource import Cost, Resource

__all__ = ["Energy", "Latency", "MacCount", "count_macs", "energy", "latency", "priced"]


def priced(model: nn.Module, x: Tensor, resource: Resource) -> tuple[Cost, dict[str, Tensor]]:
    """What a model costs on x: float[N, C, H, W], and each gated block with its gate, float[N].

    A gated model is run once in its current mode.
    """
    if not is_converted(model):
        dense = resource.dense(model, x.shape)
        return Cost(torch.full((len(x),), dense, dtype=torch.float64), dense), {}
    with record(model) as rec:
        model(x)
    return rec.cost(resource), {block.name: block.cost(resource) for block in rec.passes[0]}


@dataclass(frozen=True)
class MacCount:
    """MACs per sample. `gated` and the values of `blocks` are means over the samples of the input.

    Args:
        dense: of the ungated backbone.
        gated: at the model's hard decisions; equals `dense` for a model without gates.
        blocks: mean gated MACs of each gated block, its gate included.
        per_sample: float64[N] gated MACs of each sample.
    """

    dense: int
    gated: float
    blocks: dict[str, float]
    per_sample: Tensor

    @property
    def mac_ratio(self) -> float:
        return self.dense / self.gated


@torch.no_grad()
def count_macs(model: nn.Module, x: Tensor) -> MacCount:
    """MACs of a model on a batch, dense and at its gates' hard decisions.

    Those of `model(x)`, which runs no branch classifier: what one costs comes on top where it is run.

    Args:
        model: gated or plain; run once in its current mode if gated.
        x: float[N, C, H, W].

    Example:
        >>> ddi.count_macs(ddi.create_model("cifar_resnet20"), torch.randn(1, 3, 32, 32)).dense
        40813184
    """
    cost, blocks = priced(model, x, Macs())
    per_sample = cost.per_sample.double()
    means = {name: part.double().mean().item() for name, part in blocks.items()}
    return MacCount(dense_macs(model, x.shape), per_sample.mean().item(), means, per_sample)


@dataclass(frozen=True)
class Energy:
    """Joules per sample by an energy model. `gated` and the values of `blocks` are means over the samples.

    Args:
        dense: of the ungated network.
        gated: at the model's hard decisions; equals `dense` for a model without gates.
        blocks: of each gated block, its gate included.
        per_sample: float[N], of each sample.
    """

    dense: float
    gated: float
    blocks: dict[str, float]
    per_sample: Tensor


@torch.no_grad()
def energy(
    model: nn.Module, x: Tensor, energy_model: EnergyModel | None = None, dtype: str | None = None
) -> Energy:
    """Joules per sample of a model on a batch by an energy model, dense and at its gates' hard decisions.

    An estimate: `ddi.measure_joules` measures. Those of `model(x)`, which runs no branch classifier.

    Args:
        model: gated or plain; run once in its current mode if gated.
        x: float[N, C, H, W].
        energy_model: default: `ddi_kernels.prices.energy.HOROWITZ_45NM`.
        dtype: see `Joules`.

    Raises:
        ValueError: the weights are of a dtype that the energy model does not know.

    Example:
        >>> model = ddi.create_model("cifar_resnet20", gates=ddi.DDIConfig())
        >>> ddi.energy(model, torch.randn(1, 3, 32, 32)).dense
    """
    cost, blocks = priced(model, x, Joules(energy_model or HOROWITZ_45NM, dtype))
    means = {name: part.mean().item() for name, part in blocks.items()}
    return Energy(cost.dense, cost.per_sample.mean().item(), means, cost.per_sample)


@dataclass(frozen=True)
class Latency:
    """Milliseconds that the convolutions of one call take by a latency table.

    Args:
        dense: of the ungated network.
        gated: at the model's hard decisions; equals `dense` for a model without gates.
        blocks: of each gated block; its gate is not among them.
        per_sample: float[N], each sample's part of `gated`.
    """

    dense: float
    gated: float
    blocks: dict[str, float]
    per_sample: Tensor


@torch.no_grad()
def latency(model: nn.Module, x: Tensor, table: LatencyTable | None = None) -> Latency:
    """Milliseconds of a model on a batch by a latency table, dense and at its gates' hard decisions.

    Args:
        model: gated or plain; run once in its current mode if gated.
        x: float[N, C, H, W].
        table: default: this device's, which `ddi profile` measures; see `Milliseconds`.

    Raises:
        ValueError: see `Milliseconds`.

    Example:
        >>> model = ddi.create_model("cifar_resnet20", gates=ddi.DDIConfig())
        >>> ddi.latency(model, torch.randn(1, 3, 32, 32)).dense
    """
    cost, blocks = priced(model, x, Milliseconds(table))
    sums = {name: part.sum().item() for name, part in blocks.items()}
    return Latency(len(x) * cost.dense, cost.per_sample.sum().item(), sums, cost.per_sample)
