"""The engine for ARM, by Debian's cross compilers and run by qemu, answers as the engine here."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from frozen_models import freeze, seeded
from tolerances import assert_close

import ddi

ROOT = Path(__file__).resolve().parents[2]
TARGETS = {"aarch64-linux-gnu": "qemu-aarch64", "arm-linux-gnueabihf": "qemu-arm"}
MODELS = {
    "cifar_resnet8": ddi.DDIConfig(group_size=4),
    "densenet_bc40": ddi.DenseDDIConfig(group_size=4),
}


@pytest.mark.slow
@pytest.mark.parametrize("triplet", TARGETS)
def test_answers_as_the_engine_here(triplet: str, tmp_path: Path) -> None:
    compiler, emulator = f"{triplet}-g++", TARGETS[triplet]
    for tool in (compiler, emulator):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed (Debian packages g++-{triplet} and qemu-user)")
    subprocess.run(["make", "engine", f"CXX={compiler}"], cwd=ROOT, check=True, capture_output=True)
    program = ROOT / "build" / "engine" / compiler / "ddi_run"
    images = torch.randn(2, 3, 32, 32)
    np.save(tmp_path / "x.npy", images.numpy())
    for name, gates in MODELS.items():
        frozen = freeze(seeded(ddi.create_model(name, gates=gates)), 32, tmp_path)
        files = [tmp_path / "net.ddi", "--input", tmp_path / "x.npy", "--output", tmp_path / "y.npy"]
        command = [emulator, "-L", f"/usr/{triplet}", "-cpu", "max", program, *files, "--batch", "2"]
        subprocess.run([str(part) for part in command], check=True, capture_output=True)
        assert_close(torch.from_numpy(np.load(tmp_path / "y.npy")), frozen(images).double())
