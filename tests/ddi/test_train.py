"""Training: reproducible, resumable to the step, interruptible, and it reaches its MAC target."""

import json
import os
import signal

import pytest
import torch

import ddi
from ddi.checkpoint import CheckpointError, read_tensors
from ddi.train import Interrupted, TrainConfig, train
from ddi.train.trainer import Trainer

TINY = dict(
    model="cifar_resnet8",
    dataset="digits32",
    gates={"kind": "ddi", "group_size": 4},
    backbone_epochs=1,
    gates_epochs=1,
    joint_epochs=2,
    batch_size=256,
)


def weights(folder):
    return read_tensors(folder / "model.safetensors")[0]


def same(a, b):
    return set(a) == set(b) and all(torch.equal(a[k], b[k]) for k in a)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A whole run without interruption."""
    out = tmp_path_factory.mktemp("run")
    last = train(TrainConfig(**TINY), out, progress_bar=False)
    return out, last


def test_stages_history_and_files(finished):
    out, last = finished
    history = json.loads((out / "history.json").read_text())["history"]
    assert [h["stage"] for h in history] == ["backbone", "gates", "joint", "joint"]
    assert last == history[-1]
    assert sorted(p.name for p in out.iterdir()) == ["history.json", "model.safetensors"]
    model, meta = ddi.load_model(out / "model.safetensors")
    assert meta["train"]["gates"] == TINY["gates"] and hasattr(model, "ddi_gates")


def test_same_seed_same_result_and_another_seed_another(finished, tmp_path):
    train(TrainConfig(**TINY), tmp_path / "again", progress_bar=False)
    assert same(weights(tmp_path / "again"), weights(finished[0]))
    train(TrainConfig(**TINY | {"seed": 1, "joint_epochs": 0}), tmp_path / "other", progress_bar=False)
    assert not torch.equal(weights(tmp_path / "other")["fc.weight"], weights(finished[0])["fc.weight"])


@pytest.mark.parametrize("stop_at", [2, 5, 11])
def test_sigint_saves_and_resume_ends_where_the_whole_run_ends(finished, tmp_path, monkeypatch, stop_at):
    steps, original = [], Trainer._loss

    def loss(self, *args):
        steps.append(1)
        if len(steps) == stop_at:
            os.kill(os.getpid(), signal.SIGINT)
        return original(self, *args)

    monkeypatch.setattr(Trainer, "_loss", loss)
    with pytest.raises(Interrupted, match="--resume"):
        train(TrainConfig(**TINY), tmp_path, progress_bar=False)
    assert [p.name for p in tmp_path.iterdir()] == ["state.safetensors"]
    train(TrainConfig(**TINY), tmp_path, resume=True, progress_bar=False)
    assert same(weights(tmp_path), weights(finished[0]))


def test_resume_refuses_another_configuration_and_a_damaged_state(tmp_path, monkeypatch):
    trainer = Trainer(TrainConfig(**TINY), tmp_path)
    trainer._save([])
    with pytest.raises(CheckpointError, match="another configuration"):
        train(TrainConfig(**TINY | {"seed": 3}), tmp_path, resume=True)
    state = tmp_path / "state.safetensors"
    state.write_bytes(state.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="damaged"):
        train(TrainConfig(**TINY), tmp_path, resume=True)


def test_the_gates_stage_leaves_the_backbone_alone(tmp_path):
    config = TINY | {"joint_epochs": 0}
    train(TrainConfig(**config | {"gates": None}), tmp_path / "plain", progress_bar=False)
    train(
        TrainConfig(**config | {"init": str(tmp_path / "plain/model.safetensors")}),
        tmp_path / "gated",
        progress_bar=False,
    )
    plain, gated = weights(tmp_path / "plain"), weights(tmp_path / "gated")
    assert all(torch.equal(plain[k], gated[k]) for k in plain)


def test_the_joint_stage_moves_towards_the_target(tmp_path):
    config = TINY | dict(joint_epochs=6, batch_size=64, gate_lr=0.05, mac_target=0.5, anneal=0.2)
    last = train(TrainConfig(**config), tmp_path, progress_bar=False)
    assert 1.4 < last["mac_ratio"] < 4


def test_init_must_be_a_plain_network_of_the_same_model(finished, tmp_path):
    gated = str(finished[0] / "model.safetensors")
    with pytest.raises(CheckpointError, match="gated model"):
        train(TrainConfig(**TINY | {"init": gated}), tmp_path)
    with pytest.raises(FileNotFoundError):
        train(TrainConfig(**TINY | {"init": str(tmp_path / "no.safetensors")}), tmp_path)


@pytest.mark.parametrize("bad", [dict(mac_target=0.0), dict(joint_epochs=-1), dict(batch_size=1)])
def test_bad_values(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        TrainConfig(**bad)


def test_unknown_key():
    with pytest.raises(ValueError, match="unknown keys.*epochs.*allowed.*joint_epochs"):
        TrainConfig.from_dict({"epochs": 3})
