"""One forward pass through gated blocks: its gate state, and what `record` collects of it.

A gated model's hooks open a `GatePass` when its forward begins and close it at the end; the blocks inside ask
it for their decisions. State lives in the pass, never in modules, so concurrent forwards in several threads,
DDP replicas and nested models do not meet.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
import torch.nn as nn
from torch import Tensor

from .concatenation import Concatenation, channel_means
from .cost import dense_macs
from .decision import Decision
from .gates import Gate, GateSite

__all__ = ["BlockRecord", "GatePass", "PassHooks", "Record", "current_pass", "record"]


class GatedBlock(Protocol):
    """What a pass needs to know of the block that asks."""

    site: GateSite

    def macs(self, shape: torch.Size, decision: Decision) -> Tensor:
        """float[N]: multiply-adds per sample under a decision, differentiable in training."""

    def dense_macs(self, shape: torch.Size) -> int:
        """Multiply-adds per sample with everything open."""


@dataclass(frozen=True)
class BlockRecord:
    """One block in one pass: its decision, MACs float[N] (gate included) and dense MACs per sample."""

    name: str
    decision: Decision
    macs: Tensor
    dense_macs: int


class Watch(Protocol):
    """Sees a pass while it runs. What it raises ends the pass before the gate, or the block, has run."""

    def before_gate(self, macs: int) -> None:
        """A gate of so many multiply-adds a sample is about to decide."""

    def before_block(self, block: BlockRecord) -> None:
        """A block is about to run on its decision."""


@dataclass
class Record:
    """The passes of one gated model inside `with ddi.record(model)`.

    Attributes:
        watch: sees these passes, too, or None.
        passes: for each forward call its list of BlockRecord, in execution order.
        dense_macs: multiply-adds per sample of the ungated backbone.
    """

    hooks: PassHooks
    watch: Watch | None = None
    dense_macs: int = 0
    passes: list[list[BlockRecord]] = field(default_factory=list)

    @property
    def macs(self) -> Tensor:
        """float[total samples]: multiply-adds of each sample, gates and ungated layers included, branch
        classifiers not."""
        if not any(self.passes):
            raise RuntimeError("record: no forward pass was recorded; call the model inside the context")
        totals = []
        for blocks in self.passes:
            fixed = self.dense_macs - sum(block.dense_macs for block in blocks)
            totals.append(fixed + torch.stack([block.macs for block in blocks]).sum(0))
        return torch.cat(totals)

    @property
    def mac_ratio(self) -> float:
        """Dense MACs over mean gated MACs."""
        return self.dense_macs / self.macs.detach().double().mean().item()


@dataclass
class GatePass:
    """The gates' state during one forward of one model, on one thread."""

    gates: Gate
    blocks: list[BlockRecord] | None
    watch: Watch | None
    parent: GatePass | None
    state: Any = None
    concatenation: Concatenation | None = None  # of the dense block that is running

    def decide(self, block: GatedBlock, x: Tensor) -> Decision:
        """The decision for a residual block about to run on x: float[N, C, H, W]."""
        decision = self._ask(block, x if self.gates.reads == "features" else channel_means(x), x)
        self._record(block, x, decision)
        return decision

    def decide_dense(self, block: GatedBlock, x: Tensor) -> tuple[Decision, Concatenation]:
        """The decision for a reader of a dense block's concatenation x: float[N, C, H, W].

        The first layer to ask pools its input, which begins a concatenation. Each layer replaces it by one
        with its own new channels; what reads all of it sets it to None.
        """
        if self.concatenation is None:
            self.concatenation = Concatenation.of(x)
        known = self.concatenation.pooled.shape[1]
        if known != x.shape[1]:
            raise RuntimeError(
                f"gated block {block.site.name!r}: its input has {x.shape[1]} channels, but the gated layers "
                f"before it made {known}; a dense block must append what each layer returns, in order"
            )
        means = self.gates.reads == "means"
        decision = self._ask(block, self.concatenation.pooled if means else self.concatenation.features(x), x)
        decision = replace(decision, in_mask=self.concatenation.mask)
        self._record(block, x, decision)
        return decision, self.concatenation

    def _ask(self, block: GatedBlock, seen: Tensor, x: Tensor) -> Decision:
        if self.watch is not None:
            self.watch.before_gate(self.gates.macs(block.site, x.shape))
        if self.state is None:
            self.state = self.gates.initial_state(x)
        decision, self.state = self.gates.decide(block.site, seen, self.state)
        return decision

    def _record(self, block: GatedBlock, x: Tensor, decision: Decision) -> None:
        if self.blocks is not None:
            macs = block.macs(x.shape, decision) + self.gates.macs(block.site, x.shape)
            self.blocks.append(BlockRecord(block.site.name, decision, macs, block.dense_macs(x.shape)))
            if self.watch is not None:
                self.watch.before_block(self.blocks[-1])


_PASS: ContextVar[GatePass | None] = ContextVar("ddi_gate_pass", default=None)
_RECORDS: ContextVar[tuple[Record, ...]] = ContextVar("ddi_records", default=())


def current_pass(block_name: str) -> GatePass:
    """The innermost running pass.

    Raises:
        RuntimeError: the block was called outside its model's forward, where no gate state exists.
    """
    gate_pass = _PASS.get()
    if gate_pass is None:
        raise RuntimeError(
            f"gated block {block_name!r}: called outside its model's forward, so no gate can decide; "
            "call the model that convert_ was given, or pass decision=ddi.Decision(...)"
        )
    return gate_pass


class PassHooks:
    """Opens and closes the passes of one model; kept on it by `convert_` and removed by `revert_`."""

    def __init__(self, model: nn.Module, gates: Any) -> None:
        self.gates = gates
        self._handles = [
            model.register_forward_pre_hook(self._begin, with_kwargs=True),
            model.register_forward_hook(self._end, always_call=True),
        ]

    def _begin(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        record = next((r for r in reversed(_RECORDS.get()) if r.hooks is self), None)
        blocks: list[BlockRecord] | None = None
        watch = None
        if record is not None:
            x = args[0] if args else next(iter(kwargs.values()))
            record.dense_macs = dense_macs(model, x.shape)
            blocks, watch = [], record.watch
            record.passes.append(blocks)
        _PASS.set(GatePass(self.gates, blocks, watch, _PASS.get()))

    def _end(self, model: nn.Module, args: Any, output: Any) -> None:
        gate_pass = _PASS.get()
        _PASS.set(None if gate_pass is None else gate_pass.parent)

    def remove(self) -> None:
        """Takes the hooks off the model."""
        for handle in self._handles:
            handle.remove()


def gated_root(model: nn.Module) -> nn.Module:
    """The gated model inside `model` (itself, or wrapped as by DDP).

    Raises:
        ValueError: none was converted.
    """
    for module in model.modules():
        if isinstance(module.__dict__.get("_ddi_hooks"), PassHooks):
            return module
    raise ValueError(
        f"{type(model).__name__} is not a gated model; call ddi.convert_(model, config) first, or create it "
        "with ddi.create_model(name, gates=...)"
    )


@contextmanager
def record(model: nn.Module, watch: Watch | None = None) -> Iterator[Record]:
    """Collects decisions, soft values and MACs per sample of every forward of a gated model.

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
    collected = Record(gated_root(model).__dict__["_ddi_hooks"], watch)
    token = _RECORDS.set((*_RECORDS.get(), collected))
    try:
        yield collected
    finally:
        _RECORDS.reset(token)
