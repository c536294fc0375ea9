"""The blocks of a stage as one operator, where one holds them: see :func:`ddi_kernels.resident_stage`.

On a GPU the small images of CIFAR networks are bound by launches, four and more a block. A stage becomes one,
gates included, with the block at its entry that changes the width, where that doubles it and halves the map.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor

from ddi_kernels import current_backend, pack_entry, pack_stage, resident_stage, resident_stage_unsupported

from ..gates.ddi import DDIGates
from ..gating.decision import Decision, Mask
from ..gating.gate_pass import GatePass, running_pass
from ..nn.prepared import PreparedModule, runs_sparse
from .gated_basic_block import GatedBasicBlock
from .gated_residual_block import PreparedResidual

__all__ = ["ResidentStage"]


@dataclass(frozen=True)
class _Prepared:
    """The operator's weights: of the convolutions, and of each gate for all blocks."""

    weights: Tensor
    biases: Tensor
    lstm: list[Tensor]
    layer: list[Tensor]
    channel: list[Tensor]
    entry: list[Tensor]  # of the entry block, empty where the operator cannot run it
    entry_gates: list[Tensor]


def _are_gated(blocks: Sequence[Any]) -> bool:
    return all(isinstance(block, GatedBasicBlock) for block in blocks)


def _has_kernel(x: Tensor, gates: Any, entered: bool) -> bool:
    """Whether the operator takes images like x, an entry block's or not, and such gates."""
    if not isinstance(gates, DDIGates):
        return False
    reduced = gates.config.channel_hidden if gates.config.channels else 0
    return resident_stage_unsupported(x, gates.config.hidden, reduced, entered) is None


def _doubles(block: Any) -> bool:
    """Whether a block doubles the width and halves the map, as the operator's entry block does."""
    prepared: PreparedResidual = block.prepared()
    channels, before = prepared.convs[0].weight.shape[:2]
    return prepared.fused and prepared.stride == 2 and channels == 2 * before


def _prepare_entry(block: Any, gates: DDIGates) -> tuple[list[Tensor], list[Tensor]]:
    prepared, own = block.prepared(), gates.weights(block.site)
    (conv1, conv2), shortcut = prepared.convs, prepared.shortcut
    packed = pack_entry(conv1.weight, conv2.weight, shortcut.weight)
    biases = torch.stack((conv1.bias, conv2.bias + shortcut.bias)).float()
    return [*packed, biases], [*own["lstm"][:2], *own["channel"]]


class ResidentStage(nn.Sequential, PreparedModule):
    """Residual blocks on maps of one size. Base of a backbone's stages."""

    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__(*blocks)
        self.__dict__["_gates"] = None  # those that the prepared weights are of; the model's, not ours

    def run_resident(self, x: Tensor, first: int) -> Tensor | None:
        """All blocks from number `first` on, x: float[N, C, H, W]; None where no one operator runs them."""
        gate_pass = running_pass()
        # The kernel is asked for first: on a CPU, where there is none, the rest would cost more than a gate.
        if gate_pass is None or gate_pass.watch is not None or not _has_kernel(x, gate_pass.gates, False):
            return None
        blocks, entry = self.resident_blocks(), self.entry_block() if first == 0 else None
        if first != len(self) - len(blocks) - (entry is not None):
            return None
        if not self._fits(x, blocks, entry, gate_pass):
            return None
        if self.__dict__["_gates"] is not gate_pass.gates:
            self._forget()
            self.__dict__["_gates"] = gate_pass.gates
        return self._run(x, blocks, entry, gate_pass)

    def resident_blocks(self) -> list[Any]:
        """Those behind the last one with a shortcut convolution."""
        blocks = list(self)
        while blocks and getattr(blocks[0], "downsample", None) is not None:
            blocks = blocks[1:]
        return blocks

    def entry_block(self) -> GatedBasicBlock | None:
        """The one block in front of these, if there is just one and it has gates."""
        first = next(iter(self), None)
        alone = len(self.resident_blocks()) == len(self) - 1
        return first if alone and isinstance(first, GatedBasicBlock) else None

    def _fits(self, x: Tensor, blocks: Sequence[Any], entry: Any | None, gate_pass: GatePass) -> bool:
        run = [*blocks] if entry is None else [entry, *blocks]
        if len(run) < 2 or current_backend() == "triton":
            return False
        if entry is not None and not _has_kernel(x, gate_pass.gates, True):
            return False
        if not _are_gated(run) or not all(runs_sparse(x, block, Decision()) for block in run):
            return False
        return all(block.prepared().fused for block in blocks) and (entry is None or _doubles(entry))

    def _sources(self) -> tuple[Tensor | None, ...]:
        blocks, entry = self.resident_blocks(), self.entry_block()
        if self.__dict__["_gates"] is None or not _are_gated(blocks):
            return ()
        own = [t for block in (*blocks, *([] if entry is None else [entry])) for t in block._sources()]
        return (*own, *self.__dict__["_gates"].parameters())

    def _prepare(self) -> _Prepared | None:
        gates, blocks = self.__dict__["_gates"], self.resident_blocks()
        if gates is None or not _are_gated(blocks):  # not yet, or no longer
            return None
        convs = [block.prepared().convs for block in blocks]
        filters = [torch.stack([pair[i].weight for pair in convs]) for i in range(2)]
        biases = torch.stack([torch.stack([conv.bias for conv in pair]) for pair in convs])
        each = [gates.weights(block.site) for block in blocks]
        layer, channel = (
            [torch.stack(tensors).detach() for tensors in zip(*(w[name] for w in each), strict=True)]
            for name in ("layer", "channel")
        )
        # One row a block: its layer gate's weight is [1, hidden], its bias [1].
        layer = [t.squeeze(1) for t in layer]
        lstm, entry = each[0]["lstm"], self.entry_block()
        entered = _prepare_entry(entry, gates) if entry is not None and _doubles(entry) else ([], [])
        return _Prepared(pack_stage(*filters), biases.float(), lstm, layer, channel, *entered)

    def _run(self, x: Tensor, blocks: Sequence[Any], entry: Any | None, gate_pass: GatePass) -> Tensor:
        prepared: _Prepared = self.prepared()
        gates: Any = gate_pass.gates
        size, layered = gates.config.group_size, bool(prepared.layer)
        h, c = gates.initial_state(x) if gate_pass.state is None else gate_pass.state
        y, keep, opened, h, c = resident_stage(
            x, h, c, prepared.weights, prepared.biases, prepared.lstm, prepared.layer, prepared.channel,
            size, gates.threshold_logit, *(() if entry is None else (prepared.entry, prepared.entry_gates)),
        )  # fmt: skip
        gate_pass.state = (h, c)
        for b, block in enumerate(blocks if entry is None else [entry, *blocks]):
            masks = (Mask(opened[:, b], group_size=size),) if gates.config.channels else ()
            kept = keep[:, b] if layered and block is not entry else None
            gate_pass.note(block, x if block is entry else y, Decision(keep=kept, masks=masks))
        return y
