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

# No narrower: of fewer than 8 channels oneDNN's AVX2 kernel for the weights' gradient of a strided 1x1
# convolution (jit_1x1:avx2, channels_last) writes past its memory, and a training hangs or aborts.
NARROW = TINY | {"model_kwargs": {"width": 8}, "gates": {"kind": "ddi", "group_size": 4}}
"""The same of a smaller network."""


def weights(folder):
    return read_tensors(folder / "model.safetensors")[0]


def same(a, b):
    return set(a) == set(b) and all(torch.equal(a[k], b[k]) for k in a)
