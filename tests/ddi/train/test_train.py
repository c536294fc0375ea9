"""Training: reproducible, resumable to the step, interruptible; its stages, its branch classifiers."""

import os
import signal

import pytest
import torch
from tiny_training import NARROW, TINY, same, weights

import ddi
from ddi.checkpoint import CheckpointError, read_tensors, write_tensors
from ddi.train import Interrupted, TrainConfig, train
from ddi.train.history import read_history, without_times
from ddi.train.trainer import Trainer


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A whole run without interruption."""
    out = tmp_path_factory.mktemp("run")
    last = train(TrainConfig(**TINY), out, progress_bar=False)
    return out, last


def test_stages_history_and_files(finished):
    out, last = finished
    history = read_history(out)
    assert [h["stage"] for h in history] == ["backbone", "gates", "joint", "joint"]
    assert last == history[-1]
    assert sorted(p.name for p in out.iterdir()) == ["history.jsonl", "model.safetensors"]
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
    assert sorted(p.name for p in tmp_path.iterdir()) == ["history.jsonl", "state.safetensors"]
    train(TrainConfig(**TINY), tmp_path, resume=True, progress_bar=False)
    assert same(weights(tmp_path), weights(finished[0]))
    assert without_times(read_history(tmp_path)) == without_times(read_history(finished[0]))


def test_resume_refuses_another_configuration_and_a_damaged_state(tmp_path, monkeypatch):
    trainer = Trainer(TrainConfig(**TINY), tmp_path)
    trainer._save([])
    with pytest.raises(CheckpointError, match="another configuration"):
        train(TrainConfig(**TINY | {"seed": 3}), tmp_path, resume=True)
    state = tmp_path / "state.safetensors"
    state.write_bytes(state.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="damaged"):
        train(TrainConfig(**TINY), tmp_path, resume=True)


def test_a_state_from_before_a_setting_existed_is_resumed(tmp_path):
    Trainer(TrainConfig(**TINY), tmp_path)._save([])
    tensors, info = read_tensors(tmp_path / "state.safetensors")
    for name in ("resource", "latency_table"):
        del info["config"][name]
    write_tensors(tmp_path / "state.safetensors", tensors, info)
    Trainer(TrainConfig(**TINY), tmp_path).resume()
    with pytest.raises(CheckpointError, match="another configuration"):
        Trainer(TrainConfig(**TINY, resource="joules"), tmp_path).resume()


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


def test_init_must_be_a_plain_network_of_the_same_model(finished, tmp_path):
    gated = str(finished[0] / "model.safetensors")
    with pytest.raises(CheckpointError, match="gated model"):
        train(TrainConfig(**TINY | {"init": gated}), tmp_path)
    with pytest.raises(FileNotFoundError):
        train(TrainConfig(**TINY | {"init": str(tmp_path / "no.safetensors")}), tmp_path)


@pytest.mark.parametrize(
    "bad",
    [
        dict(mac_target=0.0),
        dict(joint_epochs=-1),
        dict(batch_size=1),
        dict(precision="fp8"),
        dict(resource="watts"),
        dict(latency_table="table.json"),
        dict(teacher_weight=1.5),
        dict(settle=-0.1),
    ],
)
def test_bad_values(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        TrainConfig(**bad)


def test_unknown_key():
    with pytest.raises(ValueError, match="unknown keys.*epochs.*allowed.*joint_epochs"):
        TrainConfig.from_dict({"epochs": 3})


def test_mixed_precision_keeps_float32_weights(tmp_path):
    train(TrainConfig(**NARROW | {"joint_epochs": 0, "precision": "bf16"}), tmp_path, progress_bar=False)
    assert {t.dtype for n, t in weights(tmp_path).items() if "num_batches" not in n} == {torch.float32}


@pytest.mark.slow  # minutes where bfloat16 is emulated
def test_mixed_precision_trains_as_well_and_keeps_float32_weights(tmp_path):
    values = TINY | {"gates_epochs": 1, "joint_epochs": 3, "batch_size": 64, "backbone_epochs": 4}
    last = train(TrainConfig(**values, precision="bf16", mac_target=0.8), tmp_path, progress_bar=False)
    assert last["validation_accuracy"] > 0.5  # of ten classes
    assert {t.dtype for n, t in weights(tmp_path).items() if "num_batches" not in n} == {torch.float32}


def test_a_narrower_network_is_trained_and_saved(tmp_path):
    values = TINY | {"gates": None, "joint_epochs": 0, "model_kwargs": {"width": 8, "depths": [1, 2, 1]}}
    train(TrainConfig(**values), tmp_path, progress_bar=False)
    model, _ = ddi.load_model(tmp_path / "model.safetensors")
    assert model.conv1.out_channels == 8 and len(model.layer2) == 2


# Branch classifiers.


@pytest.fixture(scope="module")
def branched(tmp_path_factory):
    """A plain run with two branch classifiers."""
    out = tmp_path_factory.mktemp("branched")
    values = TINY | {"gates": None, "exits": "1,2", "joint_epochs": 0, "backbone_epochs": 6, "batch_size": 64}
    return out, train(TrainConfig(**values), out, progress_bar=False)


def test_branches_learn_and_are_saved(branched):
    out, last = branched
    model, meta = ddi.load_model(out / "model.safetensors")
    assert model.exit_positions == (1, 2) and meta["train"]["exits"] == "1,2"
    assert len(last["exit_accuracy"]) == 2 and min(last["exit_accuracy"]) > 0.3  # of ten classes
    data = ddi.data.get_dataset("digits32")
    result = ddi.evaluate.evaluate(model, data, data.validation())
    assert result.exit_accuracy == pytest.approx(last["exit_accuracy"], abs=1e-5)
    assert result.accuracy == pytest.approx(last["validation_accuracy"], abs=1e-5)


def test_gated_run_goes_on_with_the_branches_of_its_backbone(branched, tmp_path):
    init = str(branched[0] / "model.safetensors")
    config = TrainConfig(**TINY | {"init": init, "joint_epochs": 1, "mac_target": 0.8})
    last = train(config, tmp_path, progress_bar=False)
    model, _ = ddi.load_model(tmp_path / "model.safetensors")
    assert model.exit_positions == (1, 2) and hasattr(model, "ddi_gates")
    assert len(last["exit_accuracy"]) == 2 and min(last["exit_accuracy"]) > 0.3


def test_branches_come_to_a_backbone_without_any(finished, branched, tmp_path):
    plain = tmp_path / "plain"
    values = TINY | {"gates": None, "gates_epochs": 0, "joint_epochs": 0}
    train(TrainConfig(**values), plain, progress_bar=False)
    values |= {"init": str(plain / "model.safetensors"), "exits": "default"}
    trainer = Trainer(TrainConfig(**values), tmp_path / "more")
    before = weights(plain)
    after = trainer.model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert set(after) - set(before) == {n for n in after if n.startswith("exits.")} != set()
    with pytest.raises(CheckpointError, match=r"after blocks \(1, 2\), the run wants them after \(1,\)"):
        Trainer(TrainConfig(**values | {"init": str(branched[0] / "model.safetensors"), "exits": "1"}), "x")


def test_branches_of_a_backbone_can_be_left_behind(branched, tmp_path):
    values = TINY | {"init": str(branched[0] / "model.safetensors"), "exits": "none"}
    model = Trainer(TrainConfig(**values), tmp_path / "run").model
    before, after = weights(branched[0]), model.state_dict()
    kept = {name for name in after if "ddi_gates" not in name}
    assert model.exit_positions == () and kept == {name for name in before if not name.startswith("exits.")}
    assert all(torch.equal(after[name], before[name]) for name in kept)


@pytest.mark.parametrize("exits", ["all", "1,a", "", "0", "2,1", "9"])
def test_exits_that_are_none(exits, tmp_path):
    with pytest.raises(ValueError, match="exits"):
        Trainer(TrainConfig(**TINY | {"exits": exits}), tmp_path)
