"""A network on its way into a plan: what is computed, before it is decided where.

Every node yields one value for each sample, an image [channels, height, width] or a vector [channels]; a
network is what its outputs need.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

__all__ = ["Conv", "FreezeError", "GateWeights", "Network", "Node", "ordered", "users"]


class FreezeError(ValueError):
    """A network, or a part of it, that the engine cannot run."""


@dataclass(eq=False)
class Node:
    """One operation.

    Args:
        op: input, conv, affine, activation, add, multiply, pool, mean, linear, cat, block or dense_layer.
        name: path of the module that it came from.
        inputs: what it reads.
        shape: of its value, without the batch: (channels, height, width), or (channels,).
        attrs: by op: conv: `conv` and `relu`, optionally a second input added before the relu, and
            `prologue` (scale, shift); affine: `scale`, `shift`; activation: `kind`; pool: `kind`, `kernel`,
            `stride`, `padding`, `count_padding`; linear: `weight`, `bias`, `kind`; block: `convs`,
            `shortcut` (a Conv or None), `gate` (GateWeights or None); dense_layer: `prologue`, `convs`,
            `gate`.
            `kind` is an activation, "none" among them; affine and add have one too.
    """

    op: str
    name: str
    inputs: list[Node]
    shape: tuple[int, ...]
    attrs: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Conv:
    """A convolution with everything folded in.

    Args:
        weight: float32[Co, Ci / groups, kh, kw].
        bias: float32[Co], or None.
        stride, padding, dilation: (vertical, horizontal).
        groups: of channels.
        name: path of the module that it came from.
    """

    weight: Tensor
    bias: Tensor | None
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    name: str


@dataclass(frozen=True)
class GateWeights:
    """The gates of one block, as the engine's gate step takes them.

    Args:
        lstm: weight and bias of the projection, then of the LSTM's input and recurrent part; or empty.
        layer: weight and bias of the layer bit, or empty where the block is always kept.
        channel: weight and bias of both layers of the channel gate, or empty.
        groups: bits of each mask.
        group_size: channels a bit stands for.
        threshold: of the logits.
    """

    lstm: list[Tensor]
    layer: list[Tensor]
    channel: list[Tensor]
    groups: tuple[int, ...]
    group_size: int
    threshold: float


@dataclass
class Network:
    """Args:
    source: the image.
    outputs: the logits of each exit, the whole network's last.
    """

    source: Node
    outputs: list[Node]

    @property
    def nodes(self) -> list[Node]:
        """In the order in which they run, the image first; as the nodes' inputs are now."""
        return ordered([self.source, *self.outputs])


def ordered(outputs: list[Node]) -> list[Node]:
    """The nodes that outputs need, each behind its inputs."""
    done: dict[Node, None] = {}
    stack = outputs[::-1]
    while stack:
        missing = [source for source in stack[-1].inputs if source not in done]
        if missing:
            stack += reversed(missing)
        else:
            done.setdefault(stack.pop())
    return list(done)


def users(network: Network) -> dict[Node, list[Node]]:
    """The nodes that read each node."""
    found: dict[Node, list[Node]] = {node: [] for node in network.nodes}
    for node in network.nodes:
        for source in node.inputs:
            found[source].append(node)
    return found
