"""One forward pass through gated blocks: its gate state, and the notes of what was decided in it.

A gated model's hooks open a `GatePass` when its forward begins and close it at the end; the blocks inside ask
it for their decisions. State lives in the pass, never in modules, so concurrent forwards in several threads,
DDP replicas and nested models do not meet.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
import torch.nn as nn
from torch import Tensor
from torch.nn.modules import module as _hooks_of_all

from .concatenation import Concatenation, channel_means
from .decision import Decision
from .site import Gate, GatedBlock, GateSite

__all__ = [
    "BlockRecord",
    "GatePass",
    "PassHooks",
    "Prices",
    "Recording",
    "Watch",
    "collecting",
    "current_pass",
    "gated_root",
    "running_pass",
    "spare",
]


class Prices(Protocol):
    """What has to be known of a resource to price a block; see :class:`ddi.cost.Resource`."""

    def gate(self, gates: Gate, site: GateSite, shape: torch.Size) -> float:
        """Of the gate that decides for a block whose input is of `shape`, (N, C, H, W)."""

    def block(self, block: GatedBlock, shape: torch.Size, decision: Decision) -> Tensor:
        """float[N]: of a gated block under a decision, its gate left out."""


@dataclass(frozen=True)
class BlockRecord:
    """One block in one pass: what was decided for it, and all that is needed to price that.

    Args:
        name: of the block's site.
        decision: of its gate.
        shape: of its input, (N, C, H, W).
        block, gates: themselves, not their state.
    """

    name: str
    decision: Decision
    shape: torch.Size
    block: GatedBlock
    gates: Gate

    def cost(self, resource: Prices) -> Tensor:
        """float[N]: of the block and its gate, differentiable in training."""
        gate = resource.gate(self.gates, self.block.site, self.shape)
        return resource.block(self.block, self.shape, self.decision) + gate


class Watch(Protocol):
    """Sees a pass while it runs. What it raises ends the pass before the gate, or the block, has run."""

    def before_gate(self, gates: Gate, site: GateSite, shape: torch.Size) -> None:
        """A gate is about to decide on an input of `shape`, (N, C, H, W)."""

    def before_block(self, block: BlockRecord) -> None:
        """A block is about to run on its decision."""


class Recording(Protocol):
    """What collects the passes of a model; see :class:`ddi.cost.record.Record`."""

    model: nn.Module
    watch: Watch | None
    passes: list[list[BlockRecord]]
    inputs: list[torch.Size]


@dataclass
class GatePass:
    """The gates' state during one forward of one model, on one thread."""

    gates: Gate
    blocks: list[BlockRecord] | None
    watch: Watch | None
    parent: GatePass | None
    state: Any = None
    concatenation: Concatenation | None = None  # of the dense block that is running
    pooled: tuple[Tensor, Tensor] | None = None  # a residual block's output and its means
    spare: Tensor | None = None  # an input that its block may write to

    def decide(self, block: GatedBlock, x: Tensor) -> Decision:
        """The decision for a residual block about to run on x: float[N, C, H, W]."""
        means = None if self.gates.reads == "features" else self.means_of(x)
        if means is None and self.gates.reads == "means":
            means = channel_means(x)
        decision = self._ask(block, x if means is None else means, x)
        self.note(block, x, decision)
        return decision

    def means_of(self, x: Tensor) -> Tensor | None:
        """float[N, C] if the block that made x pooled it."""
        return self.pooled[1] if self.pooled is not None and self.pooled[0] is x else None

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
        self.note(block, x, decision)
        return decision, self.concatenation

    def _ask(self, block: GatedBlock, seen: Tensor, x: Tensor) -> Decision:
        if self.watch is not None:
            self.watch.before_gate(self.gates, block.site, x.shape)
        if self.state is None:
            self.state = self.gates.initial_state(x)
        decision, self.state = self.gates.decide(block.site, seen, self.state)
        return decision

    def note(self, block: GatedBlock, x: Tensor, decision: Decision) -> None:
        """Puts what was decided for a block on the record, if there is one."""
        if self.blocks is not None:
            self.blocks.append(BlockRecord(block.site.name, decision, x.shape, block, self.gates))
            if self.watch is not None:
                self.watch.before_block(self.blocks[-1])


_PASS: ContextVar[GatePass | None] = ContextVar("ddi_gate_pass", default=None)
_RECORDS: ContextVar[tuple[Recording, ...]] = ContextVar("ddi_records", default=())


@contextmanager
def collecting(recording: Recording) -> Iterator[None]:
    """Has the passes of a model put on a recording inside a `with` block, on this thread."""
    token = _RECORDS.set((*_RECORDS.get(), recording))
    try:
        yield
    finally:
        _RECORDS.reset(token)


def running_pass() -> GatePass | None:
    """The innermost running pass, None outside of any."""
    return _PASS.get()


def spare(x: Tensor, before: nn.Module, block: nn.Module) -> None:
    """Says that nobody reads x, which `before` returned, once `block` has run, so that it may write there.

    Not where a hook may have kept it.
    """
    gate_pass = running_pass()
    # A block's own output, not a tensor that somebody else gave it. None is known on a CPU.
    if gate_pass is None or gate_pass.means_of(x) is None:
        return
    hooks = before._forward_hooks or block._forward_hooks or block._forward_pre_hooks
    everywhere = _hooks_of_all._global_forward_hooks or _hooks_of_all._global_forward_pre_hooks
    gate_pass.spare = None if hooks or everywhere else x


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
        record = next((r for r in reversed(_RECORDS.get()) if _hooks(r.model) is self), None)
        blocks: list[BlockRecord] | None = None
        watch = None
        if record is not None:
            x = args[0] if args else next(iter(kwargs.values()))
            blocks, watch = [], record.watch
            record.passes.append(blocks)
            record.inputs.append(x.shape)
        _PASS.set(GatePass(self.gates, blocks, watch, _PASS.get()))

    def _end(self, model: nn.Module, args: Any, output: Any) -> None:
        gate_pass = _PASS.get()
        _PASS.set(None if gate_pass is None else gate_pass.parent)

    def remove(self) -> None:
        """Takes the hooks off the model."""
        for handle in self._handles:
            handle.remove()


def _hooks(model: nn.Module) -> Any:
    return model.__dict__.get("_ddi_hooks")


def gated_root(model: nn.Module) -> nn.Module:
    """The gated model inside `model` (itself, or wrapped as by DDP).

    Raises:
        ValueError: none was converted.
    """
    for module in model.modules():
        if isinstance(_hooks(module), PassHooks):
            return module
    raise ValueError(
        f"{type(model).__name__} is not a gated model; call ddi.convert_(model, config) first, or create it "
        "with ddi.create_model(name, gates=...)"
    )
