"""What all backbones share: blocks in a row, and branch classifiers behind some of them.

`model(x)` gives the main logits and runs no branch classifier; `model.forward_exits(x)` gives the logits of
all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn as nn
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ..cost.shapes import plain_copy
from ..gating.site import Visit
from ..nn.exit_head import ExitHead

__all__ = ["Backbone", "Exits"]

Exits = None | Literal["default"] | int | Sequence[int]


class Backbone(nn.Module):
    """Base of the backbones. Subclasses implement `_run` and call `_add_exits` last in their constructor.

    Attributes:
        exits: the branch classifiers, shallowest first; empty without any.
        exit_positions: how many blocks run before each of them.
    """

    exits: nn.ModuleList
    exit_positions: tuple[int, ...]

    def _run(self, x: Tensor, visit: Visit | None) -> Tensor:
        """The main logits; calls `visit` with the output of every block (of a DenseNet: layer)."""
        raise NotImplementedError

    def _default_positions(self, macs: Sequence[int]) -> list[int]:
        """Where exits="default" puts exits, from the MACs spent after each block: six, evenly spread."""
        return spread(macs, min(6, len(macs) - 1))

    def _add_exits(self, exits: Exits, num_classes: int, image: int, width: int) -> None:
        """Adds the branch classifiers for images of `image` pixels on a side, `width` channels wide."""
        self.exits, self.exit_positions = nn.ModuleList(), ()
        if exits is None:
            return
        blocks = self.trace_blocks((image, image))
        macs = [spent for spent, _ in blocks]
        if exits == "default":
            positions = self._default_positions(macs)
        elif isinstance(exits, int) and not isinstance(exits, bool):
            positions = spread(macs, exits)
        else:
            positions = _checked(exits, len(macs))
        self.exit_positions = tuple(positions)
        for position in positions:
            _, shape = blocks[position - 1]
            self.exits.append(ExitHead(shape[1], num_classes, shape[2], width))

    def trace_blocks(self, size: tuple[int, int]) -> list[tuple[int, torch.Size]]:
        """MACs spent when each block is done, and the shape of its output, for one image of (height, width),
        without computing anything. Of a backbone without gates.
        """
        plain, seen = plain_copy(self), []
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            x = torch.empty(1, 3, *size, device="meta")
            plain._run(x, lambda y: seen.append((counter.get_total_flops() // 2, y.shape)))
        return seen

    def forward(
        self, x: Tensor, all_exits: bool = False, visit: Visit | None = None
    ) -> Tensor | tuple[Tensor, ...]:
        """x: float[N, 3, H, W] -> logits float[N, num_classes], or with all_exits those of all exits.

        `visit` sees the output of every block as it is done; what it raises ends the pass.
        """
        if x.dim() != 4 or x.shape[1] != 3:
            raise ValueError(f"{type(self).__name__}: expected input (N, 3, H, W), got {tuple(x.shape)}")
        if not all_exits:
            return self._run(x, visit)
        logits: list[Tensor] = []
        done = 0

        def classify(features: Tensor) -> None:
            nonlocal done
            done += 1
            if done in self.exit_positions:
                logits.append(self.exits[len(logits)](features))

        main = self._run(x, classify)
        return (*logits, main)

    def forward_exits(self, x: Tensor) -> tuple[Tensor, ...]:
        """The logits float[N, num_classes] of all exits for x: float[N, 3, H, W], shallowest first, the main
        ones last. The same as `model(x, all_exits=True)`, which also works through a wrapper such as DDP.
        """
        return self(x, all_exits=True)


def spread(macs: Sequence[int], count: int) -> list[int]:
    """Positions of `count` exits that cut the MACs spent after each block into parts as even as can be.

    Raises:
        ValueError: there are not so many places between blocks.
    """
    last = len(macs) - 1
    if not 1 <= count <= last:
        raise ValueError(f"exits: got {count}, a number of exits must lie in 1..{last} for {last + 1} blocks")
    positions: list[int] = []
    for k in range(1, count + 1):
        target = macs[-1] * k / (count + 1)
        free = range(positions[-1] + 1 if positions else 1, last - (count - k) + 1)
        distances = {position: abs(macs[position - 1] - target) for position in free}
        positions.append(min(distances, key=distances.__getitem__))
    return positions


def _checked(exits: object, blocks: int) -> list[int]:
    positions = list(exits) if isinstance(exits, Sequence) and not isinstance(exits, str) else []
    rising = all(isinstance(p, int) for p in positions) and sorted(set(positions)) == positions
    if not positions or not rising or not 1 <= positions[0] <= positions[-1] < blocks:
        raise ValueError(
            f'exits: got {exits!r}, expected None, "default", a number of exits, or for each how many blocks '
            f"run before it, rising, in 1..{blocks - 1}"
        )
    return positions
