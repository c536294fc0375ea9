"""Training on several processes: the same images and decisions as on one, and one set of files."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_training import NARROW, weights

import ddi
from ddi.measure.quiet import measuring
from ddi.train import TrainConfig, train
from ddi.train.distributed import World, is_main, world
from ddi.train.trainer import Trainer

TINY = NARROW | {"joint_epochs": 1}
WHOLE = TINY | {"batch_size": 128, "exits": "1", "gate_lr": 0.05}


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Folder in which two processes have worked, and what each of them found."""
    folder = tmp_path_factory.mktemp("pair")
    plain = TINY | {"gates": None, "gates_epochs": 0, "joint_epochs": 0, "exits": "1"}
    train(TrainConfig(**plain), folder / "plain", progress_bar=False)
    start = {"init": str(folder / "plain/model.safetensors"), "equalise": False, "mac_target": 0.5}
    configs = {
        # Without channel gates nothing reads what the last block, which always runs, tells the LSTM.
        "gates": TINY
        | start
        | {"joint_epochs": 0, "gate_lr": 0.05, "gates": {"kind": "ddi", "channels": False}},
        "joint": TINY | start | {"gates_epochs": 0, "anneal": 0.2},
        "whole": WHOLE,
    }
    (folder / "whole.json").write_text(json.dumps(WHOLE))
    command = f"train --config {folder}/whole.json --out {folder}/command --json {folder}/last.json"
    (folder / "configs.json").write_text(json.dumps(configs | {"command": command.split()}))
    launch(folder)
    return folder, configs, [json.loads((folder / f"found_{rank}.json").read_text()) for rank in (0, 1)]


def launch(folder):
    """Two processes of distributed_worker.py on this machine."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    worker = Path(__file__).with_name("distributed_worker.py")
    environment = os.environ | {
        "GLOO_SOCKET_IFNAME": "lo",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    done = subprocess.run(
        [*torchrun, str(worker), str(folder)], env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-4000:]


def line(last):
    """A history line without its times."""
    return {name: value for name, value in last.items() if "second" not in name}


@pytest.mark.parametrize("name", ["gates", "joint"])
def test_two_processes_do_what_one_does(pair, monkeypatch, name):
    """Where BatchNorm looks at no batch: in the gates' stage, and in one whose network is in eval mode."""
    folder, configs, found = pair
    if name == "joint":
        monkeypatch.setattr(Trainer, "_train_mode", lambda self, stage: self.model.eval())
    trainer = Trainer(TrainConfig(**configs[name]), folder / f"{name}_alone")
    begin = {n: p.detach().clone() for n, p in trainer.model.named_parameters()}
    last = trainer.run(progress_bar=False)
    both = load_file(folder / f"{name}_0.safetensors")
    moved = 0
    for n, p in trainer.model.named_parameters():
        torch.testing.assert_close(both[n], p.detach(), rtol=1e-3, atol=1e-4, msg=n)
        moved += (p.detach() - begin[n]).abs().max().item() > 1e-2
    assert moved >= 5
    for key in ("loss", "task_loss", "penalty", "mac_share"):
        assert found[0][name][key] == pytest.approx(last[key], abs=2e-4)
    assert found[0][name]["lr_gates"] == last["lr_gates"]


def test_parameters_that_nothing_reads_stay_as_they_were(pair):
    folder, configs, _ = pair
    begin = dict(Trainer(TrainConfig(**configs["gates"]), folder / "begin").model.named_parameters())
    end = load_file(folder / "gates_0.safetensors")
    assert torch.equal(end["ddi_gates.project.16.weight"], begin["ddi_gates.project.16.weight"])
    assert not torch.equal(end["ddi_gates.project.8.weight"], begin["ddi_gates.project.8.weight"])


@pytest.mark.parametrize("name", ["gates", "joint", "whole"])
def test_all_processes_hold_the_same_parameters(pair, name):
    folder, _, found = pair
    one, other = (load_file(folder / f"{name}_{rank}.safetensors") for rank in (0, 1))
    assert all(torch.equal(one[n], other[n]) for n in one)
    assert found[0][name] == found[1][name]


def test_the_command_trains_and_rank_0_writes(pair):
    folder, _, found = pair
    assert [one["command"] for one in found] == [0, 0]
    history = ddi.train.history.read_history(folder / "command")
    assert [one["stage"] for one in history] == ["backbone", "gates", "joint"]
    assert history[-1]["task_loss"] < history[0]["task_loss"]
    assert line(json.loads((folder / "last.json").read_text())).items() >= line(history[-1]).items()
    assert sorted(p.name for p in (folder / "command").iterdir()) == ["history.jsonl", "model.safetensors"]
    command, whole = weights(folder / "command"), weights(folder / "whole")
    assert all(torch.equal(command[n], whole[n]) for n in whole)


def test_a_signal_to_one_stops_all_at_the_same_step(pair):
    folder, _, found = pair
    assert [one["resumed"]["stopped"] for one in found] == [6, 6]
    assert found[0]["resumed"]["files"] == ["history.jsonl", "state.safetensors"]
    resumed, whole = weights(folder / "resumed"), weights(folder / "whole")
    parameters = load_file(folder / "whole_0.safetensors")
    assert all(torch.equal(resumed[n], whole[n]) for n in parameters)


def test_the_sign_of_the_penalty_is_one_for_all(pair):
    one, other = (found["signs"] for found in pair[2])
    assert other["own"] < one["share"] < one["own"] and one["share"] == other["share"]
    assert (one["alone"], other["alone"]) == (True, False)  # what each would decide alone
    assert one["below"] and other["below"]
    assert not one["above"] and not other["above"]


def test_a_wrapper_can_be_recorded():
    model = ddi.create_model("cifar_resnet8", gates=ddi.DDIConfig(), exits=2)
    x = torch.randn(2, 3, 32, 32)
    with ddi.record(torch.nn.Sequential(model)) as rec:
        model(x, all_exits=True)
    assert len(rec.macs) == 2


def test_alone_nothing_changes():
    here = World()
    values = torch.tensor([1.0, 2.0], requires_grad=True)
    assert torch.equal(here.mean(values), values.detach()) and not here.mean(values).requires_grad
    assert torch.equal(here.part(torch.arange(4)), torch.arange(4))
    assert here.on_main(lambda: 3) == 3 and here.main and is_main()
    assert here.any(True) and not here.any(False)
    model = torch.nn.Linear(1, 1)
    assert here.wrap(model, trains_gates=True) is model


def test_parts_make_the_batch():
    batch = torch.arange(12)
    parts = [World(rank, 3).part(batch) for rank in range(3)]
    assert [len(part) for part in parts] == [4, 4, 4]
    assert torch.equal(torch.cat(parts).sort().values, batch)


def test_one_process_of_a_machine_waits_for_measurements(tmp_path, monkeypatch):
    """Else one would hold up a measurement and wait for another one, which that measurement holds up."""
    fcntl = pytest.importorskip("fcntl")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with measuring(), World(rank=3, size=4, local_rank=1).working():
        pass
    with World(rank=2, size=4, local_rank=0).working(), open(next(tmp_path.glob("*room*")), "a") as room:
        with pytest.raises(BlockingIOError):
            fcntl.flock(room, fcntl.LOCK_EX | fcntl.LOCK_NB)


@pytest.mark.parametrize(("size", "batch"), [(3, 128), (4, 4), (2, 129)])
def test_batches_that_cannot_be_shared(tmp_path, size, batch):
    config = TrainConfig(**TINY | {"batch_size": batch})
    with pytest.raises(ValueError, match=f"batch_size is {batch}.*{size} processes.*multiple of {size}"):
        Trainer(config, tmp_path, World(size=size))


def test_devices_that_processes_cannot_share(monkeypatch):
    for name, value in {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    assert not is_main()
    with pytest.raises(ValueError, match="'cuda:1' for 2 processes.*\"cuda\""):
        world("cuda:1").__enter__()
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ValueError, match="process 1 of this machine has no GPU, there are 1"):
        world("cuda").__enter__()
    assert not torch.distributed.is_initialized()


def test_a_batch_larger_than_an_epoch(tmp_path):
    with pytest.raises(ValueError, match="batch_size is 5000, but an epoch of digits32 has 1097 images"):
        train(TrainConfig(**TINY | {"batch_size": 5000}), tmp_path, progress_bar=False)
