"""Evaluation under budgets, and the sweep over many of them."""

import dataclasses
import json

import pytest
import torch

import ddi
from ddi.budgets.exit_costs import exit_costs
from ddi.cli import main
from ddi.data import get_dataset
from ddi.evaluate.evaluate_budget import evaluate_budget
from ddi_kernels.prices.energy import HOROWITZ_45NM


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    torch.manual_seed(0)
    model = ddi.create_model("cifar_resnet8", exits=[1, 2], gates=ddi.DDIConfig(group_size=4))
    path = tmp_path_factory.mktemp("budget") / "net.safetensors"
    ddi.save_model(path, model, "cifar_resnet8", {"dataset": "digits32"}, exits=[1, 2])
    return path


def test_each_call_is_under_the_budget(checkpoint):
    model, _ = ddi.load_model(checkpoint)
    data = get_dataset("digits32")
    limit = exit_costs(model, (1, 3, 32, 32)).worst(1)
    found = evaluate_budget(model, data, data.validation(), ddi.Budget(macs=limit), batch_size=64)
    x = data.normalize(data.validation().images)
    with torch.inference_mode():
        right = model.forward_exits(x)[1].argmax(1) == data.validation().labels
    assert set(found.exits.tolist()) == {1} and len(found.exits) == len(x) and found.macs.max() <= limit
    assert found.accuracy == pytest.approx(right.double().mean().item(), abs=0.011)
    assert found.summary()["exits"] == [0.0, 1.0] and found.within_ms_share is None


def test_command(checkpoint, tmp_path, capsys):
    target = tmp_path / "eval.json"
    arguments = ["--budget-macs", "9e6", "--batch", "50", "--split", "validation", "--json", str(target)]
    assert main(["eval", str(checkpoint), *arguments]) == 0
    found = json.loads(target.read_text())
    assert found["most_macs"] <= 9e6 and found["budget_macs"] == 9e6 and sum(found["exits"]) == 1
    assert "budget           9.00 MMACs; batch 50" in capsys.readouterr().out
    assert main(["eval", str(checkpoint), "--budget-ms", "1e4", "--batch", "100"]) == 0
    assert "100.00 % within the deadline" in capsys.readouterr().out
    energy = tmp_path / "energy.json"
    energy.write_text(dataclasses.replace(HOROWITZ_45NM, weights_from="l2").dumps())
    arguments = [
        "--budget-joules",
        "1e-4",
        "--energy",
        str(energy),
        "--batch",
        "100",
        "--split",
        "validation",
    ]
    assert main(["eval", str(checkpoint), *arguments, "--json", str(target)]) == 0
    assert 0 < json.loads(target.read_text())["mean_joules"] <= 1e-4
    assert "budget           0.1 mJ; batch 100" in capsys.readouterr().out


def test_mistakes(checkpoint, tmp_path, capsys):
    plain = tmp_path / "plain.safetensors"
    ddi.save_model(plain, ddi.create_model("cifar_resnet8"), "cifar_resnet8", {"dataset": "digits32"})
    for arguments, message in (
        ([str(checkpoint), "--budget-macs", "1000"], "no exit fits into 1000 MACs"),
        ([str(checkpoint), "--budget-ms", "-1"], "ms must be a positive number"),
        ([str(checkpoint), "--budget-macs", "1e8", "--batch", "0"], "batch must be at least 1, got 0"),
        ([str(plain), "--confidence", "0.9"], "confidence needs branch classifiers"),
        ([str(plain), "--sweep", str(tmp_path)], "no branch classifiers to halt at"),
    ):
        assert main(["eval", *arguments]) == 2
        assert message in capsys.readouterr().err


def test_sweep(checkpoint, tmp_path, capsys):
    pytest.importorskip("ddi_kernels._engine", reason="ddi_kernels._engine is not built")
    pytest.importorskip("matplotlib")
    assert (
        main(["eval", str(checkpoint), "--sweep", str(tmp_path), "--split", "validation", "--batch", "8"])
        == 0
    )
    rows = json.loads((tmp_path / "sweep.json").read_text())["rows"]
    assert [row["resource"] for row in rows] == ["macs"] * 9 + ["joules"] * 9 + ["ms"] * 9 + [
        "confidence"
    ] * 9
    macs = rows[:9]
    assert macs[-1]["limit"] is None and macs[-1]["exits"]["network"] == 1
    limits = [row["limit"] for row in macs[:-1]]
    assert limits == sorted(limits) and all(row["mean_macs"] <= row["limit"] for row in macs[:-1])
    joules = rows[9:17]
    assert all(row["mean_joules"] <= row["limit"] for row in joules)
    confidences = rows[27:35]
    assert [row["limit"] for row in confidences[:3]] == [0.5, 0.75, 0.875]
    # Not trained, it is never certain, and what was asked in vain is paid for.
    assert all(row["exits"]["network"] == 1 for row in confidences)
    assert all(row["mean_macs"] > rows[-1]["mean_macs"] for row in confidences)
    assert all(0 < row["mean_ms"] <= row["p99_ms"] for row in rows)
    assert macs[0]["exits"]["exit0"] > 0 and (tmp_path / "sweep.png").read_bytes()[1:4] == b"PNG"
    assert "budget           accuracy  MMACs an image" in capsys.readouterr().out
