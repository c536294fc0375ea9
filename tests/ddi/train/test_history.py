"""What a run writes while it runs: a line an epoch, once each, and the same for TensorBoard."""

import builtins
import json
import math
import sys
import types

import pytest
import torch
from tiny_training import NARROW

import ddi
from ddi.cli import main
from ddi.train import TrainConfig, train
from ddi.train.history import add_step, read_history, summary, without_times, write_history
from ddi.train.trainer import Trainer

TINY = NARROW | {"exits": "1", "batch_size": 512}


class Board(list):
    """The place of torch's SummaryWriter: keeps what is written."""

    made: list = []

    def __init__(self, folder, purge_step):
        self.folder, self.purge_step, self.closed = folder, purge_step, False
        Board.made.append(self)

    def add_scalar(self, name, value, step):
        self.append((name, value, step))

    def flush(self):
        pass

    def close(self):
        self.closed = True


@pytest.fixture
def boards(monkeypatch):
    """All boards that a test makes."""
    module = types.ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = Board
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    monkeypatch.setattr(Board, "made", [])
    return Board.made


def test_a_run_that_broke_off_repeats_its_epoch_with_one_line(tmp_path, monkeypatch, boards):
    """Not by SIGINT, so nothing was saved; and a crash between history and state changes nothing either."""
    original, steps = Trainer._loss, []

    def loss(self, *args):
        steps.append(read_history(self.out))
        if len(steps) == 6:  # the second step of the third epoch
            write_history(self.out, [*steps[-1], steps[-1][-1] | {"epoch": 99}])
            raise RuntimeError("out of memory")
        return original(self, *args)

    monkeypatch.setattr(Trainer, "_loss", loss)
    with pytest.raises(RuntimeError, match="out of memory"):
        train(TrainConfig(**TINY), tmp_path, progress_bar=False, tensorboard=True)
    assert [len(seen) for seen in steps] == [0, 0, 1, 1, 2, 2]
    assert len(read_history(tmp_path)) == 3
    last = train(TrainConfig(**TINY), tmp_path, resume=True, progress_bar=False, tensorboard=True)
    history = read_history(tmp_path)
    assert [(one["stage"], one["epoch"]) for one in history] == [
        ("backbone", 1),
        ("gates", 1),
        ("joint", 1),
        ("joint", 2),
    ]
    assert last == history[-1] and len(steps[-1]) == 3
    check_lines(history)
    check_boards(boards, history, tmp_path)
    _, meta = ddi.load_model(tmp_path / "model.safetensors")
    assert meta["history"] == without_times(history) and "seconds" not in meta["history"][0]


def check_lines(history):
    backbone, gates, joint, _ = history
    for one in history:
        assert one["loss"] == pytest.approx(one["task_loss"] + one["penalty"], abs=2e-5)
        assert one["images_per_second"] == pytest.approx(1024 / one["seconds"], rel=0.01)
        assert len(one["exit_accuracy"]) == 1 and one["seconds"] > 0
    assert (backbone["penalty"], backbone["mac_share"]) == (0, 1)
    # Open gates cost what they do themselves, and the target of the gates' stage is below that.
    assert gates["mac_share"] > 1 and gates["penalty"] == pytest.approx(1.5 * gates["mac_share"], abs=1e-4)
    assert set(backbone) - set(gates) == {"lr_network"} and set(gates) - set(backbone) == {"lr_gates"}
    # The schedule's value at the last of two steps: 4/9 of the way down the cosine.
    assert backbone["lr_network"] == pytest.approx(0.2 * 0.5 * (1 + math.cos(math.pi * 4 / 9)), rel=1e-4)
    assert {"lr_network", "lr_gates"} < set(joint)


def check_boards(boards, history, out):
    first, second = boards
    assert first.folder == second.folder == str(out / "tensorboard")
    assert (first.purge_step, second.purge_step) == (1, 3) and first.closed and second.closed
    written = {(name, step): value for name, value, step in [*first, *second]}
    assert len(written) == len(first) + len(second) and {step for _, step in written} == {1, 2, 3, 4}
    for step, one in enumerate(history, 1):
        for name in ("loss", "validation_accuracy", "seconds", "mac_ratio"):
            assert written[name, step] == one[name]
        assert written["exit_accuracy/1", step] == one["exit_accuracy"][0]
        assert written["keep/layer1_0", step] == 1 and 0 < written["open/layer3_0", step] <= 1
    assert not {"stage", "epoch"} & {name for name, _ in written}


def test_shares_of_blocks():
    """Two images, of which the second skips block a; nobody runs block c; block b cannot be skipped."""
    result = types.SimpleNamespace(
        keep=torch.tensor([[True, False], [False, False]]),
        keep_names=["a", "c"],
        open_share=torch.tensor([[0.5, 0.25, 0.0], [0.0, 0.75, 0.0]]),
        block_names=["a", "b", "c"],
    )
    found = ddi.train.tensorboard._scalars({"stage": "joint", "epoch": 1, "loss": 2.0}, result)
    assert found == {"loss": 2.0, "keep/a": 0.5, "keep/c": 0.0, "open/a": 0.5, "open/b": 0.5}


def test_missing_tensorboard_names_the_extra_before_anything_is_trained(tmp_path, monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "torch.utils.tensorboard":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    arguments = ["--model", "cifar_resnet8", "--dataset", "digits32", "--out", str(tmp_path / "run")]
    assert main(["train", *arguments, "--tensorboard"]) == 2
    with pytest.raises(ImportError, match=r"pip install ddi-kernels\[tensorboard\]"):
        train(TrainConfig(**TINY), tmp_path / "run", tensorboard=True)
    assert not (tmp_path / "run").exists()


def test_means_of_an_epoch():
    totals = {}
    add_step(totals, 4, 0.5, {"loss": 1.0, "task_loss": 0.75, "penalty": 0.25, "mac_share": 0.5})
    add_step(totals, 4, 1.5, {"loss": 2.0, "task_loss": 2.25, "penalty": -0.25, "mac_share": 0.25})
    assert summary(totals) == {
        "loss": 1.5,
        "task_loss": 1.5,
        "penalty": 0.0,
        "mac_share": 0.375,
        "seconds": 2.0,
        "images_per_second": 4.0,
    }


NEEDED = ("stage", "epoch", "loss", "task_loss", "mac_share", "validation_accuracy", "mac_ratio")
GOOD = json.dumps(dict.fromkeys(NEEDED, 1)) + "\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GOOD + GOOD[:40], "history.jsonl, line 2 is damaged"),
        (GOOD + "3\n", "line 2 is damaged"),
        (GOOD.replace('"loss"', '"los"'), "line 1 has no loss"),
        ("\x00\xff", "line 1 is damaged"),
    ],
)
def test_damaged_histories(tmp_path, text, message):
    (tmp_path / "history.jsonl").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_history(tmp_path)


def test_no_history(tmp_path):
    with pytest.raises(FileNotFoundError, match="has no history.jsonl; `ddi train --out` writes one"):
        read_history(tmp_path)
    write_history(tmp_path, [])
    assert read_history(tmp_path) == []
