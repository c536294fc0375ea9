"""Rewrites a network into what the engine runs in one step each.

Batch norms go into the convolution before them, or become a prologue of the one behind; additions and ReLUs
go into the convolution before them; a chain of convolutions whose result is added to its input is a block.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from ddi_kernels import fold_bn

from .ir import Conv, FreezeError, Network, Node, users

__all__ = ["fuse"]


def fuse(network: Network) -> Network:
    """The network in fewer, larger steps. Changes its nodes."""
    _vectors(network)
    _batch_norms(network)
    _additions(network)
    _relus(network)
    _prologues(network)
    _dense_layers(network)
    _blocks(network)
    return network


def _replace(network: Network, old: Node, new: Node) -> None:
    """Lets everything that reads `old` read `new`."""
    for node in network.nodes:
        if node is not new:
            node.inputs = [new if source is old else source for source in node.inputs]
    network.outputs = [new if output is old else output for output in network.outputs]


def _is_vector(node: Node) -> bool:
    if node.op in ("mean", "linear"):
        return True
    return len(node.shape) == 1 or (node.op == "activation" and _is_vector(node.inputs[0]))


def _vectors(network: Network) -> None:
    """1x1 convolutions of pooled images become linear layers, flattened images are convolved whole."""
    for node in network.nodes:
        if node.op == "conv" and _is_vector(node.inputs[0]):
            conv = node.attrs["conv"]
            if tuple(conv.weight.shape[2:]) != (1, 1) or conv.groups != 1 or conv.padding != (0, 0):
                raise FreezeError(f"freeze: {node.name} is a convolution of a pooled image with a kernel")
            node.op = "linear"
            node.attrs = {"weight": conv.weight.flatten(1), "bias": conv.bias, "kind": "none"}
        elif node.op == "linear" and node.inputs[0].op == "flatten":
            (image,) = node.inputs[0].inputs
            weight = node.attrs["weight"].unflatten(1, image.shape)
            conv = Conv(weight, node.attrs["bias"], (1, 1), (0, 0), (1, 1), 1, node.name)
            shape = (weight.shape[0], 1, 1)
            whole = Node("conv", node.name, [image], shape, {"conv": conv, "relu": False})
            node.op, node.inputs, node.attrs = "mean", [whole], {}


def _batch_norms(network: Network) -> None:
    reads = users(network)
    for node in network.nodes:
        if node.op != "batch_norm":
            continue
        (x,), bn = node.inputs, node.attrs["bn"]
        if x.op == "conv" and len(reads[x]) == 1 and x not in network.outputs:
            conv = x.attrs["conv"]
            weight, bias = fold_bn(conv.weight, conv.bias, bn)
            node.op, node.inputs = "conv", x.inputs
            node.attrs = {"conv": replace(conv, weight=weight, bias=bias), "relu": False}
        else:
            one = torch.ones(node.shape[0], 1)
            scale, shift = fold_bn(one, None, bn)
            node.op, node.attrs = "affine", {"scale": scale.flatten(), "shift": shift, "kind": "none"}


def _depth(node: Node, known: dict[Node, int]) -> int:
    """Operations between the input and a node, at most."""
    if node not in known:
        known[node] = 1 + max((_depth(source, known) for source in node.inputs), default=0)
    return known[node]


def _additions(network: Network) -> None:
    """The longer of two branches adds the shorter one as its residual."""
    reads = users(network)
    depths: dict[Node, int] = {}
    for node in network.nodes:
        _depth(node, depths)
    for node in network.nodes:
        if node.op != "add":
            continue
        for x, other in sorted((node.inputs, node.inputs[::-1]), key=lambda pair: -depths[pair[0]]):
            single = len(reads[x]) == 1 and len(x.inputs) == 1
            if x.op == "conv" and single and x.attrs["conv"].groups == 1 and other is not x:
                node.op, node.inputs, node.attrs = "conv", [x.inputs[0], other], dict(x.attrs)
                break
        else:
            node.attrs = {"kind": "none"}


def _relus(network: Network) -> None:
    """Activations go into what comes before them, if that can."""
    reads = users(network)
    for node in network.nodes:
        if node.op != "activation":
            continue
        (x,) = node.inputs
        if len(reads[x]) != 1 or x in network.outputs:
            continue
        if x.op == "conv" and node.attrs["kind"] == "relu" and not x.attrs["relu"]:
            x.attrs["relu"] = True
            _replace(network, node, x)
        elif x.op in ("affine", "add", "linear") and x.attrs["kind"] == "none":
            x.attrs["kind"] = node.attrs["kind"]
            _replace(network, node, x)


def _prologues(network: Network) -> None:
    """relu(affine(x)) that one convolution reads is computed as that loads its input."""
    reads = users(network)
    for node in network.nodes:
        if node.op != "conv" or len(node.inputs) != 1 or node.attrs["conv"].groups != 1:
            continue
        (x,) = node.inputs
        if x.op == "affine" and x.attrs["kind"] == "relu" and len(reads[x]) == 1:
            node.inputs = list(x.inputs)
            node.attrs["prologue"] = x.attrs["scale"], x.attrs["shift"]


def _dense_layers(network: Network) -> None:
    """conv3x3(relu(conv1x1(relu(affine(x))))), the layer of DenseNet-BC, is one step."""
    reads = users(network)
    for node in network.nodes:
        if node.op != "conv" or len(node.inputs) != 1 or node.attrs["relu"] or "prologue" in node.attrs:
            continue
        (first,) = node.inputs
        if first.op != "conv" or "prologue" not in first.attrs or not first.attrs["relu"]:
            continue
        convs = [first.attrs["conv"], node.attrs["conv"]]
        unit = all(conv.groups == 1 and conv.stride == (1, 1) for conv in convs)
        if unit and len(reads[first]) == 1 and tuple(convs[0].weight.shape[2:]) == (1, 1):
            attrs = {"prologue": first.attrs["prologue"], "convs": convs, "gate": None}
            node.op, node.inputs, node.attrs = "dense_layer", list(first.inputs), attrs


def _blocks(network: Network) -> None:
    reads = users(network)

    def plain(node: Node, relu: bool) -> bool:
        """A convolution that only the next step reads, with nothing else to it."""
        only = len(reads[node]) == 1 and node not in network.outputs
        form = node.op == "conv" and len(node.inputs) == 1 and "prologue" not in node.attrs
        return only and form and node.attrs["relu"] is relu and node.attrs["conv"].groups == 1

    for last in network.nodes:
        if last.op != "conv" or len(last.inputs) != 2 or not last.attrs["relu"] or "prologue" in last.attrs:
            continue
        chain, residual = [last], last.inputs[1]
        projected = plain(residual, False)
        while len(chain) < 3 and plain(chain[0].inputs[0], True):
            chain.insert(0, chain[0].inputs[0])
            start = chain[0].inputs[0]
            shortcut = projected and residual.inputs[0] is start
            if residual is start or shortcut:
                convs = [node.attrs["conv"] for node in chain]
                last.op, last.inputs = "block", [start]
                last.attrs = {"convs": convs, "shortcut": residual.attrs["conv"] if shortcut else None}
                last.attrs["gate"] = None
                break
