"""The verbs freeze and run: what they print and write, and for every mistake one line and status 2."""

from __future__ import annotations

import json
import os
import struct
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gated_models import mixed_model

import ddi
from ddi.cli import main
from ddi.data import Split, get_dataset
from ddi.evaluate import run_plan
from ddi.evaluate.evaluate import evaluate
from ddi.evaluate.run_plan import RunConfig
from ddi.report.demo import pretrained
from ddi_kernels import engine
from ddi_kernels.prices.energy import HOROWITZ_45NM

needs_engine = pytest.mark.usefixtures("built_engine")
IMAGES = 5


@pytest.fixture
def built_engine() -> None:
    pytest.importorskip("ddi_kernels._engine", reason="ddi_kernels._engine is not built")


def verb(tmp_path: Path, *arguments: object) -> dict[str, Any]:
    """The result of a verb that succeeds."""
    target = tmp_path / "result.json"
    assert main([*map(str, arguments), "--json", str(target)]) == 0
    return json.loads(target.read_text())


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with checkpoints, plans, and arrays, good and bad."""
    folder = tmp_path_factory.mktemp("plans")
    meta = {"dataset": "digits32"}
    torch.manual_seed(0)
    branched = ddi.create_model("cifar_resnet8", gates=ddi.DDIConfig(), exits=[1, 2])
    ddi.save_model(folder / "branched", branched, "cifar_resnet8", meta, exits=[1, 2])
    ddi.save_model(folder / "gated", mixed_model(), "cifar_resnet8", meta)
    ddi.save_model(folder / "cifar", mixed_model(), "cifar_resnet8", {"dataset": "cifar10"})
    hundred = ddi.create_model("cifar_resnet8", num_classes=100)
    example = torch.zeros(1, 3, 32, 32)
    ddi.freeze(branched.eval(), example, folder / "branched.ddi")
    ddi.freeze(hundred.eval(), example, folder / "hundred.ddi")
    ddi.freeze(hundred, torch.zeros(1, 3, 16, 24), folder / "small.ddi")
    whole = (folder / "branched.ddi").read_bytes()
    (folder / "cut.ddi").write_bytes(whole[: len(whole) // 2])
    (folder / "flipped.ddi").write_bytes(whole[:-100] + bytes([whole[-100] ^ 1]) + whole[-99:])
    x = np.random.default_rng(0).standard_normal((IMAGES, 3, 32, 32), np.float32)
    np.save(folder / "x.npy", x)
    np.save(folder / "double.npy", x.astype(np.float64))
    np.save(folder / "bytes.npy", x.astype(np.uint8))
    np.save(folder / "one.npy", x[0])
    np.save(folder / "wide.npy", np.concatenate((x, x), axis=3))
    np.save(folder / "none.npy", x[:0])
    np.savez(folder / "many.npz", x=x)
    np.save(folder / "objects.npy", np.array([{}]), allow_pickle=True)
    (folder / "cut.npy").write_bytes((folder / "x.npy").read_bytes()[:-4])
    return folder


def test_freeze_says_what_is_in_the_plan(files: Path, tmp_path: Path, capsys: Any) -> None:
    plan = tmp_path / "deep" / "net.ddi"
    found = verb(tmp_path, "freeze", files / "branched", plan)
    model, _ = ddi.load_model(files / "branched")
    assert plan.read_bytes() == (files / "branched.ddi").read_bytes()
    assert found["bytes"] == plan.stat().st_size and found["dtype"] == "fp32"
    assert found["dense_macs"] == ddi.count_macs(model, torch.zeros(1, 3, 32, 32)).dense
    assert len(found["exits"]) == 3 and found["exits"][-1] == "network"
    assert [gate["name"] for gate in found["gates"]] == ["layer1.0", "layer2.0", "layer3.0"]
    text = capsys.readouterr().out
    assert f"{found['dense_macs'] / 1e6:.2f}" in text and f"{found['bytes'] / 1e6:.2f} MB" in text
    assert "in fp32, for images of 3x32x32" in text and "3: " in text and "calibrated" not in text


def test_freeze_to_int8_calibrates_on_training_images(files: Path, tmp_path: Path, capsys: Any) -> None:
    options = ("--dtype", "int8", "--calibrate", 24, "--seed", 3)
    found = verb(tmp_path, "freeze", files / "gated", tmp_path / "net.ddi", *options)
    model, _ = ddi.load_model(files / "gated")
    data = get_dataset("digits32")
    images = data.normalize(data.train(3, 0).images[:24])
    ddi.freeze(model, images[:1], tmp_path / "own.ddi", torch.int8, images)
    assert (tmp_path / "net.ddi").read_bytes() == (tmp_path / "own.ddi").read_bytes()
    assert found["calibrate"] == 24 and found["dataset"] == "digits32" and found["seed"] == 3
    assert "calibrated on    24 training images of digits32" in capsys.readouterr().out


def test_freeze_to_bfloat16_for_other_images(files: Path, tmp_path: Path) -> None:
    plan = tmp_path / "net.ddi"
    found = verb(tmp_path, "freeze", files / "cifar", plan, "--dtype", "bf16", "--size", 16, 24)
    model, _ = ddi.load_model(files / "cifar")
    assert found["input_shape"] == [3, 16, 24]
    assert found["dense_macs"] == ddi.count_macs(model, torch.zeros(1, 3, 16, 24)).dense
    assert struct.unpack_from("<I", plan.read_bytes(), 12) == (1,)  # as docs/plan_format.md has it


def test_freeze_that_fails_leaves_the_old_plan(files: Path, tmp_path: Path, monkeypatch: Any) -> None:
    def full(_: int) -> None:
        raise OSError("no space left on device")

    (tmp_path / "net.ddi").write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", full)
    assert main(["freeze", str(files / "gated"), str(tmp_path / "net.ddi")]) == 2
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("net.ddi", b"old")]


@needs_engine
def test_run_predicts_what_eval_does(tmp_path: Path, capsys: Any) -> None:
    shipped = pretrained("scene_digits_resnet38_ddi.safetensors")
    verb(tmp_path, "freeze", shipped, tmp_path / "net.ddi")
    options = ("--images", 300, "--batch", 7, "--output", tmp_path / "y.npy")
    found = verb(tmp_path, "run", tmp_path / "net.ddi", *options)
    data = get_dataset("scene_digits")
    split = Split(data.test().images[:300], data.test().labels[:300])
    expected = evaluate(ddi.load_model(shipped)[0], data, split)
    assert found["dataset"] == "scene_digits" and found["split"] == "test" and found["images"] == 300
    assert found["classes"] == expected.logits.argmax(1).tolist()
    assert np.load(tmp_path / "y.npy").argmax(1).tolist() == found["classes"]
    assert found["accuracy"] == expected.accuracy > 0.9
    assert found["dense_macs"] == expected.dense_macs
    assert found["mac_ratio"] == pytest.approx(expected.mac_ratio, rel=1e-3)
    assert found["mean_macs"] == pytest.approx(sum(found["macs"]) / 300)
    text = capsys.readouterr().out
    assert f"{100 * found['accuracy']:.2f} %" in text and f"mac_ratio        {found['mac_ratio']:.2f}" in text


@needs_engine
@pytest.mark.parametrize("batch", [1, 3, 8])
def test_run_on_an_array(batch: int, files: Path, tmp_path: Path) -> None:
    arrays = ("--input", files / "x.npy", "--output", tmp_path / "y.npy")
    found = verb(tmp_path, "run", files / "branched.ddi", *arrays, "--batch", batch)
    network, x = engine.load(files / "branched.ddi", max_batch=batch), np.load(files / "x.npy")
    calls = [network(x[first : first + batch], report=True) for first in range(0, IMAGES, batch)]
    logits, written = np.concatenate([y for y, _ in calls]), np.load(tmp_path / "y.npy")
    assert written.dtype == np.float32 and np.array_equal(written, logits)
    assert found["macs"] == [macs for _, report in calls for macs in report.macs]
    assert found["classes"] == logits.argmax(1).tolist()
    assert found["input"] == str(files / "x.npy") and "accuracy" not in found and "dataset" not in found
    assert found["memory_bytes"] == network.memory_bytes


@needs_engine
def test_run_takes_arrays_of_any_order(files: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "f.npy", np.asfortranarray(np.load(files / "x.npy")))
    for path in (files / "x.npy", tmp_path / "f.npy"):
        output = tmp_path / f"{path.stem}.out"
        verb(tmp_path, "run", files / "branched.ddi", "--input", path, "--output", output)
    assert (tmp_path / "x.out").read_bytes() == (tmp_path / "f.out").read_bytes()


@needs_engine
def test_run_takes_the_time_of_the_calls(files: Path, monkeypatch: Any, capsys: Any, tmp_path: Path) -> None:
    ticks = count()
    monkeypatch.setattr(run_plan, "perf_counter", lambda: float(next(ticks)))  # of all, a second each
    found = verb(tmp_path, "run", files / "branched.ddi", "--input", files / "x.npy", "--batch", 2)
    assert found["load_ms"] == found["p50_ms"] == found["p99_ms"] == 1000
    assert found["images_per_second"] == pytest.approx(5 / 3)
    text = capsys.readouterr().out
    assert "1000.000 median, 1000.000 p99; batch 2, threads 1" in text and "loaded in 1000 ms" in text


@needs_engine
def test_run_under_budgets(files: Path, tmp_path: Path, capsys: Any) -> None:
    plan = files / "branched.ddi"
    network = engine.load(plan)
    arguments = ("run", plan, "--dataset", "digits32", "--split", "validation", "--images", 20, "--batch", 3)
    for exit, macs in enumerate(network.exit_worst_macs):
        found = verb(tmp_path, *arguments, "--max-macs", macs)
        assert found["exits"] == {name: float(i == exit) for i, name in enumerate(network.exits)}
        assert max(found["macs"]) <= macs and found["max_macs"] == macs
    assert f"{network.exits[-1]} 100.00 %" in capsys.readouterr().out
    late = verb(tmp_path, *arguments, "--deadline-ms", "1e-9")
    assert late["exits"][network.exits[0]] == 1 and late["mean_macs"] <= network.exit_worst_macs[0]
    early = verb(tmp_path, *arguments, "--deadline-ms", "1e6")
    assert early["exits"]["network"] == 1 and early["deadline_ms"] == 1e6


ARRAY = ["run", "{files}/branched.ddi", "--input", "{files}/x.npy"]
MISTAKES = {
    "freeze-missing": (["freeze", "{files}/none", "{out}"], "no such file"),
    "freeze-plan": (["freeze", "{files}/branched.ddi", "{out}"], "not a safetensors file"),
    "freeze-size": (
        ["freeze", "{files}/gated", "{out}", "--size", "0", "32"],
        "size is 0 x 32; both",
    ),
    "freeze-calibrate": (["freeze", "{files}/gated", "{out}", "--calibrate", "9"], "fp32 is not calibrated"),
    "freeze-dataset": (["freeze", "{files}/gated", "{out}", "--dataset", "digits32"], "leave dataset out"),
    "int8-none": (
        ["freeze", "{files}/gated", "{out}", "--dtype", "int8", "--calibrate", "0"],
        "calibrate is 0; allowed: 1 to 1097, the training images of digits32",
    ),
    "int8-too-many": (
        ["freeze", "{files}/gated", "{out}", "--dtype", "int8", "--calibrate", "1098"],
        "calibrate is 1098; allowed: 1 to 1097",
    ),
    "int8-size": (
        ["freeze", "{files}/gated", "{out}", "--dtype", "int8", "--size", "64", "64"],
        "size is (64, 64), but int8 is calibrated on images of digits32, which are (32, 32)",
    ),
    "int8-no-root": (["freeze", "{files}/cifar", "{out}", "--dtype", "int8"], "pass root="),
    "run-missing": (["run", "{files}/none.ddi"], "none.ddi"),
    "run-folder": (["run", "{files}"], "Is a directory"),
    "run-checkpoint": (["run", "{files}/gated"], "this is no plan: its first bytes differ; `ddi freeze`"),
    "run-cut": (["run", "{files}/cut.ddi"], "cut.ddi: plan: the file has"),
    "run-flipped": (["run", "{files}/flipped.ddi"], "the checksum of its contents differs"),
    "run-shape": (
        ["run", "{files}/small.ddi"],
        "takes images of (3, 16, 24), those of scene_digits",
    ),
    "run-classes": (["run", "{files}/hundred.ddi"], "knows 100 classes, scene_digits has 10"),
    "run-dataset": (["run", "{files}/branched.ddi", "--dataset", "mnist"], "unknown name 'mnist'"),
    "run-no-root": (["run", "{files}/branched.ddi", "--dataset", "cifar10"], "pass root="),
    "run-too-many": (
        ["run", "{files}/branched.ddi", "--dataset", "digits32", "--images", "501"],
        "images is 501; allowed: 1 to 500, all of test of digits32",
    ),
    "run-none": ([*ARRAY, "--images", "0"], "images is 0; allowed: 1 to 5"),
    "run-both-budgets": ([*ARRAY, "--max-macs", "9", "--deadline-ms", "2"], "allowed: one of them"),
    "run-macs": ([*ARRAY, "--max-macs", "-1"], "max_macs is -1; it must be positive"),
    "run-many-macs": ([*ARRAY, "--max-macs", "9" * 30], "it must be positive, at most 1e+15"),
    "run-few-macs": ([*ARRAY, "--max-macs", "1"], "no exit fits into 1 MACs: the first may take"),
    "run-deadline": ([*ARRAY, "--deadline-ms", "nan"], "deadline_ms is nan; it must be positive"),
    "run-joules": ([*ARRAY, "--max-joules", "-1"], "max_joules is -1.0; it must be positive"),
    "run-few-joules": ([*ARRAY, "--max-joules", "1e-12"], "no exit fits into 1e-12 joules"),
    "run-joules-and-macs": ([*ARRAY, "--max-joules", "1", "--max-macs", "9"], "allowed: one of them"),
    "run-energy": ([*ARRAY, "--energy", "{files}/cut.npy"], "cut.npy"),
    "run-confidence": ([*ARRAY, "--confidence", "1.5"], "confidence is 1.5; it must lie in (0, 1]"),
    "run-batch": ([*ARRAY, "--batch", "0"], "batch is 0; it must be at least 1"),
    "run-large-batch": ([*ARRAY, "--batch", "100000"], "max_batch is 100000; expected 1 to 65536"),
    "run-threads": ([*ARRAY, "--threads", "0"], "threads is 0; it must be at least 1"),
    "run-both": ([*ARRAY, "--dataset", "digits32"], "allowed: an input or a data set"),
    "run-split": ([*ARRAY, "--split", "test"], "split is test; allowed: an input or a data set"),
    "run-output": ([*ARRAY, "--output", "{files}/none/y.npy"], "none; make it, or name another"),
    "run-output-folder": ([*ARRAY, "--output", "{files}"], "is a folder"),
}
ARRAYS = {
    "none-there.npy": "No such file",
    "double.npy": "holds <f8 [5, 3, 32, 32], ",
    "bytes.npy": "holds |u1 [5, 3, 32, 32], ",
    "one.npy": "holds <f4 [3, 32, 32], ",
    "wide.npy": "branched.ddi takes <f4 (numpy.float32) [N, 3, 32, 32]",
    "none.npy": "holds <f4 [0, 3, 32, 32], ",
    "many.npz": "damaged or no .npy file",
    "objects.npy": "damaged or no .npy file",
    "cut.npy": "damaged or no .npy file",
}
for name, says in ARRAYS.items():
    MISTAKES[f"run-{name}"] = (["run", "{files}/branched.ddi", "--input", f"{{files}}/{name}"], says)


@needs_engine
def test_run_within_joules_and_as_sure_as_told(files: Path, tmp_path: Path) -> None:
    network = engine.load(files / "branched.ddi")
    work = network.exit_worst_work[1]
    limit = HOROWITZ_45NM.joules(*work, network.dtype) * (1 + 1e-9)
    found = run_plan.run_plan(files / "branched.ddi", RunConfig("digits32", max_joules=limit, images=20))
    assert 0 < found["mean_joules"] <= limit and found["exits"]["network"] < 1
    sure = run_plan.run_plan(files / "branched.ddi", RunConfig("digits32", confidence=1e-6, images=20))
    assert sure["exits"]["exit0"] == 1 and sure["mean_macs"] == network.exit_worst_macs[0]
    cheap = replace(HOROWITZ_45NM, weights_from="l1")
    less = run_plan.run_plan(files / "branched.ddi", RunConfig("digits32", energy=cheap, images=20))
    assert (
        less["mean_joules"]
        < run_plan.run_plan(files / "branched.ddi", RunConfig("digits32", images=20))["mean_joules"]
    )


@needs_engine
@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_give_one_line_and_status_2(mistake: str, files: Path, tmp_path: Path, capsys: Any) -> None:
    arguments, says = MISTAKES[mistake]
    filled = [a.replace("{files}", str(files)).replace("{out}", str(tmp_path / "net.ddi")) for a in arguments]
    status = main([*filled, "--json", str(tmp_path / "result.json")])
    printed = capsys.readouterr()
    assert status == 2 and printed.out == ""
    assert printed.err.startswith(f"ddi {arguments[0]}: error: ") and says in printed.err
    assert printed.err.count("\n") == 1
    assert not list(tmp_path.iterdir())
