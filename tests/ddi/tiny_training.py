"""A training of seconds for the tests of training."""

import torch

from ddi.checkpoint import read_tensors

TINY = dict(
    model="cifar_resnet8",
    dataset="digits32",
    gates={"kind": "ddi", "group_size": 4},
    backbone_epochs=1,
    gates_epochs=1,
    joint_epochs=2,
    batch_size=256,
)

NARROW = TINY | {"model_kwargs": {"width": 4}, "gates": {"kind": "ddi", "group_size": 2}}
"""The same of a smaller network."""


def weights(folder):
    return read_tensors(folder / "model.safetensors")[0]


def same(a, b):
    return set(a) == set(b) and all(torch.equal(a[k], b[k]) for k in a)
