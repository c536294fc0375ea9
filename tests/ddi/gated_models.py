"""Gated models whose gates really differ between samples, for tests."""

import torch

import ddi


def mixed_model(name="cifar_resnet8", seed=0, **config):
    """A converted model with random statistics and gates that open for about half of what they see."""
    torch.manual_seed(seed)
    model = ddi.create_model(name, gates=ddi.DDIConfig(**config))
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.normal_(std=0.1)
                module.running_var.uniform_(0.5, 2.0)
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(std=0.2)
        for gate in getattr(model.ddi_gates, "channel", {}).values():
            gate.expand.weight.normal_(std=2.0)
            gate.expand.bias.zero_()
        if config.get("layers", True):
            model.ddi_gates.layer.weight.normal_(std=5.0)
            model.ddi_gates.layer.bias.zero_()
    return model.eval()


def images(n, seed=1):
    """float[n, 3, 32, 32] that differ in level and contrast, so that gates tell them apart."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 3, 32, 32, generator=generator)
    level = torch.randn(n, 3, 1, 1, generator=generator)
    return x * torch.rand(n, 1, 1, 1, generator=generator) * 2 + level
