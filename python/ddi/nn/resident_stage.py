"""The blocks of a stage as one operator, where one holds them: see :func:`ddi_kernels.resident_stage`.

On a GPU the small images of CIFAR networks are bound by launches, four and more a block. A stage's blocks of
one width become one, gates included; its first block, which changes the width, runs as any other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor

from ddi_kernels import current_backend, pack_stage, resident_stage, resident_stage_unsupported

from ..decision import Decision, Mask
from ..gates.ddi import DDIGates
from ..record import GatePass, running_pass
from .gated_basic_block import GatedBasicBlock
from .prepared import PreparedModule, runs_sparse

__all__ = ["ResidentStage"]


@dataclass(frozen=True)
class _Prepared:
    """The operator's weights: of the convolutions, and of each gate for all blocks."""

    weights: Tensor
    biases: Tensor
    lstm: list[Tensor]
    layer: list[Tensor]
    channel: list[Tensor]


def _are_gated(blocks: Sequence[Any]) -> bool:
    return all(isinstance(block, GatedBasicBlock) for block in blocks)


class ResidentStage(nn.Sequential, PreparedModule):
    """Residual blocks on maps of one size. Base of a backbone's stages."""

    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__(*blocks)
        self.__dict__["_gates"] = None  # those that the prepared weights are of; the model's, not ours

    def run_resident(self, x: Tensor) -> Tensor | None:
        """All blocks from the first of the final width on, x: float[N, C, H, W]; None where none can."""
        gate_pass, blocks = running_pass(), self.resident_blocks()
        if gate_pass is None or gate_pass.watch is not None or not self._fits(x, blocks, gate_pass):
            return None
        if self.__dict__["_gates"] is not gate_pass.gates:
            self._forget()
            self.__dict__["_gates"] = gate_pass.gates
        return self._run(x, blocks, gate_pass)

    def resident_blocks(self) -> list[Any]:
        """Those behind the last one with a shortcut convolution."""
        blocks = list(self)
        while blocks and getattr(blocks[0], "downsample", None) is not None:
            blocks = blocks[1:]
        return blocks

    def _fits(self, x: Tensor, blocks: Sequence[Any], gate_pass: GatePass) -> bool:
        gates: Any = gate_pass.gates
        if len(blocks) < 2 or not isinstance(gates, DDIGates) or current_backend() == "triton":
            return False
        reduced = gates.config.channel_hidden if gates.config.channels else 0
        if resident_stage_unsupported(x, gates.config.hidden, reduced) is not None:
            return False
        if not _are_gated(blocks):
            return False
        return all(runs_sparse(x, block, Decision()) and block.prepared().fused for block in blocks)

    def _sources(self) -> tuple[Tensor | None, ...]:
        blocks = self.resident_blocks()
        if self.__dict__["_gates"] is None or not _are_gated(blocks):
            return ()
        own = [t for block in blocks for t in block._sources()]
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
        return _Prepared(pack_stage(*filters), biases.float(), each[0]["lstm"], layer, channel)

    def _run(self, x: Tensor, blocks: Sequence[Any], gate_pass: GatePass) -> Tensor:
        prepared: _Prepared = self.prepared()
        gates: Any = gate_pass.gates
        size, layered = gates.config.group_size, bool(prepared.layer)
        h, c = gates.initial_state(x) if gate_pass.state is None else gate_pass.state
        y, keep, opened, h, c = resident_stage(
            x, h, c, prepared.weights, prepared.biases, prepared.lstm, prepared.layer, prepared.channel,
            size, gates.threshold_logit,
        )  # fmt: skip
        gate_pass.state = (h, c)
        for b, block in enumerate(blocks):
            masks = (Mask(opened[:, b], group_size=size),) if gates.config.channels else ()
            gate_pass.note(block, x, Decision(keep=keep[:, b] if layered else None, masks=masks))
        return y
