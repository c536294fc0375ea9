"""Gated models whose gates really differ between samples, for tests."""

import torch

import ddi
from ddi.backbones.densenet import DenseNet
from ddi.backbones.resnet import Bottleneck, ResNet


def tiny_bottlenecks():
    """A ResNet of bottlenecks for small images; three of its five can be skipped."""
    return ResNet(Bottleneck, (3, 2), 8, "cifar", 10)


def tiny_densenet():
    """A DenseNet of seven layers in three dense blocks for small images."""
    return DenseNet(6, (3, 2, 2), 8, "cifar", 10)


def randomize_norms(model):
    """BatchNorms that have seen something: no mean, variance or affine part is the initial one."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.normal_(std=0.1)
                module.running_var.uniform_(0.5, 2.0)
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(std=0.2)


def mixed_model(name="cifar_resnet8", seed=0, gates=None, **config):
    """A converted model with random statistics and gates that open for about half of what they see.

    name: of `create_model`, or a function that makes the plain model.
    gates: the class of their config, left out: DDIConfig or DenseDDIConfig.
    """
    torch.manual_seed(seed)
    plain = name() if callable(name) else ddi.create_model(name)
    dense = isinstance(plain, DenseNet)
    gates = gates or (ddi.DenseDDIConfig if dense else ddi.DDIConfig)
    model = ddi.convert_(plain, gates(**config))
    randomize_norms(model)
    with torch.no_grad():
        for gate in getattr(model.ddi_gates, "channel", {}).values():
            gate.expand.weight.normal_(std=2.0)
            gate.expand.bias.zero_()
        if config.get("layers", not dense):
            for gate in model.ddi_gates.layer.values():
                gate.weight.normal_(std=5.0)
                gate.bias.zero_()
    return model.eval()


def images(n, seed=1):
    """float[n, 3, 32, 32] that differ in level and contrast, so that gates tell them apart."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 3, 32, 32, generator=generator)
    level = torch.randn(n, 3, 1, 1, generator=generator)
    return x * torch.rand(n, 1, 1, 1, generator=generator) * 2 + level
