"""The joint stage: held to its target, taught by another network, and gates that settle."""

import os
import signal

import pytest
import torch
import torch.nn.functional as F
from tiny_training import TINY, same, weights

import ddi
from ddi.checkpoint import CheckpointError
from ddi.train import Interrupted, TrainConfig, train
from ddi.train import trainer as trainer_module
from ddi.train.history import read_history
from ddi.train.trainer import Trainer
from ddi_kernels.prices import tables
from ddi_kernels.prices.latency import ConvShape, Grid, LatencyTable, Row


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A whole run, and a plain network of the same kind."""
    out = tmp_path_factory.mktemp("run")
    last = train(TrainConfig(**TINY), out, progress_bar=False)
    plain = TINY | {"gates": None, "joint_epochs": 0, "seed": 3}
    train(TrainConfig(**plain), out / "plain", progress_bar=False)
    return out, last


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


# Gates that settle.

SETTLING = TINY | {"mac_target": 0.9, "anneal": 0.1, "settle": 0.5, "gate_lr": 0.05, "joint_epochs": 3}
SETTLING |= {"joint_lr": 0.1}


def gates_of(trainer):
    return {name: p.clone() for name, p in trainer.model.ddi_gates.named_parameters()}


def watch_gates(monkeypatch, each):
    """Calls each(gates' weights, network's first weight, done) before every joint step."""
    original = Trainer._loss

    def loss(self, stage, done, *args):
        if stage.name == "joint":
            each(gates_of(self), self.model.conv1.weight.detach().clone(), done)
        return original(self, stage, done, *args)

    monkeypatch.setattr(Trainer, "_loss", loss)


def test_gates_learn_until_they_have_settled(tmp_path, monkeypatch):
    steps = []
    watch_gates(monkeypatch, lambda gates, weight, done: steps.append((gates, weight, done)))
    train(TrainConfig(**SETTLING), tmp_path, progress_bar=False)
    moved = [(done, not same(a, b)) for (a, _, done), (b, _, _) in zip(steps, steps[1:], strict=False)]
    # The first rate of a stage is a thousandth, that of gates at rest exactly 0.
    assert all(moves for done, moves in moved if done < 0.5)
    last = max(done for done, moves in moved if moves)
    assert 0.5 <= last < 1 - 3 / len(steps) and not any(moves for done, moves in moved if done > last)
    assert not torch.equal(steps[-1][1], steps[-2][1])  # the network learns on
    # The history has the rate of each epoch's last step; when they settle is up to rounding.
    ends = [done for (_, _, done) in steps][len(steps) // 3 - 1 :: len(steps) // 3]
    rates = [line["lr_gates"] for line in read_history(tmp_path)[2:]]
    assert [rate > 0 for rate in rates] == [done <= last for done in ends] and rates[-1] == 0


def test_gates_do_not_settle_while_the_target_falls(tmp_path, monkeypatch):
    """A batch within a target on its way down, as all are here, is not yet within the wanted one."""
    monkeypatch.setattr(trainer_module, "budget_loss", lambda *args: -ddi.budget_loss(*args).abs())
    train(TrainConfig(**SETTLING | {"anneal": 0.95}), tmp_path, progress_bar=False)
    assert [line["lr_gates"] > 0 for line in read_history(tmp_path)[1:-1]] == [True, True, True]


def test_gates_do_not_settle_above_the_target(tmp_path):
    values = SETTLING | {"mac_target": 0.1, "gate_lr": 1e-4}  # too far for so little time
    last = train(TrainConfig(**values), tmp_path, progress_bar=False)
    assert last["lr_gates"] > 0


def test_a_run_resumed_after_its_gates_have_settled_ends_the_same(tmp_path, monkeypatch):
    train(TrainConfig(**SETTLING), tmp_path / "whole", progress_bar=False)

    def stop(gates, weight, done):
        if done > 0.9:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        watch_gates(patch, stop)
        with pytest.raises(Interrupted):
            train(TrainConfig(**SETTLING), tmp_path / "stopped", progress_bar=False)
    train(TrainConfig(**SETTLING), tmp_path / "stopped", resume=True, progress_bar=False)
    assert same(weights(tmp_path / "stopped"), weights(tmp_path / "whole"))


# A teacher.


@pytest.mark.parametrize("teacher", ["plain/model.safetensors", "model.safetensors"], ids=["plain", "gated"])
def test_the_joint_stage_learns_from_a_teacher(finished, tmp_path, teacher):
    values = TINY | {"teacher": str(finished[0] / teacher), "teacher_weight": 0.25}
    trainer = Trainer(TrainConfig(**values), tmp_path)
    stages = {stage.name: stage for stage in trainer.stages}
    taught, _ = ddi.load_model(values["teacher"])
    x, labels = torch.randn(8, 3, 32, 32), torch.arange(8)
    trainer._train_mode(stages["joint"])
    with torch.no_grad():
        logits = trainer.model(x)
        cross = F.cross_entropy(logits, labels)
        distilled = ddi.distillation_loss(logits, taught(x))
    for name, expected in [("gates", cross), ("joint", 0.75 * cross + 0.25 * distilled)]:
        trainer._train_mode(stages["joint"])  # its batch statistics, for all of them
        torch.testing.assert_close(trainer._loss(stages[name], 0.0, x, labels)[1], expected)


def test_a_taught_run_is_another_and_the_teacher_stays(finished, tmp_path):
    teacher = finished[0] / "plain/model.safetensors"
    before = weights(teacher.parent)
    train(TrainConfig(**TINY | {"teacher": str(teacher)}), tmp_path, progress_bar=False)
    assert not same(weights(tmp_path), weights(finished[0])) and same(weights(teacher.parent), before)
    first, own = read_history(tmp_path), read_history(finished[0])
    assert [a["loss"] == b["loss"] for a, b in zip(first, own, strict=True)] == [True, True, False, False]


def test_branch_classifiers_learn_from_labels_alone(finished, tmp_path):
    values = TINY | {"gates": None, "exits": "1", "teacher": str(finished[0] / "plain/model.safetensors")}
    trainer = Trainer(TrainConfig(**values, teacher_weight=1.0, branch_weight=0.5), tmp_path)
    x, labels = torch.randn(8, 3, 32, 32), torch.arange(8)
    trainer._train_mode(trainer.stages[-1])
    with torch.no_grad():
        branch, main = trainer.model(x, all_exits=True)
        expected = ddi.distillation_loss(main, trainer.teacher(x)) + 0.5 * F.cross_entropy(branch, labels)
    torch.testing.assert_close(trainer._loss(trainer.stages[-1], 0.0, x, labels)[0], expected)


def test_teachers_that_are_none(tmp_path):
    with pytest.raises(FileNotFoundError):
        Trainer(TrainConfig(**TINY, teacher=str(tmp_path / "no.safetensors")), tmp_path)
    ddi.save_model(
        tmp_path / "c.safetensors",
        ddi.create_model("cifar_resnet8", num_classes=7),
        "cifar_resnet8",
        num_classes=7,
    )
    with pytest.raises(CheckpointError, match="teacher=.*tells 7 classes apart, digits32 has 10"):
        Trainer(TrainConfig(**TINY, teacher=str(tmp_path / "c.safetensors")), tmp_path)
