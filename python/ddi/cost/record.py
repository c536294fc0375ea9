"""What `ddi.record` collects of a gated model's passes, and what they cost."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn as nn
from torch import Tensor

from ddi_kernels.prices.energy import EnergyModel
from ddi_kernels.prices.latency import LatencyTable

from ..gating.gate_pass import BlockRecord, Watch, collecting, gated_root
from .macs import dense_macs
from .named import as_resource
from .resource import Cost, Resource

__all__ = ["Record", "record"]


@dataclass
class Record:
    """The passes of one gated model inside `with ddi.record(model)`.

    Attributes:
        watch: sees these passes, too, or None.
        passes: for each forward call its list of BlockRecord, in execution order.
        inputs: for each forward call the shape of its input.
    """

    model: nn.Module
    watch: Watch | None = None
    passes: list[list[BlockRecord]] = field(default_factory=list)
    inputs: list[torch.Size] = field(default_factory=list)

    def cost(
        self,
        resource: str | Resource = "macs",
        table: LatencyTable | str | Path | None = None,
        model: EnergyModel | None = None,
    ) -> Cost:
        """What each sample cost in a resource, gates and ungated layers included, branch classifiers not.

        Args:
            resource: "macs"; "ms" by a latency table; "joules" by an energy model; or a `ddi.cost.Resource`.
            table: for "ms", or the path of one; default: this device's, which `ddi profile` measures.
            model: for "joules"; default: `ddi_kernels.prices.energy.HOROWITZ_45NM`.

        Returns:
            Cost: float[total samples], differentiable in training, the dense cost, and the share of it.

        Raises:
            RuntimeError: nothing was recorded.
            OSError, ValueError: an unknown resource; a table that cannot be read, or none of this device;
                weights of a dtype without a price.

        Example:
            >>> with ddi.record(model) as rec:
            ...     logits = model(images)
            >>> rec.cost("joules").share
        """
        prices = as_resource(resource, table, model)
        if not any(self.passes):
            raise RuntimeError("record: no forward pass was recorded; call the model inside the context")
        totals, dense = [], 0.0
        for shape, blocks in zip(self.inputs, self.passes, strict=True):
            whole = prices.dense(self.model, shape)
            fixed = whole - sum(prices.dense_block(block.block, block.shape) for block in blocks)
            totals.append(fixed + torch.stack([block.cost(prices) for block in blocks]).sum(0))
            dense += whole * shape[0]
        per_sample = torch.cat(totals)
        return Cost(per_sample, dense / max(1, len(per_sample)))

    @property
    def dense_macs(self) -> int:
        """Multiply-adds per sample of the ungated backbone, on the last input; 0 before the first."""
        return dense_macs(self.model, self.inputs[-1]) if self.inputs else 0

    @property
    def macs(self) -> Tensor:
        """float[total samples]: multiply-adds of each sample, see `cost`."""
        return self.cost("macs").per_sample

    @property
    def mac_ratio(self) -> float:
        """Dense MACs over mean gated MACs."""
        return self.dense_macs / self.macs.detach().double().mean().item()


@contextmanager
def record(model: nn.Module, watch: Watch | None = None) -> Iterator[Record]:
    """Collects decisions, soft values and costs per sample of every forward of a gated model.

    Args:
        model: converted by `convert_`, or a wrapper (DDP) around one.
        watch: called as the gates decide, see `Watch`.

    Yields:
        Record, filled as the model is called on this thread.

    Example:
        >>> model = ddi.create_model("cifar_resnet20", gates=ddi.DDIConfig())
        >>> with ddi.record(model) as rec:
        ...     _ = model(torch.randn(4, 3, 32, 32))
        >>> rec.macs.shape
        torch.Size([4])
    """
    collected = Record(gated_root(model), watch)
    with collecting(collected):
        yield collected
