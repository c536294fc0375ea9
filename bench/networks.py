"""The networks of `bench model`: models with seeded or shipped weights, and the images that they run on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor

import ddi
from ddi.measure.onnxruntime import export_onnx
from ddi.report.demo import pretrained
from ddi_kernels import engine

POOL = 256
INPUTS = 16  # batches of images that calls walk through
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Network:
    """A backbone of the suite.

    Args:
        name: of the backbone, or of a trained network.
        size: the side of its images.
        gates: their config.
        trained: checkpoints of the plain and of the gated network, which then takes its own decisions on the
            test images it was trained for.
    """

    name: str
    size: int
    gates: Any
    trained: tuple[Path, Path] | None = None

    @classmethod
    def of_checkpoints(cls, name: str, plain: str | Path, gated: str | Path) -> Network:
        """A trained network.

        Raises:
            OSError, ValueError: a file is missing or damaged, or the second one holds no gates.
        """
        gates = getattr(ddi.load_model(gated)[0], "ddi_gates", None)
        if gates is None:
            raise ValueError(f"bench model: {gated} holds no gated network; give the plain checkpoint first")
        return cls(name, 32, gates.config, (Path(plain), Path(gated)))


NETWORKS = [
    Network(
        "shipped_resnet38",
        32,
        ddi.DDIConfig(group_size=4),
        (
            pretrained("scene_digits_resnet38.safetensors"),
            pretrained("scene_digits_resnet38_ddi.safetensors"),
        ),
    ),
    Network("cifar_resnet38", 32, ddi.DDIConfig(group_size=8)),
    Network("cifar_resnet110", 32, ddi.DDIConfig(group_size=8)),
    Network("resnet18", 224, ddi.DDIConfig(group_size=16)),
    Network("resnet50", 224, ddi.DDIConfig(group_size=16)),
    Network("densenet_bc100", 32, ddi.DenseDDIConfig(group_size=4)),
    Network("densenet121", 224, ddi.DenseDDIConfig(group_size=4)),
]


def seeded(model: Any) -> Any:
    """The model in eval mode, with batch norms that keep activations at their size."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.normal_(module.running_mean, 0, 0.1)
            nn.init.uniform_(module.weight, 0.5, 1.0)
            nn.init.normal_(module.bias, 0, 0.1)
    return model.eval()


@dataclass
class Case:
    """A network at a batch size: its images, and the times of the dense runtimes with ours."""

    network: Network
    batch: int
    threads: int
    dtype: str
    images: list[Tensor]
    gated: Any
    plain: Any

    def onnx(self) -> bytes:
        """The dense network for other runtimes, its batch left open."""
        return export_onnx(self.plain, torch.cat([self.images[0][:1]] * 2))

    def freeze(self, model: Any, path: Path) -> engine.Engine:
        ddi.freeze(model, self.images[0][:1], path, DTYPES[self.dtype])
        return engine.load(path, self.batch, self.threads)


def trained_case(network: Network, batch: int, threads: int, dtype: str) -> Case:
    """Trained networks on as many different test images as the pool has decisions."""
    assert network.trained is not None
    (plain, _), (gated, meta) = map(ddi.load_model, network.trained)
    data = ddi.data.get_dataset(meta.get("dataset", "scene_digits"))
    images = data.normalize(data.test().images[:: len(data.test().images) // POOL][:POOL])
    batches = list(images.contiguous().split(batch))
    return Case(network, batch, threads, dtype, batches, gated.eval(), plain.eval())


def make_case(network: Network, batch: int, threads: int, dtype: str) -> Case:
    if network.trained is not None:
        return trained_case(network, batch, threads, dtype)
    gated = seeded(ddi.create_model(network.name, gates=network.gates))
    plain = seeded(ddi.create_model(network.name))
    state = {key: value for key, value in gated.state_dict().items() if not key.startswith("ddi_gates.")}
    plain.load_state_dict(state)
    images = [torch.randn(batch, 3, network.size, network.size) for _ in range(INPUTS)]
    return Case(network, batch, threads, dtype, images, gated, plain)
