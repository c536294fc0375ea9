"""Checkpoints: round trips, and one clear error for every file that is not one."""

import json
import pickle

import pytest
import torch
from gated_models import images, mixed_model
from safetensors.torch import save_file

import ddi
from ddi.checkpoint import CheckpointError, read_tensors, write_tensors
from ddi.files import write_atomic


@pytest.fixture
def saved(tmp_path):
    model = mixed_model(group_size=4)
    path = tmp_path / "net.safetensors"
    ddi.save_model(path, model, "cifar_resnet8", {"note": "x"}, num_classes=10)
    return model, path


def test_round_trip_gated(saved):
    model, path = saved
    loaded, meta = ddi.load_model(path)
    assert meta == {"note": "x"} and not loaded.training
    assert loaded.ddi_gates.config == model.ddi_gates.config
    with torch.inference_mode():
        torch.testing.assert_close(loaded(images(4)), model(images(4)))


def test_round_trip_plain_with_other_classes(tmp_path):
    model = ddi.create_model("cifar_resnet8", num_classes=3)
    ddi.save_model(tmp_path / "a" / "net.safetensors", model, "cifar_resnet8", num_classes=3)
    loaded, _ = ddi.load_model(tmp_path / "a" / "net.safetensors")
    assert loaded.fc.out_features == 3 and not hasattr(loaded, "ddi_gates")


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        ddi.load_model(tmp_path / "none.safetensors")


@pytest.mark.parametrize("keep", [0, 4, 100, 5000, -1])
def test_truncated(saved, keep):
    _, path = saved
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match="damaged"):
        ddi.load_model(path)


def test_foreign_files(tmp_path):
    path = tmp_path / "net"
    path.write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(CheckpointError, match="damaged or not a safetensors"):
        ddi.load_model(path)
    save_file({"a": torch.zeros(2)}, path)
    with pytest.raises(CheckpointError, match="not written by ddi"):
        ddi.load_model(path)
    save_file({"a": torch.zeros(2)}, path, metadata={"ddi": "{"})
    with pytest.raises(CheckpointError, match="unreadable"):
        ddi.load_model(path)
    save_file({"a": torch.zeros(2)}, path, metadata={"ddi": json.dumps({"version": 99})})
    with pytest.raises(CheckpointError, match="version 99"):
        ddi.load_model(path)


def test_description_and_weights_that_disagree(saved):
    _, path = saved
    tensors, info = read_tensors(path)
    for change in ({"model": "resnet9"}, {"kwargs": {"width": 3}}, {"gates": {"kind": "x"}}):
        write_tensors(path, tensors, {**info, **change})
        with pytest.raises(CheckpointError, match="does not describe"):
            ddi.load_model(path)
    tensors.pop("fc.bias")
    write_tensors(path, tensors, info)
    with pytest.raises(CheckpointError, match="fc.bias"):
        ddi.load_model(path)


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomic(path, b"old")

    def fail(*args):
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old" and [p.name for p in tmp_path.iterdir()] == ["file"]
