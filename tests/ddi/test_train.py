"""Training: reproducible, resumable to the step, interruptible, and it reaches its MAC target."""

import os
import signal

import pytest
import torch

import ddi
from ddi.checkpoint import CheckpointError, read_tensors, write_tensors
from ddi.train import Interrupted, TrainConfig, train
from ddi.train import trainer as trainer_module
from ddi.train.history import read_history, without_times
from ddi.train.trainer import Trainer
from ddi_kernels import tables
from ddi_kernels.latency import ConvShape, Grid, LatencyTable, Row

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


def test_the_joint_stage_moves_towards_the_target(tmp_path):
    config = TINY | dict(joint_epochs=6, batch_size=64, gate_lr=0.05, mac_target=0.5, anneal=0.2)
    last = train(TrainConfig(**config), tmp_path, progress_bar=False)
    assert 1.4 < last["mac_ratio"] < 4


@pytest.fixture
def table_file(tmp_path):
    """A latency table of another device, in proportion to multiply-adds."""
    grid = Grid([0.5, 1.0], [0.5, 1.0], [[1.0, 2.0], [2.0, 4.0]])
    shape = ConvShape(kernel=1, stride=1, ci=1, co=1, pixels=1, batch=1, threads=1)
    row = Row(shape, 3.0, 0.0, 0.0, 0.0, 5.0, grid, grid)
    path = tmp_path / "table.json"
    path.write_text(LatencyTable("another CPU", "mmx", "", "", (row,)).dumps())
    return str(path)


def resource_values(resource, table_file):
    return {"resource": resource} | ({"latency_table": table_file} if resource == "ms" else {})


@pytest.mark.parametrize("resource", ["ms", "joules"])
def test_the_joint_stage_is_held_to_a_share_of_the_resource(resource, tmp_path, table_file, monkeypatch):
    seen = []

    def loss(rec, target, price, mean):
        seen.append((price.name, target))
        return ddi.budget_loss(rec, target, price, mean)

    monkeypatch.setattr(trainer_module, "budget_loss", loss)
    values = TINY | dict(mac_target=0.4, anneal=0.0, joint_epochs=1, backbone_epochs=0, batch_size=512)
    values |= resource_values(resource, table_file)
    last = train(TrainConfig(**values), tmp_path / "run", progress_bar=False)
    steps = len(seen) // 2
    assert seen == [("macs", 1.0)] * steps + [(resource, 0.4)] * steps  # the gates stage opens everything
    history = read_history(tmp_path / "run")
    assert all({"mac_ratio", "resource_share"} <= set(entry) for entry in history) and len(history) == 2
    model, meta = ddi.load_model(tmp_path / "run/model.safetensors")
    assert meta["train"]["resource"] == resource
    data = ddi.data.get_dataset("digits32")
    price = TrainConfig(**values).priced()
    result = ddi.evaluate.evaluate(model, data, data.validation(), resource=price)
    assert last["resource_share"] == pytest.approx(result.cost.share.item(), abs=1e-4)
    assert last["mac_ratio"] == pytest.approx(result.mac_ratio, abs=1e-4)
    assert result.resource == resource and last["resource_share"] != pytest.approx(1 / last["mac_ratio"])


def test_a_share_of_the_macs_is_the_default(finished):
    last = finished[1]
    assert last["resource_share"] == pytest.approx(1 / last["mac_ratio"], abs=2e-4)


def test_without_a_table_of_this_device_nothing_is_trained_for_time(tmp_path, monkeypatch, table_file):
    monkeypatch.setattr(tables, "device_name", lambda: "a new CPU")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("DDI_LATENCY_TABLE", raising=False)
    tables.set_table(None)
    values = TINY | {"resource": "ms"}
    with pytest.raises(ValueError, match="no table of this device, a new CPU.*profile.*latency_table=path"):
        Trainer(TrainConfig(**values), tmp_path / "run")
    Trainer(TrainConfig(**values | {"latency_table": table_file}), tmp_path / "run")
    Trainer(TrainConfig(**values | {"gates": None}), tmp_path / "run")  # nothing to hold to it
    tables.set_table(None)


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
    ],
)
def test_bad_values(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        TrainConfig(**bad)


def test_unknown_key():
    with pytest.raises(ValueError, match="unknown keys.*epochs.*allowed.*joint_epochs"):
        TrainConfig.from_dict({"epochs": 3})


def test_mixed_precision_trains_as_well_and_keeps_float32_weights(tmp_path):
    values = TINY | {"gates_epochs": 1, "joint_epochs": 3, "batch_size": 64, "backbone_epochs": 4}
    last = train(TrainConfig(**values, precision="bf16", mac_target=0.8), tmp_path, progress_bar=False)
    assert last["validation_accuracy"] > 0.5  # of ten classes
    assert {t.dtype for n, t in weights(tmp_path).items() if "num_batches" not in n} == {torch.float32}


def test_a_narrower_network_is_trained_and_saved(tmp_path):
    values = TINY | {"gates": None, "joint_epochs": 0, "model_kwargs": {"width": 4, "depths": [1, 2, 1]}}
    train(TrainConfig(**values), tmp_path, progress_bar=False)
    model, _ = ddi.load_model(tmp_path / "model.safetensors")
    assert model.conv1.out_channels == 4 and len(model.layer2) == 2


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


def test_branch_loss():
    labels = torch.tensor([0, 1, 2, 0])
    logits = [torch.randn(4, 3, requires_grad=True) for _ in range(3)]
    own = [torch.nn.functional.cross_entropy(one, labels) for one in logits]
    loss = ddi.branch_loss(logits, labels)
    assert loss.item() == pytest.approx(sum(own).item())
    got = torch.autograd.grad(loss, logits, retain_graph=True)
    mean = sum(own).item() / 3
    for one, gradient, expected in zip(own, got, torch.autograd.grad(sum(own), logits), strict=True):
        torch.testing.assert_close(gradient, expected * mean / one.item())
    assert ddi.branch_loss(logits, labels, equalise=False).item() == pytest.approx(sum(own).item())
    certain = torch.nn.functional.one_hot(labels, 3) * 1e4  # a loss of 0 has no gradient to scale
    assert ddi.branch_loss([certain.float(), logits[0]], labels).isfinite()
    with pytest.raises(ValueError, match="branch_loss: logits is empty"):
        ddi.branch_loss([], labels)
