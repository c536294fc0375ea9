"""Freezes a gated ResNet with branch classifiers, and runs the file under a budget, as a device would.

    python examples/freeze_model.py

Every call reports what it cost: under a tighter budget all its samples halt at an earlier classifier.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

import ddi
from ddi_kernels import engine


def main() -> None:
    torch.manual_seed(0)
    gates = ddi.DDIConfig(group_size=8)
    model = ddi.create_model("cifar_resnet20", gates=gates, exits="default").eval()
    images = torch.randn(4, 3, 32, 32)
    with tempfile.TemporaryDirectory() as folder:
        plan = Path(folder) / "resnet20.ddi"
        ddi.freeze(model, images[:1], plan)
        print(f"{plan.name}: {plan.stat().st_size / 1e6:.1f} MB, {len(model.exits) + 1} classifiers")
        network = engine.load(plan, max_batch=4)
    with torch.inference_mode():
        difference = (network(images) - model(images)).abs().max().item()
    print(f"largest difference from the model: {difference:.1e}")
    for share in (1.0, 0.6, 0.3):
        budget = int(share * network.exit_worst_macs[-1])
        _, report = network(images, max_macs=budget, report=True)
        spent = max(report.macs) / 1e6
        print(f"budget {budget / 1e6:5.1f} MMAC: exit {report.exit}, at most {spent:5.1f} MMAC a sample")


if __name__ == "__main__":
    main()
