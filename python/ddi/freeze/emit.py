"""A fused network as the steps of a plan: which value lies in which buffer, and which steps run it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import torch

from .ir import Conv, FreezeError, GateWeights, Network, Node, ordered, users
from .places import Places
from .plan import BITS, IMAGE, NONE, STATE, VECTOR, PlanWriter
from .weights import ConvWords

__all__ = ["emit"]

_ACTIVATIONS = ("none", "relu", "relu6", "hardswish", "silu", "sigmoid")


def _activation(node: Node) -> int:
    return _ACTIVATIONS.index(node.attrs["kind"])


def emit(
    network: Network, dtype: torch.dtype, metadata: dict[str, Any], ranges: dict[str, float]
) -> tuple[bytes, dict[str, Any]]:
    """The plan of a fused network.

    Args:
        network: its last output is the whole network's.
        dtype: of the convolutions.
        metadata: JSON-ready, kept in the plan; `gates` and `exits` are added.
        ranges: the largest absolute value that each convolution reads, by its path, for int8.

    Returns:
        The plan, and its metadata.
    """
    return _Emitter(network, dtype, ranges).emit(metadata)


class _Emitter:
    def __init__(self, network: Network, dtype: torch.dtype, ranges: dict[str, float]) -> None:
        self.network = network
        self.plan = PlanWriter(dtype)
        self.convs = ConvWords(self.plan, ranges)
        self._floats = self.convs.floats
        self.reads = users(network)
        self.places = Places(network)
        self.steps: list[list[int]] = []
        self.images: dict[Node, int] = {}
        self.vectors: dict[Node, int] = {}  # of a node that is a vector; of others, its means
        # Of a concatenation, which its parts share: its image, the bits that say which channels are open,
        # and the means of its channels.
        self.concatenations: dict[Node, int] = {}
        self.masks: dict[Node, int] = {}
        self.means: dict[Node, int] = {}
        self.states: dict[int, int] = {}  # of the gates, by their size
        self.gates: list[dict[str, Any]] = []
        self.done: set[Node] = set()

    def emit(self, metadata: dict[str, Any]) -> tuple[bytes, dict[str, Any]]:
        outputs = self.network.outputs
        trunk = set(ordered(outputs[-1:]))
        heads = [set(ordered([output])) - trunk for output in outputs[:-1]]
        self.late = {source: node for head in heads for node in head for source in node.inputs}
        exits: list[tuple[str, int, list[list[int]], int]] = []
        waiting = list(zip(outputs[:-1], heads, strict=True))
        for node in [node for node in self.network.nodes if node in trunk]:
            self._node(node)
            self.done.add(node)
            while waiting and self._needs(waiting[0][1]) <= self.done:
                exits.append(self._head(len(exits), *waiting.pop(0)))
        exits.append(("network", len(self.steps), [], self._vector(outputs[-1])))
        metadata = {**metadata, "gates": self.gates, "exits": [name for name, *_ in exits]}
        image = self.images[self.network.source]
        return self.plan.to_bytes(json.dumps(metadata), image, self.steps, exits), metadata

    def _needs(self, head: set[Node]) -> set[Node]:
        """What a head reads of the trunk."""
        return {source for node in head for source in node.inputs} - head

    def _head(self, index: int, output: Node, head: set[Node]) -> tuple[str, int, list[list[int]], int]:
        trunk, self.steps = self.steps, []
        vectors = dict(self.vectors)
        for node in [node for node in self.network.nodes if node in head]:
            self._node(node)
        value = self._vector(output)
        steps, self.steps = self.steps, trunk
        self.vectors = vectors  # means that an exit takes are not there where it is not asked
        return f"exit{index}", len(trunk), steps, value

    # Values.

    def _part(self, table: dict[Node, int], kind: int, node: Node) -> int:
        """A node's channels of a buffer that its whole concatenation has."""
        root, first = self.places.of(node)
        if root not in table:
            size = root.shape if kind == IMAGE else root.shape[:1]
            table[root] = self.plan.buffer(kind, *size)
        return self.plan.value(table[root], first, node.shape[0])

    def _new_image(self, node: Node) -> int:
        self.images[node] = self._part(self.concatenations, IMAGE, node)
        return self.images[node]

    def _new_vector(self, node: Node) -> int:
        self.vectors[node] = self._part(self.means, VECTOR, node)
        return self.vectors[node]

    def _vector(self, node: Node) -> int:
        """A vector, or the means of an image, computed now unless its producer has done so."""
        if node not in self.vectors:
            if node.op == "cat" and all(in_place for _, _, in_place in self._cat_parts(node)):
                for part in node.inputs:
                    self._vector(part)
                return self._new_vector(node)
            words = [self.images[node], self._new_vector(node), self._mask(node)]
            self._step("mean", f"{node.name}.mean", words)
        return self.vectors[node]

    def _mask(self, node: Node) -> int:
        """The bits of an image of which channels are closed, else NONE."""
        root, _ = self.places.of(node)
        if root in self.masks:
            return self._part(self.masks, BITS, node)
        return self._mask(node.inputs[0]) if node.op in ("pool", "affine", "activation") else NONE

    def _wants_means(self, node: Node) -> bool:
        def wants(reader: Node) -> bool:
            gated = reader.attrs.get("gate") is not None
            return reader.op == "mean" or gated or (reader.op == "cat" and self._wants_means(reader))

        return any(wants(reader) for reader in self.reads[node])

    def _step(self, code: str, name: str, words: list[int]) -> None:
        self.steps.append(self.plan.step(code, name, words))

    # Steps.

    def _node(self, node: Node) -> None:
        emitters = {
            "input": self._new_image,
            "conv": self._conv_step,
            "block": self._block_step,
            "dense_layer": self._dense_layer_step,
            "cat": self._cat_step,
            "pool": self._pool_step,
            "affine": self._affine_step,
            "add": self._add_step,
            "multiply": self._multiply_step,
            "activation": self._activation_step,
            "mean": self._mean_step,
            "linear": self._linear_step,
        }
        if node.op not in emitters:
            raise FreezeError(f"freeze: the engine has no {node.op} as in {node.name}")
        emitters[node.op](node)

    def _conv_step(self, node: Node) -> None:
        residual = self.images[node.inputs[1]] if len(node.inputs) == 2 else NONE
        source, conv, relu = node.inputs[0], node.attrs["conv"], int(node.attrs["relu"])
        words, mask = [self.images[source], self._new_image(node), residual], self._mask(source)
        # The first convolution stays as it is: it reads the image where it lies.
        plain = "prologue" not in node.attrs and mask == NONE and source.op != "input"
        step = self.convs.scale(conv) if plain else None
        if step is not None:
            self._step("conv2d_int8", node.name, [*words, relu, *self.convs.words(conv, step)])
            return
        scale, shift = node.attrs.get("prologue", (None, None))
        words += [mask, relu, *self.convs.words(conv), self._floats(scale), self._floats(shift)]
        self._step("conv2d", node.name, words)

    def _mean_step(self, node: Node) -> None:
        self.vectors[node] = self._vector(node.inputs[0])

    def _linear_step(self, node: Node) -> None:
        weight = node.attrs["weight"][:, :, None, None]
        words = [self._vector(node.inputs[0]), self._new_vector(node), _activation(node)]
        words += [weight.shape[0], 1, 1, 1, 1, 0, 0, 1, 1, 1]
        words += [self._floats(weight), self._floats(node.attrs["bias"])]
        self._step("linear", node.name, words)

    def _pool_step(self, node: Node) -> None:
        a = node.attrs
        words = [self.images[node.inputs[0]], self._new_image(node), int(a["kind"] == "average")]
        words += [int(a["count_padding"]), *a["kernel"], *a["stride"], *a["padding"]]
        self._step("pool2d", node.name, words)

    def _affine_step(self, node: Node) -> None:
        x, y = self.images[node.inputs[0]], self._new_image(node)
        scale, shift = self._floats(node.attrs["scale"]), self._floats(node.attrs["shift"])
        self._step("activation", node.name, [x, y, NONE, NONE, scale, shift, _activation(node)])

    def _add_step(self, node: Node) -> None:
        a, b = (self._open_image(source) for source in node.inputs)
        words = [a, self._new_image(node), b, NONE, NONE, NONE, _activation(node)]
        self._step("activation", node.name, words)

    def _multiply_step(self, node: Node) -> None:
        x, factor = self._open_image(node.inputs[0]), self._vector(node.inputs[1])
        self._step("activation", node.name, [x, self._new_image(node), NONE, factor, NONE, NONE, 0])

    def _activation_step(self, node: Node) -> None:
        words = [self._open_image(node.inputs[0]), self._new_image(node), NONE, NONE, NONE, NONE]
        self._step("activation", node.name, [*words, _activation(node)])

    def _open_image(self, node: Node) -> int:
        """An image that needs all of its channels."""
        if node not in self.images:
            raise FreezeError(f"freeze: an operation of images reads {node.name}, which is a vector")
        if self._mask(node) != NONE:
            raise FreezeError(f"freeze: {node.name} has closed channels, but not only convolutions read it")
        return self.images[node]

    def _cat_step(self, node: Node) -> None:
        root, _ = self.places.of(node)
        for part, first, in_place in self._cat_parts(node):
            if not in_place:
                y = self.plan.value(self._buffer(root), first, part.shape[0])
                self._step("copy", f"{node.name}.copy", [self._open_image(part), y])
        self._new_image(node)

    def _cat_parts(self, node: Node) -> Iterator[tuple[Node, int, bool]]:
        """What a concatenation joins, its first channel there, and whether its producer writes it there."""
        root, first = self.places.of(node)
        for part in node.inputs:
            yield part, first, self.places.of(part) == (root, first)
            first += part.shape[0]

    def _buffer(self, root: Node) -> int:
        return self.plan.buffer_of(self._part(self.concatenations, IMAGE, root))[0]

    def _dense_layer_step(self, node: Node) -> None:
        (source,) = node.inputs
        gate: GateWeights | None = node.attrs["gate"]
        bits, size = NONE, 1
        if gate is not None:
            (bits,), size = self._gate_step(node.name, source, gate)[1], gate.group_size
        x, mask = self.images[source], self._mask(source)
        root, first = self.places.of(node)
        if gate is not None and root not in self.masks and first > 0:
            self.masks[root] = self.plan.buffer(BITS, root.shape[0])
            self._step("open_all", node.name, [self.plan.value(self.masks[root], 0, first)])
        out = self._part(self.masks, BITS, node) if gate is not None or root in self.masks else NONE
        words = [x, self._new_image(node), mask, bits, size, out]
        words.append(self._new_vector(node) if self._wants_means(node) else NONE)
        words += map(self._floats, node.attrs["prologue"])
        words += [word for conv in node.attrs["convs"] for word in self.convs.words(conv)]
        self._step("dense_layer", node.name, words)

    def _is_last_use(self, node: Node, source: Node) -> bool:
        """Whether nothing behind a node of the trunk reads its source."""
        return source not in self.late and all(r is node or r in self.done for r in self.reads[source])

    def _block_step(self, node: Node) -> None:
        (source,) = node.inputs
        gate: GateWeights | None = node.attrs["gate"]
        keep, masks = (NONE, []) if gate is None else self._gate_step(node.name, source, gate)
        x = self.images[source]
        shortcut: Conv | None = node.attrs["shortcut"]
        if shortcut is None and source.op not in ("input", "cat") and self._is_last_use(node, source):
            self.images[node] = x  # in place: a skipped block then touches nothing
        else:
            self._new_image(node)
        pooled = self._new_vector(node) if self._wants_means(node) else NONE
        known = self.vectors.get(source, NONE) if keep != NONE and pooled != NONE else NONE
        convs: list[Conv] = node.attrs["convs"]
        scales = self.convs.block_scales(convs, shortcut)
        words = [x, self.images[node], keep, known, pooled, len(convs)]
        for i, conv in enumerate(convs):
            if i + 1 < len(convs):
                words += [masks[i] if masks else NONE, 1 if gate is None else gate.group_size]
            words += self.convs.words(conv, None if scales is None else scales[i])
        first = None if scales is None else scales[0]
        words += [0] if shortcut is None else [1, *self.convs.words(shortcut, first)]
        self._step("block" if scales is None else "block_int8", node.name, words)

    def _gate_step(self, name: str, source: Node, gate: GateWeights) -> tuple[int, list[int]]:
        """The layer bit and the masks of a block."""
        bits = lambda count: self.plan.value(self.plan.buffer(BITS, count))  # noqa: E731
        pooled = self._vector(source)
        keep = bits(1) if gate.layer else NONE
        masks = [bits(count) for count in gate.groups]
        hidden = gate.lstm[0].shape[0] if gate.lstm else 0
        if hidden and hidden not in self.states:
            self.states[hidden] = self.plan.value(self.plan.buffer(STATE, 2 * hidden))
        words = [pooled, hidden, self.states.get(hidden, NONE), keep]
        words.append(self._floats(torch.tensor([gate.threshold])))
        project, project_bias, w_ih, w_hh, b_ih, b_hh = gate.lstm or (None,) * 6
        if hidden:
            words += map(self._floats, (project, project_bias, w_ih, b_ih, w_hh, b_hh))
        words += map(self._floats, gate.layer)
        words.append(len(masks))
        words += masks
        if masks:
            words.append(gate.channel[0].shape[0])
            words += map(self._floats, gate.channel)
        self._step("gate", f"{name}.gate", words)
        entry = {"name": name, "keep": keep != NONE, "groups": gate.groups, "group_size": gate.group_size}
        self.gates.append(entry | {"layer": keep != NONE or not gate.lstm})
        return keep, masks
