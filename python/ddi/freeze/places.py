"""Where images lie: the parts of a concatenation are written where the whole is read.

A dense block concatenates what it has with every layer's new channels; the whole block is one buffer in which
each layer writes its channels behind those that it read, and nothing is copied.
"""

from __future__ import annotations

from .ir import Network, Node, users

__all__ = ["Places"]

# What can write a part of wider pixels.
_STRIDED = ("conv", "dense_layer", "pool", "affine", "add", "multiply", "activation", "cat")


class Places:
    """For every image the concatenation that it is a part of, and its first channel in it."""

    def __init__(self, network: Network) -> None:
        self._reads = users(network)
        self._places: dict[Node, tuple[Node, int]] = {}
        for node in reversed(network.nodes):
            if node.op == "cat":
                self._place_parts(node)

    def of(self, node: Node) -> tuple[Node, int]:
        """(node, 0) for an image that is no part of another."""
        return self._places.get(node, (node, 0))

    def _place_parts(self, cat: Node) -> None:
        if cat not in self._places:
            self._find_in_another(cat)
        root, first = self.of(cat)
        for part in cat.inputs:
            if part not in self._places and self._can_move(part):
                self._places[part] = root, first
            first += part.shape[0]

    def _find_in_another(self, cat: Node) -> None:
        """A concatenation whose parts lie one after the other in a larger one is a part of that."""
        root, first = self.of(cat.inputs[0])
        at = first
        for part in cat.inputs:
            if part not in self._places or self._places[part] != (root, at):
                return
            at += part.shape[0]
        self._places[cat] = root, first

    def _can_move(self, node: Node) -> bool:
        whole = len(node.inputs) > 1 or node.attrs["conv"].groups > 1 if node.op == "conv" else False
        # Residual blocks read and write whole buffers.
        return node.op in _STRIDED and not whole and all(r.op != "block" for r in self._reads[node])
